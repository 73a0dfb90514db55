"""Long short-term memory layer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from pynlm.kernels.lstm import lstm_backward, lstm_forward
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray
from pynlm.layers.recurrent import Array, Recurrent, State
from pynlm.layers.variant import Drawn


class LSTM(Recurrent):
    """LSTM with one bias; gate order and weight layout are PyTorch's (i, f, g, o; [4H, I]).

    Parameters: `w_ih` [4H, I], `w_hh` [4H, H], `b` [4H], with `options.peephole` also `peephole`
    [3H] (i, f, o). State: (h, c). See `Recurrent` for the call, `RecurrentOptions` for variants.

    Examples
    --------
    >>> import numpy as np
    >>> from pynlm.layers import Context, Parameters
    >>> layer = LSTM(Parameters(LSTM.specs("lstm", input_size=3, hidden_size=5)), "lstm")
    >>> x, state = np.ones((7, 2, 3), np.float32), layer.initial_state(2)
    >>> (y, state), backprop = layer(x, state, Context(train=True))
    >>> backprop(y).shape
    (7, 2, 3)
    """

    gates = 4
    states = 2

    def _forward(
        self, x: Array, state: State, lengths: IntArray | None, ctx: Context, drawn: Drawn
    ) -> tuple[Array, State, tuple[Any, ...]]:
        time, batch, _ = x.shape
        size = self.hidden_size
        h0, c0 = state
        h_last, c_last = last = self._new_state(batch)
        y = self.pool.lease((time, batch, size), self.dtype)
        gates = c = None
        if ctx.train:
            gates = self.pool.lease((time, batch, 4 * size), self.dtype)
            c = self.pool.lease((time, batch, size), self.dtype)
        h_in = self._h_in(x, drawn)
        peephole = None if self.peephole is None else self.peephole.data
        lstm_forward(
            y=y, h_last=h_last, c_last=c_last, gates=gates, c=c, h_in=h_in, peephole=peephole,
            x=x, h0=h0, c0=c0, w_ih=self.w_ih.data, w_hh=drawn.w_hh, b=self.b.data,
            mask_h=drawn.mask_h, lengths=lengths, variant=drawn.variant, backend=ctx.backend,
        )  # fmt: skip
        return y, last, () if gates is None or c is None else (gates, c, h_in)

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
        gates, c, h_in = saved
        dh_last, dc_last = (None, None) if dstate is None else dstate
        with ExitStack() as targets:
            dpeephole = peephole = None
            if self.peephole is not None:
                peephole = self.peephole.data
                dpeephole = targets.enter_context(self.peephole.target())
            dw_ih = targets.enter_context(self.w_ih.target())
            dw_hh = targets.enter_context(self._dw_hh(ctx))
            db = targets.enter_context(self.b.target())
            lstm_backward(
                dx=dx, dh0=dstart[0], dc0=dstart[1], dw_ih=dw_ih, dw_hh=dw_hh, db=db,
                dpeephole=dpeephole, gates=gates, c=c, h_in=h_in, y=y,
                x=x, h0=start[0], c0=start[1], w_ih=self.w_ih.data, w_hh=drawn.w_hh,
                peephole=peephole, mask_h=drawn.mask_h, dy=dy, dh_last=dh_last, dc_last=dc_last,
                lengths=lengths, variant=drawn.variant, backend=ctx.backend,
            )  # fmt: skip
