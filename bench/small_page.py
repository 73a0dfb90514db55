"""What benches with a page of their own share: options, facts about the run, and its two files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import machine
from bench.peers import Peer
from pynlm import kernels

RESULTS = Path(__file__).resolve().parent / "results"


def options(name: str, doc: str | None, seconds: float, of: str) -> argparse.ArgumentParser:
    """A parser of `--seconds` (`of` what) and `--out`, for `python -m bench.NAME`."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=doc)
    said = f"of each {of} (default {seconds:g})"
    parser.add_argument("--seconds", type=float, default=seconds, help=said)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default bench/results)")
    return parser


class SmallPage:
    """A run, from its making until it is written.

    Parameters
    ----------
    name
        Of its files, and of the module that makes it.
    peers
        The catalogue's peers that take part; None where none of them is asked for.

    Attributes
    ----------
    facts
        Machine, software and circumstances, by name; more may be added.
    threads
        Of each contender.
    """

    def __init__(self, name: str, peers: list[Peer] | None = None) -> None:
        self.name, self.threads = name, kernels.get_num_threads()
        self.facts = machine.facts(peers or [])
        if peers is None:
            self.facts.pop("not installed", None)
        self._others = machine.OtherWork()

    def write(
        self, out: Path, values: Mapping[str, Any], render: Callable[[dict[str, str], int], str]
    ) -> None:
        """Write OUT/NAME.json and OUT/NAME.md and print the page.

        Parameters
        ----------
        out
            A folder, made if need be.
        values
            What was measured, for JSON.
        render
            The page from facts and threads.
        """
        self.facts["other work"] = self._others.describe()
        text = render(self.facts, self.threads)
        everything = {"facts": self.facts, "threads": self.threads, **values}
        out.mkdir(parents=True, exist_ok=True)
        found = json.dumps(everything, indent=1, ensure_ascii=False) + "\n"
        (out / f"{self.name}.json").write_text(found, encoding="utf-8")
        (out / f"{self.name}.md").write_text(text, encoding="utf-8")
        print(text)
