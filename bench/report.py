"""Measure all families and write the page of this machine: `python -m bench.report [--quick]`.

Files in `bench/results/`: NAME.json with all figures, NAME.md, and its plots. NAME is that of the
machine, with "-quick" for a quick run. `--render FILE.json` makes page and plots from a record,
also from the NAME.partial.json that a broken-off run leaves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import catalogue, machine, memory, page
from bench.cases import Case, DropIn, Train
from bench.catalogue import FAMILIES
from bench.measure import compare
from bench.peers import TORCH, available, missing
from bench.plots import draw
from bench.record import Record
from bench.timing import Budget, Peak, threads
from pynlm import kernels

RESULTS = Path(__file__).resolve().parent / "results"
QUICK = Budget(seconds=0.2, least=3, patience=2.0)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    given = _parser().parse_args(arguments)
    if given.render is not None:
        write(Record.load(given.render), given.render.parent)
        return
    all_threads = kernels.get_num_threads()
    counts = given.threads or sorted({all_threads} if given.quick else {1, all_threads})
    budget = QUICK if given.quick else Budget()
    if given.seconds is not None:
        budget = budget._replace(seconds=given.seconds)
    name = (given.name or machine.file_name()) + ("-quick" if given.quick else "")
    cases = chosen(given.family or list(FAMILIES), given.only, quick=given.quick)
    if not cases:
        sys.exit(f"bench.report: no case matches {given.only!r}")
    given.out.mkdir(parents=True, exist_ok=True)
    partial = given.out / f"{name}.partial.json"
    record = run(name, cases, counts, budget, partial)
    if not given.quick:
        steps = [case for case in cases if isinstance(case, Train)]
        left = [case for case in steps if f"{case.group} {case.name}" not in record.left_out]
        _measure_memory(left, max(counts), record)
    write(record, given.out)
    partial.unlink()


def chosen(families: list[str], only: str | None, *, quick: bool) -> list[Case]:
    """Cases of some families whose name or group contains `only`; if `quick`, one of each group."""
    found = [
        case
        for family in families
        for case in FAMILIES[family]
        if only is None or only in catalogue.identifier(case)
    ]
    if quick:
        found = list({case.group: case for case in reversed(found)}.values())[::-1]
    return found


def run(name: str, cases: list[Case], counts: list[int], budget: Budget, partial: Path) -> Record:
    """Measure, and print as it goes; `partial` holds what is done if the run is broken off."""
    peers = available()
    record = Record(name, kernels.get_num_threads(), machine.facts(peers))
    print("\n".join(f"{key:<10} {value}" for key, value in record.facts.items()))
    if not peers:
        print("no peer is installed: shares of the peak only (pip install 'pynlm[bench]')")
    others, peak = machine.OtherWork(), Peak()
    fitting = [case for case in cases if _fits(case, record)]
    for n in counts:
        with threads(n, peers):
            peak.measure(bursts=50)
        print(f"\n{page.threads(n)}, peak {peak.best(n) / 1e9:.0f} GFLOP/s")
        for case in fitting:
            result = compare(case, n, peers, budget)
            with threads(n, peers):
                peak.measure()
            record.results.append(result)
            record.peaks = peak.figures()
            record.save(partial)
            print(page.line(result, peak.best(n)), flush=True)
    record.facts["other work"] = others.describe()
    disturbed = sum(r.disturbed for r in record.results)
    if disturbed:
        record.facts["disturbed"] = f"{disturbed} turns began while others' threads still ran"
    return record


def _fits(case: Case, record: Record) -> bool:
    if isinstance(case, DropIn) and TORCH in missing():
        record.left_out[f"{case.group} {case.name}"] = "needs torch"
        return False
    if machine.has_room_for(case.bytes):
        return True
    free = machine.available_memory()
    need = f"{case.bytes / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    record.left_out[f"{case.group} {case.name}"] = f"takes up to {need}"
    return False


def _measure_memory(cases: list[Train], n: int, record: Record) -> None:
    for case in cases:
        print(f"\nmemory of {case.name} over {memory.STEPS} steps, {page.threads(n)}")
        for contender in memory.contenders():
            found = memory.measure(case, contender, n)
            record.memory.append(found)
            print(
                f"{contender:<30} after step 1 {page.mebibytes(found.first)} MiB, step 2 "
                f"{page.mebibytes(found.second - found.first, sign=True)}, to the last "
                f"{page.mebibytes(found.last - found.second, sign=True)}, "
                f"peak {page.mebibytes(found.peak)} MiB",
                flush=True,
            )


def write(record: Record, folder: Path) -> None:
    """JSON, page and plots."""
    record.save(folder / f"{record.name}.json")
    plots = draw(record, folder)
    text = page.render(record, plots)
    (folder / f"{record.name}.md").write_text(text, encoding="utf-8")
    print()
    for s in record.summaries():
        mean = (
            f"geometric mean {page.times(s.mean)}, least {page.times(s.least)}; " if s.mean else ""
        )
        low, high = map(page.percent, s.shares)
        print(f"{s.group:<24} {page.threads(s.threads):<10} {mean}{low} to {high} of peak")
    if warning := page.unfair(record):
        print(f"\n{warning}")
    print(f"\n{folder / record.name}.md")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="one case of each group, all threads, few rounds")
    add("--family", action="append", choices=list(FAMILIES), help="only this one (repeatable)")
    add("--only", metavar="TEXT", help="only cases whose name contains it (LSTM-training, 200)")
    add("--threads", type=int, action="append", metavar="N", help="default: 1, and all")
    add("--seconds", type=float, help=f"for each case (default {Budget().seconds:g})")
    add("--out", type=Path, default=RESULTS, help="folder (default bench/results)")
    add("--name", help="of the machine, for the files")
    add("--render", type=Path, metavar="JSON", help="only make page and plots from a record")
    return parser


if __name__ == "__main__":
    main()
