"""How contenders are timed: in one process, alternating call by call, each left in peace.

A thread team does not stop when a call returns. pynlm's workers spin for about 50 µs before they
park, those of torch's OpenMP for milliseconds; whoever runs next meanwhile finds a core taken. So
each turn is: wait until no thread of the process uses the CPU any more (`settle`), make one call
that does not count, and time the next. The call that does not count wakes the contender's own team
and fetches its own data to the caches, so that what is timed is the steady state of a loop that
calls nothing else, for each contender alike. Where a call takes so long that this makes no
difference (`LONG`) it is left out. The order changes from round to round, and what is reported are
medians over many rounds; only a contender of which one call takes longer than a whole case may has
that one time.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bench.peers import Peer
from pynlm import _kernels, kernels

LONG = 0.1
"""Seconds; a call of that length needs no call before it."""

_SLICE = 0.0005
_QUIET = 0.2
_SETTLE_LIMIT = 0.5

BURST = 0.002
"""Seconds that one measurement of the peak takes, about."""


class Budget(NamedTuple):
    """How long a case is measured.

    `seconds`, but at least and at most so many rounds; where the least rounds take longer than
    `patience` times the seconds, three do.
    """

    seconds: float = 4.0
    least: int = 7
    most: int = 200
    patience: float = 5.0

    @property
    def limit(self) -> float:
        """Seconds beyond which no more than the fewest rounds are made."""
        return self.patience * self.seconds

    def rounds(self, seconds: float) -> int:
        """How many rounds that take so long each."""
        few = min(3, self.least)
        least = min(self.least, max(few, int(self.limit / seconds)))
        return min(max(least, int(self.seconds / seconds)), self.most)

    def enough(self, rounds: int, seconds: float) -> bool:
        """Whether so many rounds in so much time will do."""
        if rounds >= self.most:
            return True
        if rounds >= self.least:
            return seconds >= self.seconds
        return rounds >= min(3, self.least) and seconds >= self.limit


@dataclass(frozen=True)
class Times:
    """Seconds of one contender over all rounds."""

    median: float
    low: float
    high: float
    best: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """Median, quartiles, minimum."""
        low, median, high = quartiles(seconds)
        return cls(median, low, high, min(seconds), len(seconds))


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return float(low), float(median), float(high)


def settle() -> bool:
    """Wait until the threads of this process are idle; False if they will not be.

    The clock of the process counts the CPU time of all its threads, so a worker that spins shows,
    whosever it is; other processes do not.
    """
    quiet, end = 0, time.perf_counter() + _SETTLE_LIMIT
    while quiet < 2:
        wall, cpu = time.perf_counter(), time.process_time()
        if wall > end:
            return False
        time.sleep(_SLICE)
        used, passed = time.process_time() - cpu, time.perf_counter() - wall
        quiet = quiet + 1 if used < _QUIET * passed else 0
    return True


class Contest:
    """Contenders that take turns.

    Parameters
    ----------
    contenders
        What to call, by name.

    Attributes
    ----------
    disturbed
        Turns that began while another's threads were still running.
    once
        Seconds of those contenders that `prepare` has called once, and nothing calls again.
    """

    def __init__(self, contenders: Mapping[str, Callable[[], object]]) -> None:
        self.contenders = dict(contenders)
        self.disturbed = 0
        self.once: dict[str, float] = {}
        self._warms = False

    def prepare(self, limit: float = math.inf) -> float:
        """Call each contender until it runs as it will; seconds that a round takes, about.

        Where the first call takes longer than `limit` seconds it is the only one.
        """
        first: list[float] = []
        for name, call in self.contenders.items():
            self._settle()
            seconds = clock(call)
            if seconds > limit:
                self.once[name] = seconds
            else:
                first.append(clock(call))
        self._warms = bool(first) and min(first) < LONG
        return sum(first) * (2 if self._warms else 1)

    def ready(self, name: str) -> None:
        """All of a turn that comes before the timed call."""
        self._settle()
        if self._warms:
            self.contenders[name]()

    def turn(self, name: str) -> float:
        """Seconds of one call."""
        self.ready(name)
        return clock(self.contenders[name])

    def round(self, number: int) -> dict[str, float]:
        """Seconds of one call of each, in an order that depends on the round."""
        names = [name for name in self.contenders if name not in self.once]
        start = number % max(len(names), 1)
        return {name: self.turn(name) for name in names[start:] + names[:start]}

    def run(self, budget: Budget) -> dict[str, list[float]]:
        """Seconds of all calls, by contender."""
        self.prepare(budget.limit)
        found: dict[str, list[float]] = {name: [] for name in self.contenders}
        found |= {name: [seconds] for name, seconds in self.once.items()}
        start, rounds = time.perf_counter(), 0
        with no_collection():
            while not budget.enough(rounds, time.perf_counter() - start):
                for name, seconds in self.round(rounds).items():
                    found[name].append(seconds)
                rounds += 1
        return found

    def _settle(self) -> None:
        if not settle():
            self.disturbed += 1


def clock(call: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed calls."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def threads(n: int, peers: list[Peer]) -> Iterator[None]:
    """Let pynlm and all peers use `n` threads; afterwards as many as pynlm used before."""
    before = kernels.get_num_threads()
    for set_threads in (kernels.set_num_threads, *(peer.set_threads for peer in peers)):
        set_threads(n)
    try:
        yield
    finally:
        for set_threads in (kernels.set_num_threads, *(peer.set_threads for peer in peers)):
            set_threads(before)


@dataclass
class Peak:
    """Rate of float32 multiply-adds of this machine (FLOP/s), by number of threads.

    Measured in bursts throughout a run. The peak is the best burst, because nothing makes a
    machine faster than it is; how far the median lies below tells how much else went on.
    """

    bursts: dict[int, list[float]] = field(default_factory=dict)

    def measure(self, bursts: int = 10) -> None:
        """Some bursts with the number of threads that pynlm uses now."""
        found = self.bursts.setdefault(kernels.get_num_threads(), [])
        settle()
        iterations = 10_000
        while _burst(iterations)[1] < BURST:
            iterations *= 2
        for _ in range(bursts):
            flops, seconds = _burst(iterations)
            found.append(flops / seconds)

    def best(self, threads: int) -> float:
        """FLOP/s of the best burst."""
        return max(self.bursts[threads])

    def figures(self) -> dict[int, dict[str, float]]:
        """Best and median burst by number of threads, and how many there were."""
        return {
            n: {"best": max(rates), "median": float(np.median(rates)), "bursts": len(rates)}
            for n, rates in self.bursts.items()
        }


def _burst(iterations: int) -> tuple[float, float]:
    """Operations done, and seconds."""
    start = time.perf_counter()
    flops = _kernels.fma_peak(iterations=iterations, float64=False)
    return flops, time.perf_counter() - start
