"""Simple (Elman) recurrent layer."""

from __future__ import annotations

from collections.abc import Mapping

from pynlm.kernels.rnn import rnn_backward, rnn_forward
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray
from pynlm.layers.parameters import Parameter
from pynlm.layers.recurrent import Array, Recurrent, Saved, State
from pynlm.layers.variant import Drawn, RecurrentOptions

NONLINEARITIES = ("tanh", "relu")


class RNN(Recurrent):
    """h' = nonlinearity(w_ih x + w_hh h + b).

    Parameters: `w_ih` [H, I], `w_hh` [H, H], `b` [H]; with layer norm also `ln_gates` [2, H] (gains
    of w_ih x and of w_hh h). State: (h,). See `Recurrent` for the call, `RecurrentOptions` for
    variants.

    Parameters
    ----------
    parameters, prefix
        As for `Recurrent`.
    nonlinearity
        "tanh" or "relu".

    Raises
    ------
    ValueError
        Another nonlinearity.

    Examples
    --------
    >>> import numpy as np
    >>> from pynlm.layers import Context, Parameters
    >>> layer = RNN(Parameters(RNN.specs("rnn", input_size=3, hidden_size=5)), "rnn")
    >>> x, state = np.ones((7, 2, 3), np.float32), layer.initial_state(2)
    >>> (y, state), backprop = layer(x, state, Context(train=True))
    >>> backprop(y).shape
    (7, 2, 3)
    """

    states = 1

    @classmethod
    def gate_count(cls, options: RecurrentOptions) -> int:
        """One."""
        return 1

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        prefix: str,
        nonlinearity: str = "tanh",
        options: RecurrentOptions | None = None,
        index: int = 0,
    ) -> None:
        super().__init__(parameters, prefix, options, index)
        if nonlinearity not in NONLINEARITIES:
            raise ValueError(f"RNN: nonlinearity must be tanh or relu, got {nonlinearity!r}")
        self.nonlinearity = nonlinearity

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
        last = self._new_state(batch)
        y = self.pool.lease((time, batch, self.hidden_size), self.dtype)
        saved: Saved = {"h_in": self._h_in(x, drawn), **self._norms(x, ctx)}
        rnn_forward(
            y=y, h_last=last[0], **saved, x=x, h0=state[0],
            **self._weights(drawn, x), b=self.b.data,
            mask_h=drawn.mask_h, nonlinearity=self.nonlinearity, lengths=lengths,
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
        dpre = self.pool.like(y)
        with self._gradients(ctx) as gradients:
            rnn_backward(
                dx=dx, dh0=dstart[0], **gradients, dpre=dpre, **saved, y=y, x=x, h0=start[0],
                **self._weights(drawn, x), mask_h=drawn.mask_h, dy=dy,
                dh_last=None if dstate is None else dstate[0], nonlinearity=self.nonlinearity,
                lengths=lengths, variant=drawn.variant, backend=ctx.backend,
            )  # fmt: skip
