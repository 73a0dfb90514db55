"""The README's table of speeds, made from a report: `python -m bench.readme RECORD.json`.

It stands between two comments; a test holds it against the record that it links to.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from statistics import geometric_mean

from bench import page
from bench.bars import ratio
from bench.cases import Recurrent
from bench.catalogue import GOALS, LOOP, find
from bench.measure import Result
from bench.peers import TORCH
from bench.record import Record

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- made by bench.readme -->", "<!-- to here -->"
_FACTS = ("pynlm", "torch", "ONNX Runtime", "date")
_VARIANTS = "layer norm, zoneout, weight drop and the like"


def table(record: Record) -> str:
    """Ratios with all threads by kind of work, with the machine and what took part."""
    rows: dict[tuple[str, str], list[float]] = {}
    for result in record.results:
        against = _against(result)
        found = ratio(result, against) if result.threads == record.cpus else None
        if found is not None:
            rows.setdefault((_work(result), against), []).append(found)
    lines = [
        [work, against, str(len(x)), page.times(geometric_mean(x)), page.times(min(x))]
        for (work, against), x in rows.items()
    ]
    facts = "; ".join(f"{k} {record.facts[k]}" for k in _FACTS if k in record.facts)
    return (
        f"{record.facts['CPU']}, {page.threads(record.cpus)}; {facts} "
        f"([all figures](bench/results/{record.name}.md)). Ratios are the other's time over "
        "pynlm's.\n\n"
    ) + page.table(["work", "against", "cases", "geometric mean", "least"], lines)


def _work(result: Result) -> str:
    case = find(result.group, result.case)
    if isinstance(case, Recurrent) and _against(result) == LOOP:
        return f"{case.cell.upper()} with {_VARIANTS}"
    if result.family == "train" or result.group.endswith("script"):
        return f"{result.group}, {result.case}"
    return result.group


def _against(result: Result) -> str:
    """The peer that the group's goal is about; torch where there is no goal."""
    goals = GOALS.get(result.group)
    return TORCH if goals is None else goals[1].against


def update(text: str, record: Record) -> str:
    """`text` with the table of `record` between its two comments.

    Raises
    ------
    ValueError
        They are not there.
    """
    block = re.compile(re.escape(BEGIN) + r"\n.*?" + re.escape(END), re.S)
    if not block.search(text):
        raise ValueError(f"bench.readme: {README.name} has no {BEGIN} … {END}")
    return block.sub(lambda _: f"{BEGIN}\n{table(record)}\n{END}", text)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("record", type=Path, help="JSON of a report in bench/results")
    record = Record.load(parser.parse_args(arguments).record)
    README.write_text(update(README.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
