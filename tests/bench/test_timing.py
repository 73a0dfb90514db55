"""Turns, statistics and the peak."""

from __future__ import annotations

import gc

import pytest

from bench import timing
from bench.timing import Budget, Contest, Peak, Times, no_collection, settle, threads
from pynlm import kernels


def test_contenders_take_turns_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "settle", lambda: True)
    calls: list[str] = []
    contest = Contest({name: lambda name=name: calls.append(name) for name in "abc"})
    contest.prepare()
    calls.clear()
    for number in range(3):
        assert contest.round(number).keys() == set("abc")
    # one call that does not count before each
    assert "".join(calls) == "aabbcc" + "bbccaa" + "ccaabb"
    assert contest.disturbed == 0


def test_run_gives_as_many_times_to_each() -> None:
    found = Contest({"a": lambda: None, "b": lambda: None}).run(Budget(1e-9, 4, 9, 1e12))
    assert [len(seconds) for seconds in found.values()] == [4, 4]
    assert min(min(seconds) for seconds in found.values()) >= 0.0


def test_long_calls_are_not_warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "settle", lambda: True)
    monkeypatch.setattr(timing, "LONG", 0.0)
    calls: list[str] = []
    contest = Contest({"a": lambda: calls.append("a")})
    contest.prepare()
    calls.clear()
    contest.turn("a")
    assert calls == ["a"]


class Clocks:
    """Stands in for `time`: while `spins` seconds last, a thread uses all of a CPU."""

    def __init__(self, spins: float) -> None:
        self.now, self.spins = 0.0, spins

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return min(self.now, self.spins)


def test_settle_waits_for_threads_that_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(spins=0.006)
    monkeypatch.setattr(timing, "time", clocks)
    assert settle()
    assert 0.006 < clocks.now < 0.009


def test_threads_that_never_rest_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(spins=1e9)
    monkeypatch.setattr(timing, "time", clocks)
    assert not settle()
    assert clocks.now < 1.0
    contest = Contest({"a": lambda: None})
    contest.turn("a")
    assert contest.disturbed == 1


def test_budget() -> None:
    budget = Budget(seconds=4.0, least=7, most=200, patience=5.0)
    assert not budget.enough(6, 10.0)
    assert budget.enough(7, 4.0)
    assert not budget.enough(7, 3.9)
    assert budget.enough(200, 0.1)
    assert not budget.enough(2, 100.0)
    assert budget.enough(3, 20.0)
    assert [budget.rounds(t) for t in (0.001, 0.1, 1.0, 5.0, 60.0)] == [200, 40, 7, 4, 3]


def test_times_are_quartiles() -> None:
    assert Times.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Times(3.0, 2.0, 4.0, 1.0, 5)


def test_threads_are_set_and_restored() -> None:
    class Library:
        def __init__(self) -> None:
            self.set: list[int] = []

        def set_threads(self, n: int) -> None:
            self.set.append(n)

    before, library = kernels.get_num_threads(), Library()
    with threads(1, [library]):  # type: ignore[list-item]
        assert kernels.get_num_threads() == 1
    assert kernels.get_num_threads() == before
    assert library.set == [1, before]


def test_collector_rests_and_comes_back() -> None:
    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_peak_is_the_best_burst() -> None:
    peak = Peak()
    with threads(1, []):
        peak.measure(bursts=3)
        peak.measure(bursts=2)
    assert len(peak.bursts[1]) == 5
    assert peak.best(1) == max(peak.bursts[1]) > 1e8
    assert peak.figures()[1]["bursts"] == 5


def test_a_contender_that_takes_longer_than_a_case_is_called_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = Clocks(spins=0.0)
    monkeypatch.setattr(timing, "time", clocks)
    calls: list[str] = []

    def call(name: str, seconds: float) -> None:
        calls.append(name)
        clocks.now += seconds

    contest = Contest({"slow": lambda: call("slow", 9.0), "quick": lambda: call("quick", 1.0)})
    found = contest.run(Budget(seconds=2.0, least=3, most=9, patience=4.0))
    assert found == {"slow": [9.0], "quick": pytest.approx([1.0] * 3)}
    assert calls.count("slow") == 1
