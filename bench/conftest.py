"""pytest-benchmark over the catalogue: one row a case, timed in turns with its peers.

`pytest bench` measures; `pytest bench --benchmark-disable` runs every case once, shortened in time
and vocabulary, with all contenders' results compared, as a smoke test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import machine, ours, page
from bench.cases import Case, DropIn
from bench.catalogue import identifier
from bench.measure import Result, check_agreement, contenders, result_of
from bench.peers import TORCH, Peer, available, missing
from bench.timing import Budget, Contest, Peak, no_collection, threads
from pynlm import kernels

Bench = Callable[[Case], None]
BUDGET = Budget(seconds=2.0)

_results: list[tuple[Result, Peak]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bench-threads",
        type=int,
        metavar="N",
        help="of all contenders (default: all, or 1 with --benchmark-disable)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")


def pytest_make_parametrize_id(val: object) -> str | None:
    return identifier(val) if isinstance(val, Case) else None


@pytest.fixture(scope="session")
def peers() -> list[Peer]:
    """The other libraries at hand."""
    return available()


@pytest.fixture(scope="session")
def peak() -> Peak:
    """Of the machine, measured anew after each case."""
    return Peak()


@pytest.fixture(autouse=True)
def equal_threads(request: pytest.FixtureRequest, peers: list[Peer]) -> Iterator[None]:
    """As many threads for all; one in a smoke test, which may share its machine with others."""
    smoke = request.config.getoption("benchmark_disable")
    n = request.config.getoption("--bench-threads") or (1 if smoke else kernels.get_num_threads())
    with threads(n, peers):
        yield


@pytest.fixture
def bench(benchmark: Any, peers: list[Peer], peak: Peak) -> Bench:
    """`bench(case)` measures a case, or runs it once where benchmarks are disabled."""

    def measure(case: Case) -> None:
        if isinstance(case, DropIn) and TORCH in missing():
            pytest.skip("needs torch")
        if benchmark.disabled:
            case = case.smoke()
        elif not machine.has_room_for(case.bytes):
            pytest.skip(f"{identifier(case)} takes up to {case.bytes / 2**30:.1f} GiB")
        works = contenders(case, peers)
        check_agreement(case, works)
        if benchmark.disabled:
            # Results are computed apart from what is timed: run that, too.
            for work in works.values():
                work.run()
            benchmark.pedantic(works[ours.NAME].run)
            return
        _measure(case, Contest({name: work.run for name, work in works.items()}))

    def _measure(case: Case, contest: Contest) -> None:
        rounds = BUDGET.rounds(contest.prepare(BUDGET.limit))
        others_work = machine.OtherWork()
        others: dict[str, list[float]] = {n: [] for n in contest.contenders if n != ours.NAME}
        others |= {name: [seconds] for name, seconds in contest.once.items()}

        def others_turns() -> None:
            for name in others.keys() - contest.once:
                others[name].append(contest.turn(name))
            contest.ready(ours.NAME)

        peak.measure()
        benchmark.group = case.group
        with no_collection():
            benchmark.pedantic(contest.contenders[ours.NAME], setup=others_turns, rounds=rounds)
        share = others_work.share()
        peak.measure()
        own = list(benchmark.stats.stats.data)
        n = kernels.get_num_threads()
        result = result_of(case, n, {ours.NAME: own, **others}, contest.disturbed, share)
        _results.append((result, peak))
        benchmark.extra_info |= {
            **result.to_dict(),
            "peak": peak.best(n),
            "share_of_peak": result.share(ours.NAME, peak.best(n)),
        }

    return measure


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _results:
        return
    result, peak = _results[0]
    rate = f"{peak.best(result.threads) / 1e9:.0f} GFLOP/s"
    terminalreporter.section(
        f"in turns with the peers, {page.threads(result.threads)}, peak {rate}"
    )
    for result, peak in _results:
        terminalreporter.write_line(page.line(result, peak.best(result.threads)))
