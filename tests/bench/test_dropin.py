"""pynlm.torch beside torch.nn: a tiny run, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import dropin


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"V": 30, "H": 8, "B": 2, "T": 3}
    monkeypatch.setattr(
        dropin, "MODELS", (dropin.Model("LSTM", **small), dropin.Model("GRU", **small))
    )
    monkeypatch.setattr(dropin, "TINY", ("LSTM", "GRUCell"))
    monkeypatch.setattr(dropin, "TINY_CALLS", 1)
    monkeypatch.setattr(dropin, "SMALL", (2, 3, 8))
    dropin.main(["--seconds", "0.01", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "dropin.json").read_text(encoding="utf-8"))["dropin"]
    assert len(rows) == 2 * 2 + 2 + 2
    assert all(row["ratio"] == row["torch"] / row["pynlm"] > 0 for row in rows)
    models = [row for row in rows if "loss difference" in row]
    assert [row["case"].split()[0] for row in models] == ["LSTM", "GRU"]
    assert all(0 <= row["loss difference"] < 1e-5 for row in models)
    page = (tmp_path / "dropin.md").read_text(encoding="utf-8")
    assert "## Forward and backward, T 1, B 1, H 16" in page and "| GRUCell |" in page
    assert "| 1.25× |" in page and "1.4×" in page
