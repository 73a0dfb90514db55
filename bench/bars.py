"""What the catalogue's goals ask for beside what a record found."""

from __future__ import annotations

from collections.abc import Callable
from statistics import geometric_mean
from typing import NamedTuple

from bench.cases import Recurrent
from bench.catalogue import (
    GOALS,
    LOOP,
    LOOP_GOAL,
    NARROW,
    NARROW_LOOP_GOAL,
    PLAIN_GOAL,
    SHARE_GOALS,
    SHARE_GROUP,
    Goal,
    find,
)
from bench.measure import Result
from bench.peers import TORCH
from bench.record import Record


class Bar(NamedTuple):
    """One goal with one number of threads.

    Attributes
    ----------
    work
        Group of cases, or a part of one.
    cases
        How many were measured against that peer.
    mean, least
        Geometric mean and least of the peer's time over pynlm's.
    limit
        What `mean` would be if pynlm's products ran at the peak and nothing else took time.
    goal
        What is aimed at; `against` says whom the ratios are to.
    aimed
        Whether the goal holds for this number of threads, or the figures are only told.
    """

    work: str
    threads: int
    cases: int
    mean: float
    least: float
    limit: float
    goal: Goal
    aimed: bool

    @property
    def met(self) -> bool:
        """Whether both ratios reach the goal."""
        return self.mean >= self.goal.mean and self.least >= (self.goal.least or 0.0)


class Share(NamedTuple):
    """Least share of the multiply-add peak among cases, and the share aimed at."""

    work: str
    threads: int
    cases: int
    least: float
    goal: float

    @property
    def met(self) -> bool:
        """Whether all cases reach it."""
        return self.least >= self.goal


def bars(record: Record) -> list[Bar]:
    """All goals of the groups in a record for whose peer it has figures."""
    found = []
    for group in record.groups:
        if group not in GOALS:
            continue
        _, many = GOALS[group]
        for n in record.threads:
            goal = record.goal(group, n)
            found += _bar(record, group, n, goal or many, goal is not None)
            if many == LOOP_GOAL:
                found += _bar(record, group, n, NARROW_LOOP_GOAL, goal is not None, _is_narrow)
    return found


def shares(record: Record) -> list[Share]:
    """The goals for shares of the peak; a case counts for the first one that it fits."""
    found = []
    for n in record.threads:
        left = record.of(SHARE_GROUP, n)
        for rows, width, goal in SHARE_GOALS:
            fitting = [r for r in left if _is_at_least(r, rows, width)]
            left = [r for r in left if r not in fitting]
            if fitting:
                wide = f", H ≥ {width}" if width > 1 else ""
                work = f"{SHARE_GROUP}, B ≥ {rows}{wide}"
                least = min(map(record.share, fitting))
                found.append(Share(work, n, len(fitting), least, goal))
    return found


def plain_met(plain: float, greatest: float) -> bool:
    """Whether a variant costs no more over the plain cell than it may."""
    mean, limit = PLAIN_GOAL
    return plain <= mean and greatest <= limit


def ratio(result: Result, against: str) -> float | None:
    """Time of a library (of `LOOP`: of torch's loop) over pynlm's; None if it took no part."""
    peer = TORCH if against == LOOP else result.fastest(against)
    return None if peer is None else result.against.get(peer)


def _bar(
    record: Record,
    group: str,
    threads: int,
    goal: Goal,
    aimed: bool,
    chosen: Callable[[Result], bool] | None = None,
) -> list[Bar]:
    results = [r for r in record.of(group, threads) if chosen is None or chosen(r)]
    pairs = [(x, r) for x, r in ((ratio(r, goal.against), r) for r in results) if x is not None]
    if not pairs:
        return []
    work = group if chosen is None else f"{group}, H ≤ {NARROW}"
    ratios = [x for x, _ in pairs]
    mean, limit = geometric_mean(ratios), geometric_mean(x / record.share(r) for x, r in pairs)
    return [Bar(work, threads, len(pairs), mean, min(ratios), limit, goal, aimed)]


def _is_at_least(result: Result, rows: int, width: int) -> bool:
    case = find(result.group, result.case)
    return isinstance(case, Recurrent) and rows <= case.B and width <= case.H


def _is_narrow(result: Result) -> bool:
    case = find(result.group, result.case)
    return isinstance(case, Recurrent) and case.H <= NARROW
