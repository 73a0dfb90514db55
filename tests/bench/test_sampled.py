"""The loss over sampled tokens beside the exact one: it runs, and the page from made-up figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import sampled as bench
from bench.cases import Softmax


def test_page() -> None:
    seconds = {"pynlm": 0.01, "drawing": 0.0001, "exact": 0.5, "torch": 0.03}
    row = {"case": "1,2,3", "samples": 1024, "flops": 3e9, "seconds": seconds}
    text = bench.render({"CPU": "Some CPU"}, [row], 2)
    assert "| 1,2,3 | 1,024 | 10.0 ms | 300 | 1.0 % | 50.00× | 3.00× |" in text
    del seconds["torch"]
    assert "| 50.00× |  |" in bench.render({}, [row], 2)


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch computes is checked on the way, where torch is there."""
    monkeypatch.setattr(bench, "CASES", [Softmax(7, 5, 60)])
    monkeypatch.setattr(bench, "SAMPLES", (20,))
    bench.main(["--seconds", "0.01", "--out", str(tmp_path)])
    values = json.loads((tmp_path / "sampled.json").read_text())
    (row,) = values["sampled"]
    assert row["flops"] == 6 * 7 * 5 * 20 and {"pynlm", "drawing", "exact"} <= set(row["seconds"])
