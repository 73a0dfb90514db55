"""The same work in other libraries, written as their users write it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

from bench.catalogue import Case
from bench.inputs import RecurrentInputs, SoftmaxInputs, TrainInputs
from bench.work import Work

# module here -> the library that it needs
_PEERS = {"with_torch": "torch"}


class Peer(Protocol):
    """What a module here has."""

    def set_threads(self, n: int) -> None:
        """Let the library use `n` threads."""

    def versions(self) -> dict[str, str]:
        """The library's version, and that of what it computes with."""

    def make(
        self, case: Case, inputs: RecurrentInputs | SoftmaxInputs | TrainInputs
    ) -> dict[str, Work]:
        """The ways in which the library does the case, by name."""


def available() -> list[Peer]:
    """The peers whose library is installed; imports them."""
    return [
        cast(Peer, import_module(f"{__name__}.{module}"))
        for module, library in _PEERS.items()
        if find_spec(library) is not None
    ]
