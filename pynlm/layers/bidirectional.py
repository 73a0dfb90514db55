"""Recurrent layers that run from right to left, and both ways."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pynlm.arrays import describe
from pynlm.layers.backprop import Once
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray, as_exact_floats, row_order, take
from pynlm.layers.pool import Pool
from pynlm.layers.recurrent import Array, Recurrent, State, check_cells, check_input, check_states
from pynlm.layers.variant import PROBABILITIES

MERGES = ("concat", "sum")


class Reversed:
    """A recurrent layer that runs backward in time: `(y, state), backprop = layer(x, state, ctx)`.

    Each row begins at its own last step and ends at its first, so padding is never read before the
    sequence. y[t] has seen x[t] and all that follows it; the new state is the one after step 0.
    Arguments, results and errors are otherwise those of `Recurrent`; cells[t] becomes the cell
    state that belongs to y[t]. Random choices go by the steps in the order in which they are run:
    a row's do not depend on how long others are.

    Parameters
    ----------
    layer
        Holds the parameters and options. It can be called by itself too, and then runs forward.

    Raises
    ------
    TypeError
        Not an LSTM, GRU or RNN: a layer that runs backward already is none.

    Examples
    --------
    >>> from pynlm.layers import LSTM, Parameters
    >>> layer = Reversed(LSTM(Parameters(LSTM.specs("lstm", input_size=3, hidden_size=5)), "lstm"))
    >>> x, state = np.ones((7, 2, 3), np.float32), layer.initial_state(2)
    >>> (y, state), backprop = layer(x, state, Context(train=True), lengths=[4, 7])
    >>> y.shape, backprop(y).shape
    ((7, 2, 5), (7, 2, 3))
    """

    def __init__(self, layer: Recurrent) -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(f"Reversed: layer must be a recurrent layer, got {describe(layer)}")
        self.layer = layer
        self.name = f"Reversed {layer.name}"
        self.pool = layer.pool
        self.dtype = layer.dtype
        self.states = layer.states
        self.input_size = layer.input_size
        self.hidden_size = layer.hidden_size
        self.output_size = layer.output_size

    def initial_state(self, batch: int) -> State:
        """Zeros [B, H], one array a state."""
        return self.layer.initial_state(batch)

    def __call__(
        self,
        x: Array,
        state: Sequence[Array],
        ctx: Context,
        lengths: object = None,
        rows: npt.NDArray[np.intp] | None = None,
        cells: Array | None = None,
    ) -> tuple[tuple[Array, State], ReversedBackprop | None]:
        """As `Recurrent`, from each row's last step to its first."""
        x = check_input(self, self.name, x)
        lengths, order = row_order(lengths, *x.shape[:2], func=self.name)
        state = check_states(self, self.name, "state", state, x.shape[1])
        turned = None
        if cells is not None:
            check_cells(self.layer, self.name, "cells", cells, *x.shape[:2])
            turned = self.pool.lease(cells.shape, cells.dtype)
        if order is not None:
            x, state = order.sort(x, self.pool), order.sort_state(state, self.pool)
            rows = order.rows if rows is None else rows[order.rows]
        turn = _Turn(x.shape[0], x.shape[1], lengths)
        (y, last), inner = self.layer(turn(x, self.pool), state, ctx, lengths, rows, turned)
        y = turn(y, self.pool)
        if cells is not None and turned is not None:
            c = turn(turned, self.pool)
            cells[...] = c if order is None else order.restore(c, self.pool)
        if order is not None:
            y, last = order.restore(y, self.pool), order.restore_state(last, self.pool)
        backprop = None
        if inner is not None:
            backprop = ReversedBackprop(self.name, self, order, turn, inner, y.shape)
        return (y, last), backprop


