"""One case from its inputs to its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench import ours
from bench.cases import Adaptive, Busy, Case, Mixture, Script, Softmax, TinyCall, Train
from bench.machine import OtherWork
from bench.peers import Peer, library
from bench.timing import Budget, Contest, Times, quartiles, threads
from bench.work import Work
from pynlm.testing.checks import assert_close
from pynlm.testing.tolerances import torch_tolerance

TOLERABLE = 0.1
"""Part of the machine that others may take while a case is measured."""


@dataclass(frozen=True)
class Result:
    """Figures of one case with one number of threads.

    Attributes
    ----------
    family, group, case
        What was done.
    train
        Whether gradients were computed.
    threads
        Used by each contender.
    flops
        Of the case's matrix products.
    times
        By contender; pynlm first.
    ratios
        Quartiles, over the rounds, of the fastest peer's time over pynlm's in the same round.
    disturbed
        Turns during which another contender's threads would not come to rest.
    others
        Part of the machine's CPU time that other processes took meanwhile, None where unknown.
    over_plain
        Of a variant: pynlm's time over its plain cell's, median over the rounds.
    against
        By peer: its time over pynlm's in the same round, median over the rounds.
    """

    family: str
    group: str
    case: str
    train: bool
    threads: int
    flops: float
    times: dict[str, Times]
    ratios: tuple[float, float, float] | None
    disturbed: int
    others: float | None = None
    over_plain: float | None = None
    against: dict[str, float] = field(default_factory=dict)

    @property
    def unfair(self) -> bool:
        """Whether others took so much that the figures tell little: thread teams suffer most."""
        return self.disturbed > 0 or (self.others or 0.0) > TOLERABLE

    @property
    def ours(self) -> Times:
        """pynlm's times."""
        return self.times[ours.NAME]

    @property
    def peer(self) -> str | None:
        """The fastest contender besides pynlm."""
        return best_peer({name: times.median for name, times in self.times.items()})

    @property
    def ratio(self) -> float | None:
        """The fastest peer's time over pynlm's, median of `ratios`: above 1 pynlm is faster."""
        return None if self.ratios is None else self.ratios[1]

    def fastest(self, of: str) -> str | None:
        """The fastest contender of one library."""
        return best_peer({n: t.median for n, t in self.times.items() if library(n) == of})

    @property
    def libraries(self) -> list[str]:
        """The peers' libraries, in the order in which they were called."""
        peers = [n for n in self.times if n not in (ours.NAME, ours.PLAIN)]
        return list(dict.fromkeys(map(library, peers)))

    def share(self, name: str, peak: float) -> float:
        """What part of the peak (FLOP/s) a contender's matrix products make up."""
        return self.flops / self.times[name].median / peak

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "peer": self.peer, "ratio": self.ratio}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """The inverse of `to_dict`."""
        given = {k: v for k, v in values.items() if k not in ("peer", "ratio")}
        given["times"] = {name: Times(**times) for name, times in given["times"].items()}
        given["ratios"] = given["ratios"] and tuple(given["ratios"])
        found = cls(**given)
        if "against" not in given:  # a record of an earlier version
            peers = [n for n in found.times if n not in (ours.NAME, ours.PLAIN)]
            medians = {n: found.times[n].median / found.ours.median for n in peers}
            found = replace(found, against=medians)
        return found


def best_peer(medians: Mapping[str, float]) -> str | None:
    """The contender besides pynlm with the least time."""
    others = [name for name in medians if name not in (ours.NAME, ours.PLAIN)]
    return min(others, key=medians.__getitem__) if others else None


def contenders(case: Case, peers: list[Peer]) -> dict[str, Work]:
    """pynlm and all that the peers have for the case, on the same numbers."""
    inputs = ours.make_inputs(case)
    found = ours.make(case, inputs)
    for peer in peers:
        found |= peer.make(case, inputs)
    return found


def check_agreement(case: Case, works: Mapping[str, Work]) -> None:
    """Raise AssertionError unless all contenders compute the same thing.

    Random masks differ between libraries: results of variants are those with probability 0.
    """
    own = works[ours.NAME].results()
    for name, work in works.items():
        if name in (ours.NAME, ours.PLAIN):
            continue
        theirs = work.results()
        assert theirs.keys() == own.keys(), f"{case}: {name} gives {list(theirs)}, not {list(own)}"
        for what, value in own.items():
            assert_close(
                value,
                theirs[what],
                torch_tolerance(value.dtype),
                what=f"{what} against {name}",
                kernel=case.group,
                case=case.name,
                terms=longest_sum(case),
            )


def longest_sum(case: Case) -> int:
    """Terms of the longest sum behind an element of the results."""
    if isinstance(case, Train):
        (T, B), widths = case.shape, case.config.hidden_sizes
        return max(T * B, case.V) + sum(widths)
    if isinstance(case, (Softmax, Adaptive, Mixture)):
        return max(case.N, case.V) + case.H
    if isinstance(case, TinyCall):
        return case.V + case.H
    if isinstance(case, Script):  # of losses after a few updates, too
        return max(case.T * case.B, case.V) + case.layers * case.H
    return max(case.T * case.B, case.H if isinstance(case, Busy) else case.I) + case.H


def compare(case: Case, n: int, peers: list[Peer], budget: Budget) -> Result:
    """Time all contenders with `n` threads, after a check that they do the same work."""
    with threads(n, peers):
        works = contenders(case, peers)
        check_agreement(case, works)
        contest = Contest({name: work.run for name, work in works.items()})
        others = OtherWork()
        seconds = contest.run(budget)
    return result_of(case, n, seconds, contest.disturbed, others.share())


def result_of(
    case: Case,
    n: int,
    seconds: dict[str, list[float]],
    disturbed: int = 0,
    others: float | None = None,
) -> Result:
    """Figures from the seconds of all rounds."""
    times = {name: Times.of(values) for name, values in seconds.items()}
    peer = best_peer({name: t.median for name, t in times.items()})
    ratios = over_plain = None
    if peer is not None:
        ratios = quartiles(_by_round(seconds[peer], seconds[ours.NAME]))
    if ours.PLAIN in seconds:
        _, over_plain, _ = quartiles(_by_round(seconds[ours.NAME], seconds[ours.PLAIN]))
    against = {
        name: quartiles(_by_round(values, seconds[ours.NAME]))[1]
        for name, values in seconds.items()
        if name not in (ours.NAME, ours.PLAIN)
    }
    return Result(
        family=case.family,
        group=case.group,
        case=case.name,
        train=case.train,
        threads=n,
        flops=case.flops,
        times=times,
        ratios=ratios,
        disturbed=disturbed,
        others=others,
        over_plain=over_plain,
        against=against,
    )


def _by_round(above: list[float], below: list[float]) -> list[float]:
    """Ratios of each round's times; one time stands for all rounds."""
    if len(above) == 1:
        above = above * len(below)
    return [a / b for a, b in zip(above, below, strict=True)]
