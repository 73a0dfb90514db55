"""torch.nn.Linear on pynlm's products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynlm import _kernels
from pynlm.torch.tensors import (
    Memory,
    array,
    contiguous,
    mapped,
    optional,
    readable,
    watched,
)
from pynlm.torch.threads import follow_threads

SMALL_PRODUCT = 1 << 22
"""Multiplications below which a product is torch's own: it waits for no other threads then."""


class Linear(torch.nn.Linear):
    """torch.nn.Linear on pynlm's products: twice as fast where torch's are not tuned to the CPU.

    Parameters
    ----------
    *args, **kwargs
        torch.nn.Linear's: in_features, out_features, bias=True, device=None, dtype=None.

    Notes
    -----
    Less than 2^22 multiplications a call, other dtypes than float32 and float64, other devices than
    the CPU, autocast, torch.compile, torch.func and gradients of gradients are torch's own.

    Examples
    --------
    >>> Linear(3, 5)(torch.zeros(7, 2, 3)).shape
    torch.Size([7, 2, 5])
    """

    def forward(self, input: Tensor) -> Tensor:
        """y [..., O] of input [..., I], as torch's module."""
        w, b = self.weight, self.bias
        if torch.compiler.is_compiling() or not readable(input):
            return super().forward(input)
        fits = (
            readable(w)
            and w.dtype is input.dtype
            and input.dim() > 0
            and w.dim() == 2
            and input.shape[-1] == w.shape[1]
            and (b is None or (readable(b) and b.dtype is w.dtype and b.shape == w.shape[:1]))
        )
        if not fits:
            return super().forward(input)
        small = input.numel() * w.shape[0] < SMALL_PRODUCT
        if small or torch.is_autocast_enabled("cpu") or watched():
            return super().forward(input)
        follow_threads()
        memory = self.__dict__.get("_memory")
        if memory is None:
            memory = self.__dict__["_memory"] = Memory()
        if torch.is_grad_enabled() and (
            input.requires_grad or w.requires_grad or (b is not None and b.requires_grad)
        ):
            return _Product.apply(memory, input, w, b)
        return _product(memory, input, w, b)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """What torch.jit.script compiles in place of this module: torch's own."""
        own = torch.nn.Linear.__new__(torch.nn.Linear)
        own.__dict__ = {name: value for name, value in self.__dict__.items() if name != "_memory"}
        return own


def _product(memory: Memory, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    x, w = contiguous(x), contiguous(w)
    y = memory.tensor((*x.shape[:-1], w.shape[0]), x.dtype)
    rows, bias = (-1, w.shape[1]), None if b is None else contiguous(b)
    _kernels.linear_forward(
        y=y.numpy().reshape(-1, w.shape[0]), x=array(x).reshape(rows), w=array(w), b=optional(bias)
    )
    return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, memory: Memory, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.memory = memory
        ctx.save_for_backward(x, w)
        return _product(memory, x, w, b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        if dy is None:
            return (None,) * 4
        _, wants_dx, wants_dw, wants_db = ctx.needs_input_grad
        if torch.is_grad_enabled() or watched() or mapped((dy,)) or not wants_dw:
            flat = dy.reshape(-1, w.shape[0])
            return (
                None,
                dy @ w if wants_dx else None,
                flat.t() @ x.reshape(-1, x.shape[-1]) if wants_dw else None,
                flat.sum(0) if wants_db else None,
            )
        memory, dy, x, w = ctx.memory, contiguous(dy), contiguous(x), contiguous(w)
        outputs, inputs = w.shape
        dx = memory.tensor(x.shape, x.dtype) if wants_dx else None
        dw = memory.tensor(w.shape, w.dtype)
        db = w.new_empty(outputs) if wants_db else None
        _kernels.linear_backward(
            dx=None if dx is None else dx.numpy().reshape(-1, inputs),
            dw=dw.numpy(),
            db=optional(db),
            dy=array(dy).reshape(-1, outputs),
            x=array(x).reshape(-1, inputs),
            w=array(w),
        )
        return None, dx, dw, db
