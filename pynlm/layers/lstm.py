"""Long short-term memory layer."""

from __future__ import annotations

from pynlm.kernels.lstm import lstm_backward, lstm_forward
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray
from pynlm.layers.recurrent import Array, Recurrent, Saved, State
from pynlm.layers.variant import Drawn, RecurrentOptions


class LSTM(Recurrent):
    """LSTM with one bias; gate order and weight layout are PyTorch's (i, f, g, o; [4H, I]).

    Parameters: `w_ih` [4H, I], `w_hh` [4H, P], `b` [4H]; with options also `peephole` [3H] (i, f,
    o), `w_hr` [P, H] (projection), `ln_gates` [2, 4H] (gains of w_ih x and of w_hh h) and `ln_cell`
    [2, H] (gain and bias of c). P is H without projection; coupled gates have 3H for 4H (i, g, o)
    and 2H for 3H. State: (h [B, P], c [B, H]). See `Recurrent` for the call, `RecurrentOptions` for
    variants.

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

    states = 2

    @classmethod
    def gate_count(cls, options: RecurrentOptions) -> int:
        """Three if coupled."""
        return 3 if options.coupled_gates else 4

    @classmethod
    def extras(cls, hidden_size: int, options: RecurrentOptions) -> dict[str, tuple[int, ...]]:
        """With those of peepholes, projection and the cell state's layer norm."""
        found = super().extras(hidden_size, options)
        if options.layer_norm:
            found["ln_cell"] = (2, hidden_size)
        if options.peephole:
            found["peephole"] = ((cls.gate_count(options) - 1) * hidden_size,)
        if options.projection:
            found["w_hr"] = (options.projection, hidden_size)
        return found

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
        h0, c0 = state
        h_last, c_last = last = self._new_state(batch)
        y = self.pool.lease((time, batch, self.output_size), self.dtype)
        saved: Saved = {"h_in": self._h_in(x, drawn), **self._norms(x, ctx)}
        if ctx.train or cells:
            saved["c"] = self.pool.lease((time, batch, size), self.dtype)
        if ctx.train:
            saved["gates"] = self.pool.lease((time, batch, self.gates * size), self.dtype)
            if self.options.projection:
                saved["m"] = self.pool.lease((time, batch, size), self.dtype)
            if self.options.layer_norm:
                saved["norm_c"] = self.pool.lease((time, batch, size), self.dtype)
        lstm_forward(
            y=y, h_last=h_last, c_last=c_last, **saved, x=x, h0=h0, c0=c0,
            **self._weights(drawn, x), b=self.b.data, mask_h=drawn.mask_h, lengths=lengths,
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
        dh_last, dc_last = (None, None) if dstate is None else dstate
        with self._gradients(ctx) as gradients:
            lstm_backward(
                dx=dx, dh0=dstart[0], dc0=dstart[1], **gradients, **saved, y=y, x=x, h0=start[0],
                c0=start[1], **self._weights(drawn, x), mask_h=drawn.mask_h, dy=dy,
                dh_last=dh_last, dc_last=dc_last, lengths=lengths, variant=drawn.variant,
                backend=ctx.backend,
            )  # fmt: skip
