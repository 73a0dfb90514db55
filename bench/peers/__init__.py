"""The same work in other libraries, written as their users write it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, Protocol, cast

from bench.cases import Case
from bench.inputs import Inputs
from bench.work import Work

TORCH, ONNXRUNTIME, JAX = "torch", "ONNX Runtime", "JAX"
"""What contenders are called; a second way of the same library is "NAME (which)"."""


class _Needs(NamedTuple):
    name: str
    packages: tuple[str, ...]


# module here -> what it needs
_PEERS = {
    "with_torch": _Needs(TORCH, ("torch",)),
    "with_onnxruntime": _Needs(ONNXRUNTIME, ("onnxruntime", "onnx")),
    "with_jax": _Needs(JAX, ("jax", "jaxlib")),
}


class Peer(Protocol):
    """What a module here has."""

    def set_threads(self, n: int) -> None:
        """Let the library use `n` threads, at least in what is made from now on."""

    def versions(self) -> dict[str, str]:
        """The library's version, and that of what it computes with."""

    def make(self, case: Case, inputs: Inputs) -> dict[str, Work]:
        """The ways in which the library does the case, by name; none if it is not made for it."""


def available(only: str | None = None) -> list[Peer]:
    """The peers (or the `only` one) whose library is installed; imports them."""
    return [
        cast(Peer, import_module(f"{__name__}.{module}"))
        for module, needs in _PEERS.items()
        if only in (None, needs.name) and _installed(needs)
    ]


def missing() -> list[str]:
    """The names of the peers whose library is not installed."""
    return [needs.name for needs in _PEERS.values() if not _installed(needs)]


def library(contender: str) -> str:
    """ "torch" of "torch (functional_call)"."""
    return contender.partition(" (")[0]


def _installed(needs: _Needs) -> bool:
    return all(find_spec(package) is not None for package in needs.packages)
