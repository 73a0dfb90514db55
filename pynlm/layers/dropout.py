"""Dropout layer: masks computed from their position, never stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.kernels.dropout import dropout
from pynlm.layers.backprop import Once
from pynlm.layers.context import Context
from pynlm.layers.convert import RowOrder, as_floats
from pynlm.layers.pool import Pool

Array = npt.NDArray[Any]


class Dropout:
    """`y, backprop = layer(x, ctx)`: x * mask / (1 - p) in training, x itself otherwise.

    Parameters
    ----------
    p
        Probability of a zero, in [0, 1).
    site, layer
        Which dropout of a model this is (`Site`); no two of a model have both in common.
    locked
        One mask for all time steps.
    pool
        Lends the output; its own by default.

    Raises
    ------
    ValueError
        p outside [0, 1).

    Examples
    --------
    >>> layer = Dropout(0.5, site=4)
    >>> x = np.ones((3, 2, 8))
    >>> y, backprop = layer(x, Context(train=True, seed=1))
    >>> bool((backprop(x) == y).all()), np.unique(y).tolist()
    (True, [0.0, 2.0])
    """

    def __init__(
        self,
        p: float,
        *,
        site: int,
        layer: int = 0,
        locked: bool = False,
        pool: Pool | None = None,
    ) -> None:
        if not 0.0 <= p < 1.0:
            raise ValueError(f"Dropout: p must be in [0, 1), got {p}")
        self.p, self.site, self.layer, self.locked = float(p), site, layer, locked
        self.pool = Pool() if pool is None else pool

    def active(self, ctx: Context) -> bool:
        """Whether the layer does anything."""
        return ctx.train and self.p > 0.0

    def __call__(
        self, x: Array, ctx: Context, *, inplace: bool = False, order: RowOrder | None = None
    ) -> tuple[Array, DropoutBackprop | None]:
        """Drop.

        Parameters
        ----------
        x
            [T, B, D].
        inplace
            Allow `x` to be overwritten.
        order
            Given if the rows of `x` are sorted: the masks are those of the original rows.

        Returns
        -------
        y, backprop
            y [T, B, D]; `dx = backprop(dy, inplace=False)`, None unless `ctx.train`.
        """
        y = self._apply(as_floats(x, np.dtype(np.float32)), ctx, inplace, order)
        return y, DropoutBackprop("Dropout", self, ctx, order) if ctx.train else None

    def _apply(self, x: Array, ctx: Context, inplace: bool, order: RowOrder | None) -> Array:
        if not self.active(ctx):
            return x
        if order is not None:
            x = order.restore(x, self.pool)
        y = x if inplace or order is not None else self.pool.like(x)
        dropout(
            y=y, x=x, p=self.p, seed=ctx.seed, step=ctx.step, site=self.site, layer=self.layer,
            time0=ctx.time0, locked=self.locked, backend=ctx.backend,
        )  # fmt: skip
        return y if order is None else order.sort(y, self.pool)


class DropoutBackprop(Once):
    """`dx = backprop(dy, inplace=False)`: the same mask on `dy`; may be called once."""

    __slots__ = ()

    def __call__(self, dy: Array, *, inplace: bool = False) -> Array:
        """Gradient [T, B, D] of the input; `inplace` allows `dy` to be overwritten."""
        layer, ctx, order = self._take()
        dx: Array = layer._apply(as_floats(dy, np.dtype(np.float32)), ctx, inplace, order)
        return dx
