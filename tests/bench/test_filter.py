"""The gradient filter: a tiny run, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import filter as bench
from bench.cases import Softmax


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CASES", [Softmax(7, 5, 600)])
    monkeypatch.setattr(bench, "FILTERS", (0.0, 2.0**-10, 2.0**-3))
    bench.main(["--seconds", "0.01", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "filter.json").read_text(encoding="utf-8"))["filter"]
    assert len(rows) == 9
    for i in (0, 3, 6):  # of one deviation: nothing, a little, almost all
        errors = [row["dh"] for row in rows[i : i + 3]]
        assert errors[0] == 0 and errors == sorted(set(errors))
        common = [row["dh_common"] for row in rows[i : i + 3]]
        assert common[0] == 0 and common == sorted(set(common))
    perplexities = [row["perplexity"] for row in rows[::3]]
    assert perplexities == sorted(perplexities, reverse=True) and perplexities[0] < 600
    page = (tmp_path / "filter.md").read_text(encoding="utf-8")
    assert "| 7,5,600 | 0.3 |" in page and "| none |" in page and "| 2^-10 |" in page
