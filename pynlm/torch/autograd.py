"""Stacks of recurrent layers as operations of torch's autograd: the path without a compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import _VF, Tensor

from pynlm.layers import Context
from pynlm.torch.rows import Rows
from pynlm.torch.stack import Saved, Stack
from pynlm.torch.tensors import (
    Array,
    Memory,
    array,
    contiguous,
    keeps_graph,
    mapped,
    optional,
    watched,
)
from pynlm.torch.threads import follow_threads

NATIVE_CELLS: dict[str, Any] = {
    "LSTM": _VF.lstm_cell,
    "GRU": _VF.gru_cell,
    "RNN_TANH": _VF.rnn_tanh_cell,
    "RNN_RELU": _VF.rnn_relu_cell,
}
"""torch's own steps, by mode."""
NATIVE: dict[str, Any] = {
    "LSTM": _VF.lstm,
    "GRU": _VF.gru,
    "RNN_TANH": _VF.rnn_tanh,
    "RNN_RELU": _VF.rnn_relu,
}
"""torch's own layers, by mode."""


class Call:
    """One call of a stack: all but the tensors that gradients may go to.

    Parameters
    ----------
    stack
        Its layers.
    ctx
        Train or eval; seed of the variants' random numbers.
    batch_sizes
        Of a packed sequence; None: every row has all steps.
    memory
        For large arrays; a module has one for all its calls.
    masked
        How many masks come before the weights: none, or one for the input of each layer but the
        first, [T, B, D·P], or packed as the input is.
    """

    __slots__ = ("batch_sizes", "ctx", "masked", "memory", "rows", "stack")

    def __init__(
        self,
        stack: Stack,
        ctx: Context,
        memory: Memory,
        batch_sizes: Tensor | None = None,
        masked: int = 0,
    ) -> None:
        self.stack, self.ctx, self.memory, self.masked = stack, ctx, memory, masked
        self.batch_sizes = batch_sizes
        self.rows = None if batch_sizes is None else Rows(batch_sizes.numpy())

    def arrays(
        self, x: Tensor, rest: Sequence[Tensor]
    ) -> tuple[Array, list[list[Array]], list[Array]]:
        """Input [T, B, I], weights of each layer and direction, masks [T, B, D·P]."""
        a = array(x)
        masks = [array(m) for m in rest[: self.masked]]
        if self.rows is not None:
            a = self.rows.pad(a, self.memory)
            masks = [self.rows.pad(m, self.memory) for m in masks]
        n = self.stack.count
        w = [array(t) for t in rest[self.masked :]]
        for i, one in enumerate(w):
            if not one.flags.c_contiguous:
                w[i] = np.ascontiguousarray(one)
        return a, [w[i : i + n] for i in range(0, len(w), n)], masks

    def saved(self, buffer: Array, shape: tuple[int, ...], saves: bool) -> Saved:
        """Views of `buffer`, as `buffer_size` says it is needed."""
        return self._layout(shape, saves).views(buffer)

    def buffer_size(self, shape: tuple[int, ...], saves: bool) -> int:
        """Elements of the buffer for an input of the shape [T, B, I]."""
        return self._layout(shape, saves).size

    def _layout(self, shape: tuple[int, ...], saves: bool) -> Any:
        return self.stack.layout(
            shape[0], shape[1], saves=saves, train=self.ctx.train,
            packed=self.rows is not None, masked=self.masked > 0,
        )  # fmt: skip

    def run(
        self, x: Tensor, hx: Tensor | None, cx: Tensor | None, rest: Sequence[Tensor], saves: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Outputs, last states, and the buffer of what a backward pass needs.

        `x`, `hx` and `cx` are contiguous; `rest` is masks and weights.
        """
        follow_threads()
        stack = self.stack
        a, w, masks = self.arrays(x, rest)
        T, B, _ = a.shape
        size, width, k = stack.hidden_size, stack.width, stack.num_layers * stack.directions
        buffer = self.memory.tensor((self.buffer_size(a.shape, saves),), x.dtype)
        saved = self.saved(buffer.numpy(), a.shape, saves)
        total = stack.directions * width
        y = x.new_empty((*x.shape[:-1], total))
        h_n = x.new_empty((k, B, width))
        c_n = x.new_empty((k, B, size)) if stack.has_cell_state else None
        out = y.numpy()
        apart = stack.directions == 1 and "y" in saved[-1]
        if apart:
            out = saved[-1]["y"]
        elif self.rows is not None:
            out = self.memory.array((T, B, total), a.dtype)
        stack.forward(
            a, optional(hx), optional(cx), w, out, h_n.numpy(), optional(c_n), saved, self.rows,
            masks, self.ctx, self.memory,
        )  # fmt: skip
        if self.rows is not None:
            self.rows.pack(out, y.numpy())
        elif apart:
            np.copyto(y.numpy(), out)
        return y, h_n, c_n, buffer

    def step(
        self, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor], saves: bool
    ) -> tuple[Tensor, ...]:
        """`run` of a single layer for one step [B, I]: h, (LSTM) c and the buffer."""
        follow_threads()
        stack, a = self.stack, array(x)[None]
        w = self.arrays(x, weights)[1]
        buffer = self.memory.tensor((self.buffer_size(a.shape, saves),), x.dtype)
        saved = self.saved(buffer.numpy(), a.shape, saves)
        h_n = x.new_empty((len(x), stack.width))
        c_n = x.new_empty((len(x), stack.width)) if stack.has_cell_state else None
        y = saved[0]["y"] if "y" in saved[0] else np.empty((1, *h_n.shape), a.dtype)
        stack.forward(
            a, None if h is None else array(h)[None], None if c is None else array(c)[None], w, y,
            h_n.numpy()[None], None if c_n is None else c_n.numpy()[None], saved, None, (),
            self.ctx, self.memory,
        )  # fmt: skip
        return (h_n, buffer) if c_n is None else (h_n, c_n, buffer)

    def gradients(
        self,
        x: Tensor,
        hx: Tensor | None,
        cx: Tensor | None,
        rest: Sequence[Tensor],
        y: Tensor | None,
        buffer: Tensor,
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        wants_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor | None, list[list[Tensor]]]:
        """dx, dh0, dc0, and of each direction the kernels' gradients; consumes `buffer`.

        `y` is None where the buffer has it: but for an LSTM in one direction, not packed.
        """
        follow_threads()
        stack, rows = self.stack, self.rows
        a, w, masks = self.arrays(x, rest)
        T, B, _ = a.shape
        saved = self.saved(buffer.numpy(), a.shape, True)
        total = stack.directions * stack.width
        if dy is None:
            upstream = np.zeros((T, B, total), a.dtype)
        else:
            upstream = array(contiguous(dy))
            upstream = upstream if rows is None else rows.pad(upstream, self.memory)
        dx = x.new_empty(x.shape) if wants_dx else None
        d_in = None
        if dx is not None:
            d_in = dx.numpy() if rows is None else self.memory.array(a.shape, a.dtype)
        k = stack.num_layers * stack.directions
        dh0 = x.new_empty((k, B, stack.width))
        dc0 = None
        if stack.has_cell_state:
            dc0 = x.new_empty((k, B, stack.hidden_size))
        dw = [
            [self.memory.tensor(shape, x.dtype) for shape in shapes]
            for shapes in stack.gradient_shapes(a.shape[2])
        ]
        stack.backward(
            a, optional(hx), optional(cx), w,
            optional(y),
            saved, rows, masks, self.ctx, self.memory, upstream,
            None if dh_n is None else array(contiguous(dh_n)),
            None if dc_n is None else array(contiguous(dc_n)),
            d_in, dh0.numpy(), optional(dc0), [[t.numpy() for t in one] for one in dw],
        )  # fmt: skip
        if dx is not None and rows is not None:
            assert d_in is not None
            rows.pack(d_in, dx.numpy())
        return dx, dh0, dc0, dw

    def native(
        self, x: Tensor, hx: Tensor | None, cx: Tensor | None, rest: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The same outputs by torch's own operations, which it can differentiate again."""
        stack, weights = self.stack, rest[self.masked :]
        D, P, n = stack.directions, stack.width, stack.count
        batch = x.shape[1] if self.batch_sizes is None else int(self.batch_sizes[0])
        if hx is None:
            hx = x.new_zeros(stack.num_layers * D, batch, P)
        if cx is None and stack.has_cell_state:
            cx = x.new_zeros(stack.num_layers * D, batch, stack.hidden_size)
        last = []
        for layer in range(stack.num_layers):
            if layer and self.masked:
                x = x * rest[layer - 1]
            own = slice(layer * D, layer * D + D)
            state: Any = hx[own] if cx is None else (hx[own], cx[own])
            given = (list(weights[layer * D * n : (layer + 1) * D * n]), stack.bias, 1, 0.0, True)
            if self.batch_sizes is None:
                found = NATIVE[stack.mode](x, state, *given, D == 2, False)
            else:
                found = NATIVE[stack.mode](x, self.batch_sizes, state, *given, D == 2)
            x, *states = found
            last.append(states)
        return x, *(torch.cat(states) for states in zip(*last, strict=True))

    def native_step(
        self, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """`step` by torch's own operations."""
        stack = self.stack
        if h is None:
            h = x.new_zeros(x.shape[0], stack.hidden_size)
        if c is None and stack.has_cell_state:
            c = torch.zeros_like(h)
        biases = weights[2:4] if stack.bias else (None, None)
        out = NATIVE_CELLS[stack.mode](x, h if c is None else (h, c), *weights[:2], *biases)
        return (out,) if c is None else tuple(out)


class RecurrentStack(torch.autograd.Function):
    """`RecurrentStack.apply(call, x, hx, cx, *masks, *weights)`: y, h_n and (LSTM) c_n."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, x: Tensor, hx: Tensor | None, cx: Tensor | None, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        y, h_n, c_n, buffer = call.run(x.contiguous(), dense(hx), dense(cx), rest, True)
        ctx.call = call
        in_buffer = call.rows is not None or call.stack.directions == 2 or c_n is None
        ctx.save_for_backward(x, hx, cx, None if in_buffer else y, buffer, *rest)
        return (y, h_n) if c_n is None else (y, h_n, c_n)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        needs = ctx.needs_input_grad
        x, hx, cx, y, buffer, *rest = ctx.saved_tensors
        if all(g is None for g in upstream):
            return (None,) * len(needs)
        if torch.is_grad_enabled() or watched() or mapped(upstream):
            return None, *_again(call, call.native, needs[1:], (x, hx, cx, *rest), upstream)
        if keeps_graph():
            buffer = buffer.clone()
        dy, dh_n, *others = upstream
        dx, dh0, dc0, dw = call.gradients(
            x.contiguous(), dense(hx), dense(cx), rest, y, buffer,
            dy, dh_n, others[0] if others else None, needs[1],
        )  # fmt: skip
        found: list[Tensor | None] = [None] * call.masked
        for one in dw:
            found += call.stack.parameter_gradients(one)
        return None, dx, dh0 if needs[2] else None, dc0 if needs[3] else None, *found


class RecurrentCell(torch.autograd.Function):
    """`RecurrentCell.apply(call, x, h, c, *weights)`: one step of [B, I]; h and (LSTM) c."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, x: Tensor, h: Tensor | None, c: Tensor | None, *weights: Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        *out, buffer = call.step(x.contiguous(), dense(h), dense(c), weights, True)
        ctx.call = call
        ctx.save_for_backward(x, h, c, buffer, *weights)
        return out[0] if len(out) == 1 else tuple(out)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        needs = ctx.needs_input_grad
        x, h, c, buffer, *weights = ctx.saved_tensors
        if all(g is None for g in upstream):
            return (None,) * len(needs)
        if torch.is_grad_enabled() or watched() or mapped(upstream):
            return None, *_again(call, call.native_step, needs[1:], (x, h, c, *weights), upstream)
        if keeps_graph():
            buffer = buffer.clone()
        inputs = x.contiguous()[None], row(h), row(c)
        dy, dc = row(upstream[0]), row(upstream[1]) if len(upstream) == 2 else None
        y = None
        if call.stack.has_cell_state:  # outputs of steps before, of which there are none
            y = x.new_zeros(1, x.shape[0], call.stack.width)
        dx, dh0, dc0, dw = call.gradients(*inputs, weights, y, buffer, dy, None, dc, needs[1])
        return (
            None,
            None if dx is None else dx[0],
            dh0[0] if needs[2] else None,
            dc0[0] if needs[3] and dc0 is not None else None,
            *call.stack.parameter_gradients(dw[0]),
        )


def row(t: Tensor | None) -> Tensor | None:
    """[B, W] as a contiguous [1, B, W]."""
    return None if t is None else t.contiguous()[None]


def dense(t: Tensor | None) -> Tensor | None:
    """`t`, contiguous."""
    return None if t is None else t.contiguous()


def _again(
    call: Call,
    native: Callable[..., Sequence[Tensor]],
    needs: Sequence[bool],
    inputs: Sequence[Tensor | None],
    upstream: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients that have gradients themselves, by torch's own operations."""
    stack = call.stack
    if stack.options is not None:
        raise RuntimeError(
            f"pynlm.torch.{stack.cell}: gradients of gradients (create_graph=True) and torch.func "
            f"need a cell that torch has, not one with {stack.options}"
        )
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: an input that was computed from another one is not to lead to it.
        own = [None if t is None else t.view_as(t) for t in inputs]
        x, hx, cx, *rest = own
        outputs = native(x, hx, cx, rest)
        pairs = [(o, g) for o, g in zip(outputs, upstream, strict=True) if g is not None]
        wanted = [t for t, need in zip(own, needs, strict=True) if need and t is not None]
        found = torch.autograd.grad(
            [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=again,
            allow_unused=True,
        )  # fmt: skip
    each = iter(found)
    return [
        next(each) if need and t is not None else None for t, need in zip(own, needs, strict=True)
    ]
