"""The passes as operators of torch's library: what `torch.compile` puts into its graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynlm.layers import Context
from pynlm.torch.autograd import Call, dense
from pynlm.torch.rows import is_sound
from pynlm.torch.stack import Layout, stack_of
from pynlm.torch.tensors import Memory

_EVAL, _TRAIN = Context(train=False), Context(train=True)


class _Fresh(Memory):
    """For outputs of operators, no element of which may be left to chance."""

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros of their own."""
        return torch.zeros(shape, dtype=dtype, device="cpu")


def context(train: bool, seed: Tensor | None) -> Context:
    """What the layers are told; `seed` int64 [1], None where nothing is drawn."""
    if seed is None:
        return _TRAIN if train else _EVAL
    return Context(train=train, seed=int(seed))


@torch.library.custom_op("pynlm::recurrent", mutates_args=())
def recurrent(
    x: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    rest: Sequence[Tensor],
    batch_sizes: Tensor | None,
    seed: Tensor | None,
    settings: str,
    batch: int,
    masked: int,
    train: bool,
    saves: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Call.run`: y, h_n, c_n (empty but for an LSTM) and the buffer for the gradients."""
    if batch_sizes is not None and not is_sound(batch_sizes, batch, len(x)):
        raise RuntimeError(
            "pynlm::recurrent: batch_sizes must be positive, never grow and have the input's rows "
            f"as their sum; got {batch_sizes.tolist()} for {len(x)} rows"
        )
    call = Call(stack_of(settings), context(train, seed), _Fresh(), batch_sizes, masked)
    rest = [t.detach() for t in rest]
    y, h_n, c_n, buffer = call.run(x.contiguous(), dense(hx), dense(cx), rest, saves)
    return y, h_n, x.new_empty(0) if c_n is None else c_n, buffer


@recurrent.register_fake
def _(
    x: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    rest: Sequence[Tensor],
    batch_sizes: Tensor | None,
    seed: Tensor | None,
    settings: str,
    batch: int,
    masked: int,
    train: bool,
    saves: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stack = stack_of(settings)
    k = stack.num_layers * stack.directions
    T = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    # Whether rows differ in length is not known here: the larger buffer.
    layout = Layout(stack, T, batch, saves, train, batch_sizes is not None, masked > 0)
    return (
        x.new_empty((*x.shape[:-1], stack.directions * stack.width)),
        x.new_empty((k, batch, stack.width)),
        x.new_empty((k, batch, stack.hidden_size) if stack.has_cell_state else (0,)),
        x.new_empty((layout.size,)),
    )


@torch.library.custom_op("pynlm::recurrent_backward", mutates_args=())
def recurrent_backward(
    x: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    rest: Sequence[Tensor],
    batch_sizes: Tensor | None,
    seed: Tensor | None,
    settings: str,
    batch: int,
    masked: int,
    train: bool,
    y: Tensor,
    buffer: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    wants_dx: bool,
) -> list[Tensor]:
    """`Call.gradients`: dx, dh0, dc0 (empty: none), then those of each direction's weights."""
    call = Call(stack_of(settings), context(train, seed), _Fresh(), batch_sizes, masked)
    dx, dh0, dc0, dw = call.gradients(
        x.contiguous(), dense(hx), dense(cx), [t.detach() for t in rest], y.contiguous(),
        buffer.clone(), dy, dh_n, dc_n, wants_dx,
    )  # fmt: skip
    empty = [x.new_empty(0) if t is None else t for t in (dx, dh0, dc0)]
    return [*empty, *(t for one in dw for t in one)]


@recurrent_backward.register_fake
def _(
    x: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    rest: Sequence[Tensor],
    batch_sizes: Tensor | None,
    seed: Tensor | None,
    settings: str,
    batch: int,
    masked: int,
    train: bool,
    y: Tensor,
    buffer: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    wants_dx: bool,
) -> list[Tensor]:
    stack = stack_of(settings)
    k = stack.num_layers * stack.directions
    shapes = stack.gradient_shapes(x.shape[-1])
    return [
        x.new_empty(x.shape if wants_dx else (0,)),
        x.new_empty((k, batch, stack.width)),
        x.new_empty((k, batch, stack.hidden_size) if stack.has_cell_state else (0,)),
        *(x.new_empty(shape) for one in shapes for shape in one),
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, hx, cx, rest, batch_sizes, seed, *ctx.constants, _ = inputs
    y, _, _, buffer = output
    ctx.set_materialize_grads(False)
    ctx.has_states = hx is not None, cx is not None
    ctx.save_for_backward(x, hx, cx, batch_sizes, seed, y, buffer, *rest)


def _backward(
    ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    x, hx, cx, batch_sizes, seed, y, buffer, *rest = ctx.saved_tensors
    settings, batch, masked, train = ctx.constants
    stack = stack_of(settings)
    wants_dx = ctx.needs_input_grad[0]
    dx, dh0, dc0, *dw = recurrent_backward(
        x, hx, cx, rest, batch_sizes, seed, settings, batch, masked, train, y, buffer,
        dy, dh_n, dc_n if stack.has_cell_state else None, wants_dx,
    )  # fmt: skip
    found: list[Tensor | None] = [None] * masked
    n = len(dw) // (stack.num_layers * stack.directions)
    for k in range(0, len(dw), n):
        found += stack.parameter_gradients(dw[k : k + n])
    return (
        dx if wants_dx else None,
        dh0 if ctx.needs_input_grad[1] else None,
        dc0 if ctx.needs_input_grad[2] else None,
        found,
        *[None] * 7,
    )


recurrent.register_autograd(_backward, setup_context=_setup)
