"""What the recurrent layers share: states, lengths in any order, the closure."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pynlm.arrays import describe, on_device
from pynlm.layers.backprop import Once
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray, RowOrder, as_exact_floats, row_order
from pynlm.layers.parameters import Parameter, Spec
from pynlm.layers.variant import Drawn, RecurrentOptions, draw, drop_weights

Array = npt.NDArray[Any]
State = tuple[Array, ...]
"""State of one layer: (h, c) for an LSTM, (h,) for the others; each [B, H]."""
Saved = dict[str, Any]
"""What a forward pass saved, by the kernels' names."""


class Recurrent(ABC):
    """A recurrent layer: `(y, state), backprop = layer(x, state, ctx, lengths=None)`.

    Subclasses say how many gates and state arrays they have and call their kernels.

    Parameters
    ----------
    parameters
        Holds `{prefix}.w_ih` and so on, as listed by `specs`.
    prefix
        For example "recurrent.0".
    options
        Variants; None: the plain cell.
    index
        Number of the layer, by which random numbers of stacked layers differ.

    Raises
    ------
    ValueError
        An option that the cell does not have.
    """

    states: int
    """Arrays in the state."""

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        prefix: str,
        options: RecurrentOptions | None = None,
        index: int = 0,
    ) -> None:
        self.options = self._check(options)
        self.index = index
        self.w_ih = parameters[f"{prefix}.w_ih"]
        self.w_hh = parameters[f"{prefix}.w_hh"]
        self.b = parameters[f"{prefix}.b"]
        self.extra = {name: parameters[f"{prefix}.{name}"] for name in self.extras(1, self.options)}
        self.name = f"{type(self).__name__} {prefix}"
        self.pool = self.w_ih.pool
        self.dtype = self.w_ih.data.dtype
        self.input_size = self.w_ih.data.shape[1]
        self.gates = self.gate_count(self.options)
        self.hidden_size = self.w_hh.data.shape[0] // self.gates
        self.output_size = self.w_hh.data.shape[1]
        # of h, then (LSTM) of c
        self.state_sizes = (self.output_size, self.hidden_size)[: self.states]

    @classmethod
    def _check(cls, options: RecurrentOptions | None) -> RecurrentOptions:
        options = RecurrentOptions() if options is None else options
        wrong = options.undefined_for(cls.__name__)
        if wrong is not None:
            raise ValueError(
                f"{cls.__name__}: {wrong[0]} is not defined for this cell, only for {wrong[1]}"
            )
        return options

    @classmethod
    @abstractmethod
    def gate_count(cls, options: RecurrentOptions) -> int:
        """Gate blocks in `w_ih` [gates*H, I]."""

    @classmethod
    def extras(cls, hidden_size: int, options: RecurrentOptions) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights besides `w_ih`, `w_hh` and `b`, by the kernels' names."""
        if not options.layer_norm:
            return {}
        return {"ln_gates": (2, cls.gate_count(options) * hidden_size)}

    @classmethod
    def specs(
        cls,
        prefix: str,
        input_size: int,
        hidden_size: int,
        group: str = "recurrent",
        options: RecurrentOptions | None = None,
    ) -> list[Spec]:
        """The parameters that the layer needs, for `Parameters`."""
        options = cls._check(options)
        rows = cls.gate_count(options) * hidden_size
        return [
            Spec(f"{prefix}.w_ih", (rows, input_size), group),
            Spec(f"{prefix}.w_hh", (rows, options.projection or hidden_size), group),
            Spec(f"{prefix}.b", (rows,), group),
            *(
                Spec(f"{prefix}.{name}", shape, group)
                for name, shape in cls.extras(hidden_size, options).items()
            ),
        ]

    def initial_state(self, batch: int) -> State:
        """Zeros [B, H] ([B, P] where h is projected), one array a state."""
        return tuple(self.pool.zeros((batch, size), self.dtype) for size in self.state_sizes)

    def __call__(
        self,
        x: Array,
        state: Sequence[Array],
        ctx: Context,
        lengths: object = None,
        rows: npt.NDArray[np.intp] | None = None,
        cells: Array | None = None,
    ) -> tuple[tuple[Array, State], RecurrentBackprop | None]:
        """Run over a batch of sequences.

        Parameters
        ----------
        x
            [T, B, I]; in training kept, and not to be changed, until backprop.
        state
            Arrays [B, H]; likewise.
        ctx
            `train` decides whether a backprop is returned.
        lengths
            Integers [B] in [0, T], in any order; None means T for every row.
        rows
            Of a batch that the caller has sorted: the original number of each row, so that random
            choices are those of the original rows.
        cells
            Of an LSTM: [T, B, H], which becomes the cell state after every step, zero beyond each
            row's length.

        Returns
        -------
        (y, state), backprop
            y [T, B, H], zero beyond each row's length (in training not to be changed until
            backprop); new state arrays, each the state after the row's own last step;
            `dx = backprop(dy, dstate=None)`, None unless `ctx.train`.

        Raises
        ------
        TypeError, ValueError
            Wrong kinds, shapes or lengths.
        """
        x = check_input(self, self.name, x)
        time, batch, _ = x.shape
        start = check_states(self, self.name, "state", state, batch)
        if cells is not None:
            check_cells(self, self.name, "cells", cells, time, batch)
        lengths, order = row_order(lengths, time, batch, func=self.name)
        if order is not None:
            x = order.sort(x, self.pool)
            start = order.sort_state(start, self.pool)
            rows = order.rows if rows is None else rows[order.rows]
        w_hh = self.w_hh.data
        if not ctx.train:
            w_hh = self.w_hh.for_product(batch, self.recurrent_gates)
        drawn = draw(self.options, w_hh, batch, rows, self.index, ctx, self.pool)
        y, last, saved = self._forward(x, start, lengths, ctx, drawn, cells is not None)
        if cells is not None:
            c: Array = saved["c"]
            cells[...] = c if order is None else order.restore(c, self.pool)
            if lengths is not None:
                steps = lengths if order is None else order.restore_state((lengths,), self.pool)[0]
                cells[self.pool.bring(np.arange(time)[:, None] >= steps)] = 0
        backprop = None
        if ctx.train:
            backprop = RecurrentBackprop(
                self.name, self, order, y, x, start, saved, lengths, ctx, drawn
            )
        if order is not None:
            y = order.restore(y, self.pool)
            last = order.restore_state(last, self.pool)
        return (y, last), backprop

    def _new_state(self, batch: int) -> State:
        # Not leases: callers may keep thousands of states (beams), which would burden the pool.
        return tuple(self.pool.empty((batch, size), self.dtype) for size in self.state_sizes)

    def _h_in(self, x: Array, drawn: Drawn) -> Array | None:
        """Where the forward kernel saves the state that enters `w_hh`, if that is not y."""
        if drawn.mask_h is None:
            return None
        return self.pool.lease((*x.shape[:2], self.output_size), self.dtype)

    def _norms(self, x: Array, ctx: Context) -> dict[str, Array]:
        """Where the forward kernel saves what layer norm made, by the kernels' names."""
        if not (self.options.layer_norm and ctx.train):
            return {}
        time, batch, _ = x.shape
        width = self.gates * self.hidden_size
        return {
            "norm": self.pool.lease((2, time, batch, width), self.dtype),
            "rstd": self.pool.lease((self.states + 1, time, batch), self.dtype),
        }

    @property
    def owned(self) -> list[Parameter]:
        """All parameters."""
        return [self.w_ih, self.w_hh, self.b, *self.extra.values()]

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """What the work of a call depends on besides T and B."""
        options = self.options
        return {
            "inputs": self.input_size, "hidden": self.hidden_size, "output": self.output_size,
            "gates": self.gates, "itemsize": self.dtype.itemsize,
            "plain": replace(options, weight_drop=0.0) == RecurrentOptions(),
            "projected": options.projection > 0, "reset_before": options.reset_before,
            "norms": options.layer_norm, "copies": 6 if options.weight_drop else 0,
        }  # fmt: skip

    @property
    def recurrent_gates(self) -> int | tuple[int, int]:
        """Gates of `w_hh` that are computed together, for `pynlm.kernels.pack`."""
        return (2, 1) if self.options.reset_before else self.gates

    def _weights(self, drawn: Drawn, x: Array) -> dict[str, Array]:
        """Weights of a call by the kernels' names, but for b."""
        time, batch, _ = x.shape
        extra = {name: p.data for name, p in self.extra.items() if not name.startswith("b_")}
        if "w_hr" in extra:
            extra["w_hr"] = self.extra["w_hr"].for_product(batch, 1)
        return {"w_ih": self.w_ih.for_product(time * batch), "w_hh": drawn.w_hh, **extra}

    @contextmanager
    def _gradients(self, ctx: Context) -> Iterator[dict[str, Any]]:
        """Where the backward kernel writes the weights' gradients, by its names."""
        with ExitStack() as targets:
            found = {"dw_ih": targets.enter_context(self.w_ih.target())}
            found["dw_hh"] = targets.enter_context(self._dw_hh(ctx))
            found["db"] = targets.enter_context(self.b.target())
            for name, p in self.extra.items():
                found[f"d{name}"] = targets.enter_context(p.target())
            yield found

    @contextmanager
    def _dw_hh(self, ctx: Context) -> Iterator[Array]:
        """Where the gradient of the weights that a call used goes, to become that of `w_hh`."""
        with self.w_hh.target() as dw_hh:
            yield dw_hh
            if self.options.weight_drop > 0:
                drop_weights(self.options, dw_hh, dw_hh, self.index, ctx)

    @abstractmethod
    def _forward(
        self,
        x: Array,
        state: State,
        lengths: IntArray | None,
        ctx: Context,
        drawn: Drawn,
        cells: bool,
    ) -> tuple[Array, State, Saved]:
        """y, last state, arrays saved for `_backward`; rows sorted by length.

        With `cells` the saved arrays have `c` in any case.
        """

    @abstractmethod
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
        """Fill `dx` and `dstart`, add to the parameters' gradients."""


