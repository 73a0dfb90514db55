"""A run of the report: everything that was measured, to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

from bench import ours
from bench.cases import Recurrent
from bench.catalogue import GOALS, STEP_GOALS, Goal, find
from bench.measure import Result
from bench.memory import Memory

_LOOP = "torch"  # what a variant's loop is called among the contenders
ORDER = ("recurrent", "softmax", "train", "dropin")


class Summary(NamedTuple):
    """A group of cases with one number of threads.

    `mean` and `least` are of the ratios, `shares` the least and the greatest share of the peak.
    """

    group: str
    threads: int
    cases: int
    mean: float | None
    least: float | None
    shares: tuple[float, float]


class Variants(NamedTuple):
    """A group of variants with one number of threads.

    `plain` and `greatest` are of pynlm's time over that of its plain cell, `work` of the operations
    of their matrix products, `loop` of the time of torch's loop over pynlm's (None without torch);
    all but the greatest are geometric means.
    """

    group: str
    threads: int
    cases: int
    plain: float
    greatest: float
    work: float
    loop: float | None


@dataclass
class Record:
    """What a run found.

    Attributes
    ----------
    name
        Of the machine, as a file name.
    cpus
        That pynlm uses if not told otherwise: "all threads".
    facts
        Machine, software and circumstances, by name.
    peaks
        By number of threads: "best" and "median" burst in FLOP/s, and how many "bursts".
    results, memory
        Figures.
    left_out
        Cases that were not run, with the reason.
    """

    name: str
    cpus: int
    facts: dict[str, str] = field(default_factory=dict)
    peaks: dict[int, dict[str, float]] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def threads(self) -> list[int]:
        """Numbers of threads that were used, rising."""
        return sorted({result.threads for result in self.results})

    @property
    def groups(self) -> list[str]:
        """Groups in the order in which they were run, training before the rest of a family."""
        return list(dict.fromkeys(result.group for result in self.results))

    def of(self, group: str, threads: int) -> list[Result]:
        """Results of one group."""
        return [r for r in self.results if r.group == group and r.threads == threads]

    def share(self, result: Result, contender: str = ours.NAME) -> float:
        """Share of the peak with the result's number of threads."""
        return result.share(contender, self.peaks[result.threads]["best"])

    def summaries(self) -> list[Summary]:
        """One for each group and number of threads."""
        found = []
        for group in self.groups:
            for threads in self.threads:
                results = self.of(group, threads)
                ratios = [r.ratio for r in results if r.ratio is not None]
                shares = [self.share(r) for r in results]
                if results:
                    found.append(
                        Summary(
                            group,
                            threads,
                            len(results),
                            geometric_mean(ratios) if ratios else None,
                            min(ratios) if ratios else None,
                            (min(shares), max(shares)),
                        )
                    )
        return found

    def variants(self) -> list[Variants]:
        """Variants beside the plain cell and torch's loop, by group and number of threads."""
        found = []
        for group in self.groups:
            for threads in self.threads:
                results = self.of(group, threads)
                ratios = [r.over_plain for r in results if r.over_plain is not None]
                cases = [find(group, r.case) for r in results]
                works = [c.flops / c.plain().flops for c in cases if isinstance(c, Recurrent)]
                if not ratios or not works:
                    continue
                loops = [r.against[_LOOP] for r in results if _LOOP in r.against]
                loop = geometric_mean(loops) if loops else None
                plain, work = geometric_mean(ratios), geometric_mean(works)
                found.append(Variants(group, threads, len(ratios), plain, max(ratios), work, loop))
        return found

    def goal(self, group: str, threads: int) -> Goal | None:
        """What a group aims at with so many threads."""
        one, many = GOALS.get(group, (None, None))
        return many if threads == self.cpus else one if threads == 1 else None

    def step_goal(self, result: Result) -> float | None:
        """What a whole training step aims at."""
        return STEP_GOALS.get(result.case) if result.threads == self.cpus else None

    def save(self, path: Path) -> None:
        """Write as JSON."""
        values = {
            "name": self.name,
            "cpus": self.cpus,
            "facts": self.facts,
            "peaks": {str(n): peak for n, peak in self.peaks.items()},
            "results": [
                {**r.to_dict(), "shares": {name: self.share(r, name) for name in r.times}}
                for r in self.results
            ],
            "memory": [m.to_dict() for m in self.memory],
            "left_out": self.left_out,
        }
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        """The inverse of `save`."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            name=values["name"],
            cpus=values["cpus"],
            facts=values["facts"],
            peaks={int(n): peak for n, peak in values["peaks"].items()},
            results=[Result.from_dict(_without(r, "shares")) for r in values["results"]],
            memory=[Memory(**m) for m in values["memory"]],
            left_out=values["left_out"],
        )


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != name}
