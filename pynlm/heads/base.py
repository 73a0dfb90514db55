"""What a model asks of its output layer."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

from pynlm.layers.context import SCORING, Context

Array = npt.NDArray[Any]


class HeadBackprop(Protocol):
    """`dh = backprop(scale=1.0)`; may be called once."""

    def __call__(self, scale: float = 1.0) -> Array:
        """Gradient [N, H] of scale * sum_n weights[n] * nll[n]; adds to the parameters'."""
        ...


class Head(Protocol):
    """Next-token loss of hidden states: `nll, backprop = head(h, targets, ctx, weights=None)`."""

    def __call__(
        self, h: Array, targets: object, ctx: Context, weights: object = None
    ) -> tuple[Array, HeadBackprop | None]:
        """nll [N] in nats, unweighted; None as backprop unless `ctx.train`."""
        ...

    def log_prob(self, h: Array, ctx: Context = SCORING) -> Array:
        """Log-probabilities [N, V] in nats; each row's exponentials add up to 1."""
        ...