class ReversedBackprop(Once):
    """`dx = backprop(dy, dstate=None)`: as `RecurrentBackprop`, whose attribute it has too."""

    __slots__ = ("dstart",)

    def __call__(self, dy: Array, dstate: Sequence[Array] | None = None) -> Array:
        """Gradient [T, B, I] of the input from those of the outputs and of the last state."""
        layer, order, turn, inner, shape = self._take()
        dy, dstate = _upstream(self._name, layer, dy, dstate, shape)
        if order is not None:
            dy = order.sort(dy, layer.pool)
            dstate = None if dstate is None else order.sort_state(dstate, layer.pool)
        dx: Array = turn(inner(turn(dy, layer.pool), dstate), layer.pool)
        dstart: State = inner.dstart
        if order is not None:
            dx, dstart = order.restore(dx, layer.pool), order.restore_state(dstart, layer.pool)
        self.dstart = dstart
        return dx


class Bidirectional:
    """Two recurrent layers over the same input, one in each direction of time.

    `(y, state), backprop = layer(x, state, ctx, lengths=None)`. For tagging, encoding and the like:
    every output has seen the whole sequence. A language model must not be built of it, which would
    see the very token that it is to predict; `RecurrentLM` does not offer it.

    Parameters
    ----------
    forward_layer, backward_layer
        Of one kind, size and dtype; options may differ. The second runs from each row's own last
        step to its first (`Reversed`). If one of them draws random numbers (dropout, zoneout),
        they need different values of `index`, and so do all layers of a stack.
    merge
        "concat": y is [T, B, 2H], forward outputs first, as PyTorch's. "sum": their sum [T, B, H].

    Raises
    ------
    TypeError
        Not recurrent layers, or of different kinds or dtypes.
    ValueError
        Different sizes; one `index` where random numbers are drawn; another `merge`.

    Notes
    -----
    Source: Schuster & Paliwal 1997.

    Examples
    --------
    >>> from pynlm.layers import LSTM, Parameters
    >>> parameters = Parameters(LSTM.specs("0.forward", 3, 5) + LSTM.specs("0.backward", 3, 5))
    >>> layer = Bidirectional(
    ...     LSTM(parameters, "0.forward", index=0), LSTM(parameters, "0.backward", index=1)
    ... )
    >>> x, state = np.ones((7, 2, 3), np.float32), layer.initial_state(2)
    >>> (y, state), backprop = layer(x, state, Context(train=True), lengths=[4, 7])
    >>> y.shape, len(state), backprop(y).shape
    ((7, 2, 10), 4, (7, 2, 3))
    """

    def __init__(
        self, forward_layer: Recurrent, backward_layer: Recurrent, merge: str = "concat"
    ) -> None:
        layers = (forward_layer, backward_layer)
        for layer in layers:
            if not isinstance(layer, Recurrent):
                raise TypeError(
                    f"Bidirectional: layers must be recurrent layers, got {describe(layer)}"
                )
        self.name = f"Bidirectional ({forward_layer.name}, {backward_layer.name})"
        if type(forward_layer) is not type(backward_layer):
            raise TypeError(f"{self.name}: layers must be of one kind")
        if forward_layer.dtype != backward_layer.dtype:
            dtypes = " and ".join(str(layer.dtype) for layer in layers)
            raise TypeError(f"{self.name}: layers must have one dtype, got {dtypes}")
        sizes = [(layer.input_size, *layer.state_sizes) for layer in layers]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{self.name}: layers must have the same sizes of input and states, "
                f"got {sizes[0]} and {sizes[1]}"
            )
        draws = any(getattr(layer.options, name) for layer in layers for name in PROBABILITIES)
        if draws and forward_layer.index == backward_layer.index:
            raise ValueError(
                f"{self.name}: layers that draw random numbers must differ in index, "
                f"got {forward_layer.index} twice"
            )
        if merge not in MERGES:
            raise ValueError(f"{self.name}: merge must be concat or sum, got {merge!r}")
        self.forward_layer, self.backward_layer, self.merge = forward_layer, backward_layer, merge
        self._reversed = Reversed(backward_layer)
        # Side by side both could not add to one gradient.
        self._apart = not {id(p) for p in forward_layer.owned} & {
            id(p) for p in backward_layer.owned
        }
        self.pool = forward_layer.pool
        self.dtype = forward_layer.dtype
        self.states = 2 * forward_layer.states
        self.input_size = forward_layer.input_size
        self.hidden_size = forward_layer.hidden_size
        self.output_size = self._reversed.output_size * (2 if merge == "concat" else 1)

    def initial_state(self, batch: int) -> State:
        """Zeros [B, H]: the forward layer's arrays, then the backward layer's."""
        return self.forward_layer.initial_state(batch) + self.backward_layer.initial_state(batch)

    def __call__(
        self,
        x: Array,
        state: Sequence[Array],
        ctx: Context,
        lengths: object = None,
        rows: npt.NDArray[np.intp] | None = None,
        cells: tuple[Array, Array] | None = None,
    ) -> tuple[tuple[Array, State], BidirectionalBackprop | None]:
        """Run both layers over a batch of sequences.

        Parameters
        ----------
        x
            [T, B, I]; in training kept, and not to be changed, until backprop.
        state
            Arrays [B, H], likewise: the forward layer's, then the backward layer's, in which its
            run begins at each row's last step.
        ctx, lengths, rows
            As for `Recurrent`.
        cells
            Of LSTMs: two arrays [T, B, H], however outputs are merged. They become the cell states
            of the forward and of the backward layer at every step, those that belong to y[t] at
            [t]; zero beyond each row's length.

        Returns
        -------
        (y, state), backprop
            y [T, B, 2H] or (merge="sum") [T, B, H], zero beyond each row's length; new state
            arrays in the order of `state`, the forward layer's after each row's last step and the
            backward layer's after its first; `dx = backprop(dy, dstate=None)`, None unless
            `ctx.train`.

        Raises
        ------
        TypeError, ValueError
            Wrong kinds, shapes or lengths; one array twice for `cells`.
        """
        x = check_input(self, self.name, x)
        lengths, order = row_order(lengths, *x.shape[:2], func=self.name)
        state = check_states(self, self.name, "state", state, x.shape[1])
        wanted: tuple[Array, Array] | None = None
        if cells is not None:
            wanted = self._check_cells(cells, *x.shape[:2])
            if order is not None:
                wanted = self.pool.like(cells[0]), self.pool.like(cells[1])
        c_there, c_back = wanted or (None, None)
        if order is not None:
            x, state = order.sort(x, self.pool), order.sort_state(state, self.pool)
            rows = order.rows if rows is None else rows[order.rows]
        half = self.forward_layer.states
        both = self.forward_layer, self.backward_layer
        count = self.pool.pair(both, *x.shape[:2]) if self._apart else 1
        with self.pool.lanes(count) as lanes:
            with lanes[0]:
                (there, ends), forward = self.forward_layer(
                    x, state[:half], ctx, lengths, rows, c_there
                )
            with lanes[1]:
                (back, begins), backward = self._reversed(
                    x, state[half:], ctx, lengths, rows, c_back
                )
        if cells is not None and wanted is not None and order is not None:
            for c, found in zip(cells, wanted, strict=True):
                c[...] = order.restore(found, self.pool)
        y = self.pool.lease((*x.shape[:2], self.output_size), x.dtype)
        if self.merge == "sum":
            np.add(there, back, out=y)
        else:
            y[..., : there.shape[2]] = there
            y[..., there.shape[2] :] = back
        last = ends + begins
        if order is not None:
            y, last = order.restore(y, self.pool), order.restore_state(last, self.pool)
        backprop = None
        if ctx.train:
            read_by_both = x if count > 1 else None
            backprop = BidirectionalBackprop(
                self.name, self, order, forward, backward, y.shape, count, read_by_both
            )
        return (y, last), backprop

    def _check_cells(self, cells: object, time: int, batch: int) -> tuple[Array, Array]:
        if not isinstance(cells, (tuple, list)) or len(cells) != 2:
            raise TypeError(
                f"{self.name}: cells must be two arrays [T, B, H], one a direction, "
                f"got {describe(cells)}"
            )
        for i, (layer, c) in enumerate(
            zip((self.forward_layer, self.backward_layer), cells, strict=True)
        ):
            check_cells(layer, self.name, f"cells[{i}]", c, time, batch)
        if cells[0] is cells[1]:
            raise ValueError(f"{self.name}: cells must be two arrays, got one twice")
        return cells[0], cells[1]


