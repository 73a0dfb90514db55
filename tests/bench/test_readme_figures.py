"""The README's speeds are those of the report that it links to."""

from __future__ import annotations

import re

import pytest

from bench.readme import BEGIN, README, update
from bench.record import Record


def test_figures_are_the_reports() -> None:
    text = README.read_text(encoding="utf-8")
    linked = re.search(re.escape(BEGIN) + r".*?\]\((bench/results/[^)]+)\.md\)", text, re.S)
    assert linked is not None
    record = Record.load(README.parent / f"{linked[1]}.json")
    assert update(text, record) == text


def test_table_needs_its_place() -> None:
    with pytest.raises(ValueError, match=r"README\.md has no"):
        update("# A readme", Record("none", 1))
