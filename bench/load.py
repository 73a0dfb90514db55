"""A training step while others keep CPUs busy: `python -m bench.load [--seconds S] [--out DIR]`.

Competitors are processes that do nothing but compute. pynlm and torch train alone, then beside one
and beside two of them, each in one piece, as training runs: a team of threads that has lost a CPU
may need several steps to notice. Writes DIR/load.json and DIR/load.md. Wants an otherwise idle
machine; the bars are for two cores.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import mean, median

from bench import ours, page
from bench.cases import Train
from bench.catalogue import LOAD_CPUS, LOAD_GOALS
from bench.measure import check_agreement, contenders
from bench.peers import TORCH, Peer, available
from bench.small_page import SmallPage, options
from bench.timing import clock, no_collection, settle, threads
from pynlm import kernels

CASE = Train("zaremba-small")
LOADS = (0, *LOAD_GOALS)
ROUNDS = 3
"""Each contender has so many pieces under each load: what else a machine does varies slowly."""
_WARM = 5

Figures = dict[str, dict[int, list[float]]]
"""Seconds of each step, by contender and number of competitors."""

# It ends with its parent, too, should that be killed.
_BUSY = """
import os
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@contextmanager
def competitors(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many busy processes, from when all run until the end of the block, however it ends."""
    command = [sys.executable, "-c", _BUSY]
    found: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            found.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
        for process in found:
            assert process.stdout is not None
            process.stdout.readline()
        yield found
    finally:
        for process in found:
            process.kill()
        for process in found:
            process.communicate()


def piece(step: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each step of a training that lasts so long, and at least one step."""
    settle()
    for _ in range(_WARM):
        step()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        found.append(clock(step))
    return found


def measure(case: Train, peers: list[Peer], seconds: float, rounds: int = ROUNDS) -> Figures:
    """All contenders under all loads, with all threads."""
    with threads(kernels.get_num_threads(), peers), no_collection():
        works = contenders(case, peers)
        check_agreement(case, works)
        figures: Figures = {name: {load: [] for load in LOADS} for name in works}
        for _ in range(rounds):
            for load in LOADS:
                with competitors(load):
                    for name, work in works.items():
                        figures[name][load] += piece(work.run, seconds)
                        median_step = page.duration(median(figures[name][load]))
                        print(
                            f"beside {load}: {name:32} {median_step}", file=sys.stderr, flush=True
                        )
    return figures


def summary(figures: Figures) -> dict[str, dict[int, dict[str, float]]]:
    """Median and mean step by contender and load, and their ratios to those alone."""
    return {
        name: {
            load: {
                "steps": len(seconds),
                "median": median(seconds),
                "mean": mean(seconds),
                "slower": median(seconds) / median(of[0]),
                "slower_mean": mean(seconds) / mean(of[0]),
            }
            for load, seconds in of.items()
        }
        for name, of in figures.items()
    }


def render(
    facts: Mapping[str, str], case: Train, found: Mapping[str, dict[int, dict[str, float]]], n: int
) -> str:
    """The page; pynlm's ratios stand beside the bars where `n` is as many threads as they are for.

    Parameters
    ----------
    facts
        Machine, software and circumstances, by name.
    case
        What was trained.
    found
        As `summary` gives it.
    n
        Threads of each contender.
    """
    rows = []
    for name, of in found.items():
        for load, f in of.items():
            row = [name, str(load), page.duration(f["median"]), str(f["steps"])]
            if load:
                goal, met = "", ""
                if name == ours.NAME and n == LOAD_CPUS:
                    goal, met = f"{LOAD_GOALS[load]:g}×", page.met(f["slower"] <= LOAD_GOALS[load])
                row += [page.times(f["slower"]), goal, met, page.times(f["slower_mean"])]
            else:
                row += [""] * 4
            rows.append(row)
    head = ["", "competitors", "median step", "steps", "slower", "at most", "met", "mean slower"]
    parts = [
        f"Training steps of {case.name} ({case.detail}) with {page.threads(n)}, alone and beside "
        "processes that keep a CPU busy each. Slower: median step over the median step alone; the "
        "last column is the same of means, which long waits weigh on.",
        page.table(head, rows),
    ]
    return page.small("Training beside other work", facts, parts, "load")


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    given = options("load", __doc__, 3.0, "piece").parse_args(arguments)
    peers = available(TORCH)
    report = SmallPage("load", peers)
    found = summary(measure(CASE, peers, given.seconds))
    values = {"case": CASE.name, "steps": found}
    report.write(given.out, values, lambda facts, n: render(facts, CASE, found, n))


if __name__ == "__main__":
    main()