class BidirectionalBackprop(Once):
    """`dx = backprop(dy, dstate=None)`: adds into both layers' gradients; may be called once.

    Attributes
    ----------
    dstart
        After the call: gradients of the initial state, in its order, one [B, H] each.
    """

    __slots__ = ("dstart",)

    def __call__(self, dy: Array, dstate: Sequence[Array] | None = None) -> Array:
        """Gradient of the input from those of the outputs and (if given) of the last state.

        Parameters
        ----------
        dy
            Shape of y; what stands beyond a row's length is ignored.
        dstate
            One [B, H] a state array, in the order of the state; None means zero.

        Returns
        -------
        ndarray
            [T, B, I], of both directions.
        """
        layer, order, forward, backward, shape, count, read_by_both = self._take()
        dy, dstate = _upstream(self._name, layer, dy, dstate, shape)
        if order is not None:
            dy = order.sort(dy, layer.pool)
            dstate = None if dstate is None else order.sort_state(dstate, layer.pool)
        half = layer.forward_layer.states
        there = back = dy
        if layer.merge == "concat":
            size = shape[2] // 2
            there, back = (layer.pool.lease((*shape[:2], size), dy.dtype) for _ in range(2))
            there[...] = dy[..., :size]
            back[...] = dy[..., size:]
        with layer.pool.lanes(count) as lanes:
            lanes.hold(read_by_both)
            with lanes[0]:
                dx: Array = forward(there, None if dstate is None else dstate[:half])
            with lanes[1]:
                dx_back = backward(back, None if dstate is None else dstate[half:])
        np.add(dx, dx_back, out=dx)
        del dx_back
        dstart: State = forward.dstart + backward.dstart
        if order is not None:
            dx, dstart = order.restore(dx, layer.pool), order.restore_state(dstart, layer.pool)
        self.dstart = dstart
        return dx


