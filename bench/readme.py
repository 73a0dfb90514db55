"""The README's table of speeds, made from reports: `python -m bench.readme RECORD.json...`.

It stands between two comments; a test holds it against the records that it links to. A kind of work
that stands in several reports is taken from the last of them; it must not have fewer cases there.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
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


def table(records: Sequence[Record]) -> str:
    """Ratios with all threads by kind of work, with the machine and what took part.

    Raises
    ------
    ValueError
        A record has fewer cases of a kind of work than an earlier one.
    """
    rows: dict[tuple[str, str], tuple[int, list[float]]] = {}
    for number, record in enumerate(records, 1):
        for work, ratios in _ratios(record).items():
            earlier, known = rows.get(work, (number, []))
            if len(ratios) < len(known):
                raise ValueError(
                    f"bench.readme: {record.name} must have at least the {len(known)} cases of "
                    f"{work[0]} of the earlier report {records[earlier - 1].name}, "
                    f"got {len(ratios)}"
                )
            rows[work] = number, ratios
    lines = [
        [*work, str(len(x)), page.times(geometric_mean(x)), page.times(min(x)), str(number)]
        for work, (number, x) in rows.items()
    ]
    head = ["work", "against", "cases", "geometric mean", "least", "report"]
    reports = [_described(record) for record in records]
    return "\n".join(
        [
            "Ratios are the other's time over pynlm's, with all threads. The reports:",
            "",
            *(f"{number}. {text}" for number, text in enumerate(reports, 1)),
            "",
            page.table(head, lines),
        ]
    )


def _ratios(record: Record) -> dict[tuple[str, str], list[float]]:
    """By kind of work and peer, with all threads."""
    found: dict[tuple[str, str], list[float]] = {}
    for result in record.results:
        work = _work(result), _against(result)
        one = ratio(result, work[1]) if result.threads == record.cpus else None
        if one is not None:
            found.setdefault(work, []).append(one)
    return found


def _described(record: Record) -> str:
    facts = "; ".join(f"{k} {record.facts[k]}" for k in _FACTS if k in record.facts)
    return (
        f"[{record.name}](bench/results/{record.name}.md): {record.facts['CPU']}, "
        f"{page.threads(record.cpus)}; {facts}"
    )


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


def update(text: str, records: Sequence[Record]) -> str:
    """`text` with the table of `records` between its two comments.

    Raises
    ------
    ValueError
        They are not there.
    """
    block = re.compile(re.escape(BEGIN) + r"\n.*?" + re.escape(END), re.S)
    if not block.search(text):
        raise ValueError(f"bench.readme: {README.name} has no {BEGIN} … {END}")
    return block.sub(lambda _: f"{BEGIN}\n{table(records)}\n{END}", text)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("records", type=Path, nargs="+", help="JSON of a report in bench/results")
    records = [Record.load(path) for path in parser.parse_args(arguments).records]
    README.write_text(update(README.read_text(encoding="utf-8"), records), encoding="utf-8")


if __name__ == "__main__":
    main()
