"""The README's speeds are those of the reports that it links to."""

from __future__ import annotations

import re

import pytest

from bench.readme import BEGIN, END, README, table, update
from bench.record import Record

RESULTS = README.parent / "bench" / "results"


def test_figures_are_the_reports() -> None:
    text = README.read_text(encoding="utf-8")
    block = text[text.index(BEGIN) : text.index(END)]
    linked = re.findall(r"\]\(bench/results/([^)]+)\.md\)", block)
    assert linked
    records = [Record.load(RESULTS / f"{name}.json") for name in linked]
    assert update(text, records) == text


def test_work_in_two_reports_is_the_last_ones() -> None:
    one, two = (Record.load(RESULTS / f"amd-epyc-2cpu{name}.json") for name in ("", "-softmax"))
    both = table([one, two]).splitlines()
    assert [line for line in both if line.startswith("| softmax training |")] == [
        line.replace("| 1 |", "| 2 |")
        for line in table([two]).splitlines()
        if line.startswith("| softmax training |")
    ]
    assert any(line.startswith("| LSTM training |") for line in both)


def test_fewer_cases_replace_nothing() -> None:
    four, seven = (Record.load(RESULTS / f"amd-epyc-2cpu{name}.json") for name in ("", "-softmax"))
    message = (
        f"{four.name} must have at least the 7 cases of softmax training of the earlier report "
        f"{seven.name}, got 4"
    )
    with pytest.raises(ValueError, match=message):
        table([seven, four])


def test_table_needs_its_place() -> None:
    with pytest.raises(ValueError, match=r"README\.md has no"):
        update("# A readme", [Record("none", 1)])
