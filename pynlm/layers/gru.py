"""Gated recurrent unit layer."""

from __future__ import annotations

from typing import Any

from pynlm.kernels.gru import gru_backward, gru_forward
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray
from pynlm.layers.recurrent import Array, Recurrent, State
from pynlm.layers.variant import Drawn


class GRU(Recurrent):
    """GRU, reset after the product; gate order and weight layout are PyTorch's (r, z, n).

    Parameters: `w_ih` [3H, I], `w_hh` [3H, H], `b` [3H] and `b_hn` [H], the bias inside the reset
    product. State: (h,). See `Recurrent` for the call.

    Examples
    --------
    >>> import numpy as np
    >>> from pynlm.layers import Context, Parameters
    >>> layer = GRU(Parameters(GRU.specs("gru", input_size=3, hidden_size=5)), "gru")
    >>> x, state = np.ones((7, 2, 3), np.float32), layer.initial_state(2)
    >>> (y, state), backprop = layer(x, state, Context(train=False), lengths=[4, 7])
    >>> y.shape
    (7, 2, 5)
    """

    gates = 3
    states = 1
    extra_biases = ("b_hn",)

    def _forward(
        self, x: Array, state: State, lengths: IntArray | None, ctx: Context, drawn: Drawn
    ) -> tuple[Array, State, tuple[Any, ...]]:
        time, batch, _ = x.shape
        size = self.hidden_size
        last = self._new_state(batch)
        y = self.pool.lease((time, batch, size), self.dtype)
        gates = hn = None
        if ctx.train:
            gates = self.pool.lease((time, batch, 3 * size), self.dtype)
            hn = self.pool.lease((time, batch, size), self.dtype)
        h_in = self._h_in(x, drawn)
        gru_forward(
            y=y, h_last=last[0], gates=gates, hn=hn, h_in=h_in,
            x=x, h0=state[0], w_ih=self.w_ih.data, w_hh=drawn.w_hh, b=self.b.data,
            b_hn=self.extra["b_hn"].data, mask_h=drawn.mask_h, lengths=lengths,
            variant=drawn.variant, backend=ctx.backend,
        )  # fmt: skip
        return y, last, () if gates is None or hn is None else (gates, hn, h_in)

    def _backward(
        self,
        dx: Array,
        dstart: State,
        saved: tuple[Any, ...],
        y: Array,
        x: Array,
        start: State,
        dy: Array,
        dstate: State | None,
        lengths: IntArray | None,
        ctx: Context,
        drawn: Drawn,
    ) -> None:
        gates, hn, h_in = saved
        with (
            self.w_ih.target() as dw_ih,
            self._dw_hh(ctx) as dw_hh,
            self.b.target() as db,
            self.extra["b_hn"].target() as db_hn,
        ):
            gru_backward(
                dx=dx, dh0=dstart[0], dw_ih=dw_ih, dw_hh=dw_hh, db=db, db_hn=db_hn,
                gates=gates, hn=hn, h_in=h_in, y=y,
                x=x, h0=start[0], w_ih=self.w_ih.data, w_hh=drawn.w_hh, mask_h=drawn.mask_h,
                dy=dy, dh_last=None if dstate is None else dstate[0],
                lengths=lengths, variant=drawn.variant, backend=ctx.backend,
            )  # fmt: skip
