"""Gated recurrent unit layer."""

from __future__ import annotations

from pynlm.kernels.gru import gru_backward, gru_forward
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray
from pynlm.layers.recurrent import Array, Recurrent, Saved, State
from pynlm.layers.variant import Drawn, RecurrentOptions


class GRU(Recurrent):
    """GRU; gate order and weight layout are PyTorch's (r, z, n).

    Parameters: `w_ih` [3H, I], `w_hh` [3H, H], `b` [3H] and `b_hn` [H], the bias inside the reset
    product, which the option `reset_before` has not; with layer norm also `ln_gates` [2, 3H] (gains
    of w_ih x and of w_hh h). State: (h,). See `Recurrent` for the call, `RecurrentOptions` for
    variants.

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

    states = 1

    @classmethod
    def gate_count(cls, options: RecurrentOptions) -> int:
        """Three."""
        return 3

    @classmethod
    def extras(cls, hidden_size: int, options: RecurrentOptions) -> dict[str, tuple[int, ...]]:
        """With the bias inside the reset product."""
        found = super().extras(hidden_size, options)
        return found if options.reset_before else {"b_hn": (hidden_size,), **found}

    def _forward(
        self,
        x: Array,
        state: State,
        lengths: IntArray | None,
        ctx: Context,
        drawn: Drawn,
        cells: bool,
    ) -> tuple[Array, State, Saved]:
        time, batch, _ = x.shape
        size = self.hidden_size
        last = self._new_state(batch)
        y = self.pool.lease((time, batch, size), self.dtype)
        saved: Saved = {"h_in": self._h_in(x, drawn), **self._norms(x, ctx)}
        if ctx.train:
            saved["gates"] = self.pool.lease((time, batch, 3 * size), self.dtype)
            saved["hn"] = self.pool.lease((time, batch, size), self.dtype)
        b_hn = self.extra.get("b_hn")
        gru_forward(
            y=y, h_last=last[0], **saved, x=x, h0=state[0],
            **self._weights(drawn, x), b=self.b.data,
            b_hn=None if b_hn is None else b_hn.data, mask_h=drawn.mask_h, lengths=lengths,
            variant=drawn.variant, backend=ctx.backend,
        )  # fmt: skip
        return y, last, saved

    def _backward(
        self,
        dx: Array,
        dstart: State,
        saved: Saved,
        y: Array,
        x: Array,
        start: State,
        dy: Array,
        dstate: State | None,
        lengths: IntArray | None,
        ctx: Context,
        drawn: Drawn,
    ) -> None:
        with self._gradients(ctx) as gradients:
            gru_backward(
                dx=dx, dh0=dstart[0], **{"db_hn": None, **gradients}, **saved, y=y, x=x,
                h0=start[0], **self._weights(drawn, x), mask_h=drawn.mask_h, dy=dy,
                dh_last=None if dstate is None else dstate[0], lengths=lengths,
                variant=drawn.variant, backend=ctx.backend,
            )  # fmt: skip