class HasStates(Protocol):
    """What `check_input` and `check_states` ask of a layer."""

    dtype: np.dtype[Any]
    input_size: int

    def initial_state(self, batch: int) -> State:
        """Zeros."""


def check_input(layer: HasStates, func: str, x: object) -> Array:
    """`x` as the layer takes it, [T, B, I] of its dtype; TypeError or ValueError otherwise."""
    a = as_exact_floats(x, layer.dtype, func=func, name="x")
    if a.ndim != 3 or a.shape[2] != layer.input_size:
        raise ValueError(f"{func}: x must be [T, B, I={layer.input_size}], got {list(a.shape)}")
    return a


def check_states(
    layer: HasStates, func: str, name: str, given: Sequence[Array], batch: int
) -> State:
    """A layer's state, or a gradient of it, as the kernels take it.

    Raises
    ------
    TypeError, ValueError
        Not the arrays of `layer.initial_state(batch)`, naming the function and the argument.
    """
    want = layer.initial_state(0)
    if len(given) != len(want):
        raise ValueError(f"{func}: {name} must have {len(want)} array(s) [B, H], got {len(given)}")
    arrays = tuple(
        as_exact_floats(s, layer.dtype, func=func, name=f"arrays of {name}") for s in given
    )
    for s, zeros in zip(arrays, want, strict=True):
        size = zeros.shape[1]
        if s.shape != (batch, size):
            raise ValueError(
                f"{func}: arrays of {name} must be [B={batch}, H={size}], got {list(s.shape)}"
            )
    return arrays


