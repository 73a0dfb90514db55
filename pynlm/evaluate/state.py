"""What a language model remembers between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynlm.arrays import on_device, xp_of


@dataclass(frozen=True)
class LMState:
    """What a model remembers of B histories. Never mutated: keep it, branch from it, go back.

    ``layers`` holds one tuple of ``[B, H]`` arrays a layer; ``hidden`` ``[B, H]`` is the last
    layer's output, from which the next token is predicted.
    """

    layers: tuple[tuple[NDArray[np.floating[Any]], ...], ...]
    hidden: NDArray[np.floating[Any]]

    @property
    def batch(self) -> int:
        """B, the number of histories."""
        return len(self.hidden)

    def __getitem__(self, rows: int | Sequence[int] | NDArray[np.integer[Any]] | slice) -> LMState:
        """The histories ``rows`` as a new state (reorder or repeat the rows of a beam)."""
        if isinstance(rows, (int, np.integer)):
            rows = [int(rows)]
        if on_device(self.hidden) and not isinstance(rows, slice):
            rows = xp_of(self.hidden).asarray(np.asarray(rows))
        return LMState(
            tuple(tuple(frozen(part[rows]) for part in layer) for layer in self.layers),
            frozen(self.hidden[rows]),
        )

    @staticmethod
    def stack(states: Sequence[LMState]) -> LMState:
        """One state with the histories of all ``states``, in order."""
        layers = zip(*(state.layers for state in states), strict=True)
        concatenate = xp_of(states[0].hidden).concatenate
        return LMState(
            tuple(
                tuple(frozen(concatenate(parts)) for parts in zip(*layer, strict=True))
                for layer in layers
            ),
            frozen(concatenate([state.hidden for state in states])),
        )


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """The array, not to be written any more."""
    if isinstance(array, np.ndarray):  # a GPU's cannot be
        array.flags.writeable = False
    return array