class _Turn:
    """Reverses each row of [T, B, ·] within its length; what lies beyond stays. Its own inverse."""

    __slots__ = ("_from", "_there")

    def __init__(self, time: int, batch: int, lengths: IntArray | None) -> None:
        t = np.arange(time)[:, None]
        n = np.full(batch, time) if lengths is None else lengths
        step = np.where(t < n, n - 1 - t, t)
        self._from = (step * batch + np.arange(batch)).reshape(-1)
        self._there: Array | None = None  # the same where the layer's arrays are

    def __call__(self, x: Array, pool: Pool) -> Array:
        """A leased copy of `x`, reversed."""
        if self._there is None:
            self._there = pool.bring(self._from)
        return take(x.reshape(-1, x.shape[2]), self._there, pool).reshape(x.shape)


def _upstream(
    func: str,
    layer: Reversed | Bidirectional,
    dy: object,
    dstate: Sequence[Array] | None,
    shape: tuple[int, ...],
) -> tuple[Array, State | None]:
    """Checked `dy` and `dstate`, before one direction is left alone with its half of a gradient."""
    a = as_exact_floats(dy, layer.dtype, func=func, name="dy")
    if a.shape != shape:
        raise ValueError(f"{func}: dy must be {list(shape)}, got {list(a.shape)}")
    return a, None if dstate is None else check_states(layer, func, "dstate", dstate, shape[1])
