"""Cells for JAX: a tiny run, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import jax_cells as bench
from bench.cases import Recurrent


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Recurrent("lstm", 5, 3, 4, 6), Recurrent("gru", 5, 3, 4, 6, ragged=True)]
    monkeypatch.setattr(bench, "CASES", cases)
    monkeypatch.setattr(bench, "MODEL", {"time": 3, "batch": 2, "size": 8, "vocabulary": 11})
    monkeypatch.setattr(bench, "LOADS", (0, 1))
    bench.main(["--seconds", "0.01", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "jax_cells.json").read_text(encoding="utf-8"))
    ways = ["JAX", *(f"pynlm.jax, {way}" for way in bench.ways())]
    assert [row["way"] for row in found["layers"]] == ["pynlm", *ways] * 2
    assert [(row["load"], row["way"]) for row in found["model"]] == [
        (load, way) for load in (0, 1) for way in ways
    ]
    page = (tmp_path / "jax_cells.md").read_text(encoding="utf-8")
    assert "| LSTM 5,3,4,6 | JAX |" in page and "| GRU 5,3,4,6 ragged | pynlm |" in page
