"""Forward and backward passes of a stack of recurrent layers, torch's layout, on NumPy arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynlm import _kernels, kernels
from pynlm.layers import GRU, LSTM, RNN, Context, RecurrentOptions
from pynlm.layers.recurrent import Recurrent
from pynlm.layers.variant import draw, drop_weights
from pynlm.torch.rows import Rows, reversed_in_time
from pynlm.torch.tensors import Array, Memory

CELLS: dict[str, type[Recurrent]] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
_PLAIN = RecurrentOptions()

Saved = list[dict[str, Array]]
"""What a forward pass saved, one dict a layer and direction, by the kernels' names.

Besides: "y", outputs that are not the stack's, and "x", inputs that are no outputs.
"""


class Stack:
    """Layers and directions of a module: shapes, and the passes.

    Weights come as one tuple of arrays a layer and direction: w_ih, w_hh, then (with `bias`) b_ih
    and b_hh, then (with projection) w_hr, then those of `extras`, in torch's layout.

    Parameters
    ----------
    settings
        As `settings` writes them.

    Notes
    -----
    Copies and pickles of it are `stack_of(settings)` again.
    """

    def __init__(self, settings: str) -> None:
        mode, *numbers = settings.partition("{")[0].split()
        hidden_size, proj_size, num_layers, bidirectional, bias = map(int, numbers)
        options = options_of(settings.partition("{")[1] + settings.partition("{")[2])
        self.settings = settings
        self.mode, self.cell = mode, mode.partition("_")[0]
        self.hidden_size, self.proj_size = hidden_size, proj_size
        self.num_layers, self.bias = num_layers, bool(bias)
        self.directions = 2 if bidirectional else 1
        self.options = options
        self.width = proj_size or hidden_size
        layer = CELLS[self.cell]
        own = options or _PLAIN
        self.rows = layer.gate_count(own) * hidden_size
        self.extras = extra_weights(self.cell, hidden_size, options)
        self.count = 2 + 2 * self.bias + bool(proj_size) + len(self.extras)
        self.has_cell_state = self.cell == "LSTM"
        self._apart = self.cell == "GRU" and not own.reset_before  # b_hn
        self._fixed: dict[str, Any] = {}
        if self.cell == "RNN":
            self._fixed["nonlinearity"] = mode.partition("_")[2].lower()
        name = self.cell.lower()
        # The compiled functions check all that memory safety needs. Those that check settings, too,
        # take longer than a step of a small layer.
        home = _kernels if options is None else kernels
        self._forward = getattr(home, f"{name}_forward")
        self._backward = getattr(home, f"{name}_backward")
        self._layouts: dict[tuple[Any, ...], Layout] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return stack_of, (self.settings,)

    def __deepcopy__(self, memo: Any) -> Stack:
        return self

    def layout(
        self, T: int, B: int, *, saves: bool, train: bool, packed: bool, masked: bool
    ) -> Layout:
        """Where the arrays of a pass lie in one buffer."""
        key = (T, B, saves, train, packed, masked)
        found = self._layouts.get(key)
        if found is None:
            if len(self._layouts) >= 64:  # ragged batches: a new T each
                self._layouts.clear()
            found = self._layouts[key] = Layout(self, *key)
        return found

    def forward(
        self,
        x: Array,
        h0: Array | None,
        c0: Array | None,
        weights: Sequence[Sequence[Array]],
        y: Array,
        h_last: Array,
        c_last: Array | None,
        saved: Saved,
        rows: Rows | None,
        masks: Sequence[Array],
        ctx: Context,
        memory: Memory,
    ) -> None:
        """All layers over [T, B, I].

        Parameters
        ----------
        x
            Input.
        h0, c0
            [L·D, B, ·]; None: zeros.
        weights
            Of each layer and direction.
        y, h_last, c_last
            Outputs [T, B, D·P], [L·D, B, P], [L·D, B, H].
        saved
            Arrays of the layout, which the pass fills.
        rows
            Of unequal lengths.
        masks
            What the input of each layer but the first is multiplied by: [T, B, D·P], or none.
        ctx
            Train or eval; the seed of the variants' random numbers.
        memory
            For arrays that the pass itself needs.
        """
        P, D = self.width, self.directions
        for k, w in enumerate(weights):
            s = saved[k]
            layer, backward = divmod(k, D)
            if k and not backward:
                x = self._input(layer, saved, masks)
            own = reversed_in_time(x, rows, memory) if backward else x
            out = s.get("y", y)
            self._one(k, own, h0, c0, w, out, h_last, c_last, s, rows, ctx, memory)
            if D == 1:
                continue
            whole = y if layer + 1 == self.num_layers else saved[(layer + 1) * D]["x"]
            if backward:
                whole[..., P:] = reversed_in_time(out, rows, memory)
            else:
                whole[..., :P] = out

    def _input(self, layer: int, saved: Saved, masks: Sequence[Array]) -> Array:
        """Input of a layer that is not the first, dropped from if there are masks."""
        D = self.directions
        joined = saved[layer * D].get("x")
        if not masks:
            return saved[layer - 1]["y"] if joined is None else joined
        assert joined is not None
        np.multiply(saved[layer - 1]["y"] if D == 1 else joined, masks[layer - 1], out=joined)
        return joined

    def _one(
        self,
        k: int,
        x: Array,
        h0: Array | None,
        c0: Array | None,
        w: Sequence[Array],
        y: Array,
        h_last: Array,
        c_last: Array | None,
        s: dict[str, Array],
        rows: Rows | None,
        ctx: Context,
        memory: Memory,
    ) -> None:
        """One layer in one direction."""
        B = x.shape[1]
        given: dict[str, Any] = {name: a for name, a in s.items() if name not in _OURS}
        if self.has_cell_state:
            assert c_last is not None
            given["c0"] = np.zeros((B, self.hidden_size), x.dtype) if c0 is None else c0[k]
            given["c_last"] = c_last[k]
        if "gates" not in s and self.cell != "RNN":
            given["gates"] = None
            given["c" if self.has_cell_state else "hn"] = None
        given |= self._biases(w, x.dtype)
        if self.options is None and not self.proj_size:
            given["w_hh"] = w[1]
        else:
            given |= self._drawn(k, w, B, ctx, memory)
        self._forward(
            y=y,
            h_last=h_last[k],
            x=x,
            h0=np.zeros((B, self.width), x.dtype) if h0 is None else h0[k],
            w_ih=w[0],
            lengths=None if rows is None else rows.lengths,
            **self._fixed,
            **given,
        )

    def _biases(self, w: Sequence[Array], dtype: Any) -> dict[str, Array | None]:
        """The kernels' one bias (and the GRU's second) of torch's two."""
        if not self.bias:
            b = np.zeros(self.rows, dtype)
            if self.cell != "GRU":
                return {"b": b}
            return {"b": b, "b_hn": b[: self.hidden_size] if self._apart else None}
        if not self._apart:
            found: dict[str, Array | None] = {"b": w[2] + w[3]}
            if self.cell == "GRU":
                found["b_hn"] = None
            return found
        both, b = 2 * self.hidden_size, w[2].copy()
        b[:both] += w[3][:both]
        return {"b": b, "b_hn": w[3][both:]}

    def _drawn(
        self, k: int, w: Sequence[Array], batch: int, ctx: Context, memory: Memory
    ) -> dict[str, Any]:
        """A variant's arguments of the kernels, `w_hh` among them, some drawn at random."""
        drawn = draw(self.options or _PLAIN, w[1], batch, None, k, ctx, memory)
        at = 4 if self.bias else 2
        given: dict[str, Any] = {"w_hh": drawn.w_hh}
        if self.proj_size:
            given["w_hr"] = w[at]
            at += 1
        given |= zip(self.extras, w[at:], strict=True)
        if drawn.mask_h is not None:
            given["mask_h"] = drawn.mask_h
        if drawn.variant is not None:
            given["variant"] = drawn.variant
        return given

    def backward(
        self,
        x: Array,
        h0: Array | None,
        c0: Array | None,
        weights: Sequence[Sequence[Array]],
        y: Array | None,
        saved: Saved,
        rows: Rows | None,
        masks: Sequence[Array],
        ctx: Context,
        memory: Memory,
        dy: Array,
        dh_last: Array | None,
        dc_last: Array | None,
        dx: Array | None,
        dh0: Array,
        dc0: Array | None,
        dweights: Sequence[Sequence[Array]],
    ) -> None:
        """Gradients of `forward`; consumes what it saved.

        Parameters
        ----------
        x, h0, c0, weights, y, saved, rows, masks, ctx, memory
            As `forward` had and left them; y None where `saved` has it.
        dy, dh_last, dc_last
            Gradients of its outputs; of the states None: zero.
        dx, dh0, dc0, dweights
            Outputs. dx None: not wanted. In place of torch's two biases dweights has the kernels':
            b, and for a GRU that resets after the product b_hn, else nothing.
        """
        P, D = self.width, self.directions
        for layer in range(self.num_layers - 1, -1, -1):
            own_x = self._seen(layer, x, saved)
            d_in = dx if layer == 0 else memory.array(own_x.shape, own_x.dtype)
            for backward in range(D):
                k = layer * D + backward
                s, d_out = saved[k], dy
                if D == 2:
                    d_out = memory.array((*dy.shape[:2], P), dy.dtype)
                    d_out[...] = dy[..., P:] if backward else dy[..., :P]
                    d_out = reversed_in_time(d_out, rows, memory) if backward else d_out
                target = d_in
                if d_in is not None and backward:
                    target = memory.array(d_in.shape, d_in.dtype)
                self._one_back(
                    k,
                    reversed_in_time(own_x, rows, memory) if backward else own_x,
                    h0, c0, weights[k], s.get("y", y), s, rows, ctx, memory, d_out,
                    dh_last, dc_last, target, dh0, dc0, dweights[k],
                )  # fmt: skip
                if backward and d_in is not None and target is not None:
                    d_in += reversed_in_time(target, rows, memory)
            if layer:
                assert d_in is not None
                if masks:
                    d_in *= masks[layer - 1]
                dy = d_in

    def _seen(self, layer: int, x: Array, saved: Saved) -> Array:
        """Input that a layer had."""
        if layer == 0:
            return x
        found = saved[layer * self.directions].get("x")
        return saved[layer - 1]["y"] if found is None else found

    def _one_back(
        self,
        k: int,
        x: Array,
        h0: Array | None,
        c0: Array | None,
        w: Sequence[Array],
        y: Array | None,
        s: dict[str, Array],
        rows: Rows | None,
        ctx: Context,
        memory: Memory,
        dy: Array,
        dh_last: Array | None,
        dc_last: Array | None,
        dx: Array | None,
        dh0: Array,
        dc0: Array | None,
        dw: Sequence[Array],
    ) -> None:
        """One layer in one direction."""
        B = x.shape[1]
        given: dict[str, Any] = {name: a for name, a in s.items() if name not in _OURS}
        if self.has_cell_state:
            assert dc0 is not None
            given["c0"] = np.zeros((B, self.hidden_size), x.dtype) if c0 is None else c0[k]
            given["dc0"] = dc0[k]
            given["dc_last"] = None if dc_last is None else dc_last[k]
        elif self.cell == "GRU":
            given["db_hn"] = dw[3] if self._apart else None
        else:
            given["dpre"] = memory.array(dy.shape, dy.dtype)
        if self.options is None and not self.proj_size:
            given["w_hh"] = w[1]
        else:
            given |= self._drawn(k, w, B, ctx, memory)
            names = ("w_hr", *self.extras) if self.proj_size else self.extras
            at = 4 if self._apart else 3
            given |= {f"d{name}": a for name, a in zip(names, dw[at:], strict=True)}
        self._backward(
            dx=dx,
            dh0=dh0[k],
            dw_ih=dw[0],
            dw_hh=dw[1],
            db=dw[2],
            y=y,
            x=x,
            h0=np.zeros((B, self.width), x.dtype) if h0 is None else h0[k],
            w_ih=w[0],
            dy=dy,
            dh_last=None if dh_last is None else dh_last[k],
            lengths=None if rows is None else rows.lengths,
            **self._fixed,
            **given,
        )
        if self.options is not None and ctx.train and self.options.weight_drop > 0:
            drop_weights(self.options, dw[1], dw[1], k, ctx)

    def gradient_shapes(self, input_size: int) -> list[list[tuple[int, ...]]]:
        """Shapes of `backward`'s dweights, for each layer and direction."""
        H, P, G = self.hidden_size, self.width, self.rows
        found = []
        for k in range(self.num_layers * self.directions):
            inputs = input_size if k < self.directions else P * self.directions
            shapes: list[tuple[int, ...]] = [(G, inputs), (G, P), (G,)]
            if self._apart:
                shapes.append((H,))
            if self.proj_size:
                shapes.append((P, H))
            found.append([*shapes, *self.extras.values()])
        return found

    def parameter_gradients(self, dw: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of torch's parameters from those that `backward` gave for one direction.

        Two biases with the same gradient get a tensor each: hooks change them in place.
        """
        found = list(dw[:2])
        at = 3
        if self._apart:
            at = 4
        if self.bias:
            if self._apart:
                second = torch.cat((dw[2][: 2 * self.hidden_size], dw[3]))
            else:
                second = dw[2].clone()
            found += [dw[2], second]
        return [*found, *dw[at:]]


# Entries of `Saved` that no kernel takes by that name.
_OURS = frozenset({"x", "y"})


class Layout:
    """Offsets of a pass's arrays in one buffer."""

    def __init__(
        self, stack: Stack, T: int, B: int, saves: bool, train: bool, packed: bool, masked: bool
    ) -> None:
        self._entries: list[list[tuple[str, int, int, tuple[int, ...]]]] = []
        self.size = 0
        L, D, P, H = stack.num_layers, stack.directions, stack.width, stack.hidden_size
        options = stack.options or _PLAIN
        for k in range(L * D):
            layer, backward = divmod(k, D)
            shapes: dict[str, tuple[int, ...]] = {}
            last = layer + 1 == L
            # A GRU's and an RNN's outputs may be changed in place, as torch's may.
            if D == 2 or not last or packed or (saves and stack.cell != "LSTM"):
                shapes["y"] = (T, B, P)
            if layer and not backward and (D == 2 or masked):
                shapes["x"] = (T, B, D * P)
            if saves and stack.cell != "RNN":
                shapes["gates"] = (T, B, stack.rows)
                shapes["c" if stack.has_cell_state else "hn"] = (T, B, H)
            if saves and stack.proj_size:
                shapes["m"] = (T, B, H)
            if saves and options.layer_norm:
                shapes["norm"] = (2, T, B, stack.rows)
                shapes["rstd"] = (3 if stack.has_cell_state else 2, T, B)
                if stack.has_cell_state:
                    shapes["norm_c"] = (T, B, H)
            if train and options.recurrent_dropout > 0:
                shapes["h_in"] = (T, B, P)
            self._entries.append([self._place(name, shape) for name, shape in shapes.items()])

    def _place(self, name: str, shape: tuple[int, ...]) -> tuple[str, int, int, tuple[int, ...]]:
        start = self.size
        size = prod(shape)
        self.size += -(-size // 16) * 16  # a cache line of float32
        return name, start, start + size, shape

    def views(self, buffer: Array) -> Saved:
        """The arrays in `buffer` [size]."""
        return [
            {name: buffer[start:end].reshape(shape) for name, start, end, shape in entries}
            for entries in self._entries
        ]


@cache
def stack_of(settings: str) -> Stack:
    """The stack of `settings`, one for all modules that have the same."""
    return Stack(settings)


def options_text(options: RecurrentOptions | None) -> str:
    """Options as `Stack` and the operators take them; "" of the plain cell."""
    if options is None:
        return ""
    return json.dumps({f.name: getattr(options, f.name) for f in fields(options)})


def options_of(text: str) -> RecurrentOptions | None:
    """What `options_text` wrote."""
    return RecurrentOptions(**json.loads(text)) if text else None


def extra_weights(
    cell: str, hidden_size: int, options: RecurrentOptions | None
) -> dict[str, tuple[int, ...]]:
    """Shapes of a variant's weights that torch's modules do not have, by the kernels' names."""
    if options is None:
        return {}
    found = CELLS[cell].extras(hidden_size, options)
    return {name: shape for name, shape in found.items() if name not in ("b_hn", "w_hr")}