def check_cells(
    layer: Recurrent, func: str, name: str, cells: object, time: int, batch: int
) -> None:
    """Raise, naming the function and the argument, unless `layer` can write its cell states there.

    Raises
    ------
    ValueError
        A layer without cell states; another kind, dtype or shape; read-only.
    """
    if layer.states < 2:
        raise ValueError(f"{func}: {name} must be None: only an LSTM has cell states")
    wanted = (time, batch, layer.hidden_size)
    host = isinstance(cells, np.ndarray)
    array: Any = cells
    got = [array.dtype, *array.shape] if host or on_device(cells) else type(cells).__name__
    if got != [layer.dtype, *wanted]:
        raise ValueError(
            f"{func}: {name} must be {layer.dtype} [T, B, H] = {list(wanted)}, got {got}"
        )
    if host and not array.flags.writeable:
        raise ValueError(f"{func}: {name} must be writeable, got a read-only {describe(cells)}")


class RecurrentBackprop(Once):
    """`dx = backprop(dy, dstate=None)`: adds into the layer's gradients; may be called once.

    Attributes
    ----------
    dstart
        After the call: gradients of the initial state, one [B, H] each.
    """

    __slots__ = ("dstart",)

    def __call__(self, dy: Array, dstate: Sequence[Array] | None = None) -> Array:
        """Gradient of the input from those of the outputs and (if given) of the last state.

        Parameters
        ----------
        dy
            [T, B, H]; what stands beyond a row's length is ignored.
        dstate
            One [B, H] a state array; None means zero (truncated backpropagation).

        Returns
        -------
        ndarray
            [T, B, I].
        """
        layer, order, y, x, start, saved, lengths, ctx, drawn = self._take()
        dy = as_exact_floats(dy, layer.dtype, func=self._name, name="dy")
        if dy.shape != y.shape:
            raise ValueError(
                f"{self._name}: dy must be [T, B, H] = {list(y.shape)}, got {list(dy.shape)}"
            )
        dlast: State | None = None
        if dstate is not None:
            dlast = check_states(layer, self._name, "dstate", dstate, x.shape[1])
        ordered: RowOrder | None = order
        if ordered is not None:
            dy = ordered.sort(dy, layer.pool)
            dlast = None if dlast is None else ordered.sort_state(dlast, layer.pool)
        dx: Array = layer.pool.like(x)
        dstart = layer._new_state(x.shape[1])
        layer._backward(dx, dstart, saved, y, x, start, dy, dlast, lengths, ctx, drawn)
        if ordered is not None:
            dx = ordered.restore(dx, layer.pool)
            dstart = ordered.restore_state(dstart, layer.pool)
        self.dstart: State = dstart
        return dx
