"""Heads whose gradients are made along with the loss, in the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pynlm.arrays import ndim_of
from pynlm.heads.base import BaseHead
from pynlm.layers.backprop import Once
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray, as_floats, as_ids
from pynlm.layers.parameters import Claim, Parameter

Array = npt.NDArray[Any]


class RowsClaim:
    """Rows of a gradient that count only once they are committed; see `Parameter.add_rows`."""

    __slots__ = ("_drows", "_parameter", "_rows")

    def __init__(self, parameter: Parameter, rows: IntArray, drows: Array) -> None:
        self._parameter, self._rows, self._drows = parameter, rows, drows

    def commit(self, scale: float = 1.0) -> None:
        """Add `scale` times the rows to the gradient; once."""
        if scale != 1.0:
            np.multiply(self._drows, scale, out=self._drows)
        self._parameter.add_rows(self._rows, self._drows)
        del self._rows, self._drows


def claim_rows(parameter: Parameter, rows: IntArray, values: Array) -> Claim:
    """A claim of a vector's gradient that is `values` [n] at `rows` [n] and 0 elsewhere."""
    claim = parameter.claim()
    claim.array.fill(0)
    claim.array[rows] = values
    return claim


class Gradients(NamedTuple):
    """What a forward pass makes: dh [N, H], and contributions that wait to be committed."""

    dh: Array
    claims: Sequence[Claim | RowsClaim]


class FusedHead(BaseHead):
    """The protocol over a subclass's `_forward` and `_gradients`, both exact."""

    exact_in_training = True

    def __call__(
        self, h: Array, targets: object, ctx: Context, weights: object = None
    ) -> tuple[Array, FusedBackprop | None]:
        """Negative log-likelihood of each target, and the backprop of the training loss.

        Parameters
        ----------
        h
            [N, H].
        targets
            Integers [N] in [0, V).
        weights
            [N], or one number for all; None means 1.

        Returns
        -------
        nll, backprop
            nll [N] in nats, not weighted, without label smoothing and z-loss;
            `dh = backprop(scale=1.0)`, the gradient of scale * sum_n weights[n] * loss[n] with the
            loss that has them (see `loss`), None unless `ctx.train`.

        Raises
        ------
        TypeError, ValueError
            Wrong kinds or shapes.
        IndexError
            A target outside [0, V).
        """
        h = as_floats(h, self.dtype)
        ids = as_ids(targets, func=self.name, name="targets")
        nll = self.pool.empty((len(h),), self.dtype)
        if not ctx.train:
            self._forward(nll, None, h, ids, ctx)
            return nll, None
        factors = self._weights(weights, len(h))
        made = self._gradients(nll, None, h, ids, ctx, factors)
        return nll, FusedBackprop(self, h, ids, ctx, factors, made)

    def _losses(
        self, h: Array, ids: IntArray, ctx: Context, weights: Array | None, *, gradients: bool
    ) -> tuple[Array, FusedBackprop | None]:
        nll = self.pool.empty((len(h),), self.dtype)
        loss = self.pool.empty(nll.shape, self.dtype) if self._penalised else None
        made = None
        if ctx.train and gradients:
            made = self._gradients(nll, loss, h, ids, ctx, weights)
        else:
            self._forward(nll, loss, h, ids, ctx)
        backprop = FusedBackprop(self, h, ids, ctx, weights, made) if ctx.train else None
        return nll if loss is None else loss, backprop

    @property
    def _penalised(self) -> bool:
        """Whether the training loss is another than the nll."""
        return False

    def _forward(
        self, nll: Array, loss: Array | None, h: Array, ids: IntArray, ctx: Context
    ) -> None:
        """Fill nll [N] and, if penalised, loss [N]."""
        raise NotImplementedError

    def _gradients(
        self,
        nll: Array,
        loss: Array | None,
        h: Array,
        ids: IntArray,
        ctx: Context,
        weights: Array | None,
    ) -> Gradients:
        """`_forward`, and the gradients of sum_n weights[n] * loss[n]."""
        raise NotImplementedError


class FusedBackprop(Once):
    """`dh = backprop(scale=1.0)`: commits the head's gradients; may be called once."""

    __slots__ = ()

    def __init__(
        self,
        head: FusedHead,
        h: Array,
        ids: IntArray,
        ctx: Context,
        weights: Array | None,
        made: Gradients | None,
    ) -> None:
        super().__init__(head.name, head, h, ids, ctx, weights, made)

    def __call__(self, scale: float | Array = 1.0) -> Array:
        """Gradient [N, H] of sum_n scale * weights[n] * loss[n].

        `scale` is one number or [N]; the latter computes all gradients again.
        """
        head: FusedHead
        made: Gradients | None
        head, h, ids, ctx, weights, made = self._take()
        per_token = ndim_of(scale)
        if made is None or per_token:
            made = None  # lets go of the weights' gradients, for the next line to write there
            factors = head._scaled(weights, scale, len(h))
            nll = head.pool.empty((len(h),), head.dtype)
            made = head._gradients(nll, None, h, ids, ctx, factors)
            scale = 1.0
        if scale != 1.0:
            np.multiply(made.dh, scale, out=made.dh)
        for claim in made.claims:
            claim.commit(float(scale))
        return made.dh
