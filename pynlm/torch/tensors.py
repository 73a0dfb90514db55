"""Torch's tensors as NumPy arrays of the same memory, and which tensors can be."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import forward_ad

from pynlm.layers.pool import Pool

# Private names that torch itself does not need. Without them such tensors have no memory to give
# (torch's error), and every backward pass copies what was saved.
_is_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda t: False)
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)

Array = npt.NDArray[Any]

NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
"""Dtypes that the kernels compute in, as NumPy's."""


_NARROWER = {
    torch.float32: (torch.bfloat16, torch.float16),
    torch.float64: (torch.bfloat16, torch.float16, torch.float32),
}

SMALL = 1 << 14
"""Elements below which memory comes from the system: a fraction of a page fault each."""


class Memory(Pool):
    """Large arrays and tensors, used again and again, so that a training step touches no new pages.

    An array or tensor may be kept for as long as wanted: it is used again once nothing refers to
    it. What a module has ever needed at once is kept until the module goes.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy or a pickle of a module begins with none
        return type(self), ()

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An uninitialised array."""
        return np.empty(shape, dtype) if prod(shape) < SMALL else self.lease(shape, dtype)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor."""
        if prod(shape) < SMALL:
            return torch.empty(shape, dtype=dtype, device="cpu")
        return torch.from_numpy(self.lease(shape, NUMPY[dtype]))


def array(t: Tensor) -> Array:
    """The tensor's memory as a NumPy array, which autograd does not see.

    Parameters
    ----------
    t
        Contiguous float32 or float64 (for which `readable` is true), with or without gradient.

    Returns
    -------
    ndarray
        No copy: what is written there is the tensor's new value. It keeps the memory alive.
    """
    a: Array = t.detach().numpy()
    return a


def optional(t: Tensor | None) -> Array | None:
    """`array`, or None for None."""
    return None if t is None else t.detach().numpy()


def contiguous(t: Tensor) -> Tensor:
    """`t` without gradient as the kernels take it, copied only if it is strided."""
    return t.detach().contiguous()


def readable(t: Tensor) -> bool:
    """Whether kernels can read `t`: dense float32 or float64 in the CPU's memory, no subclass."""
    kind = type(t)
    return (
        (kind is Tensor or kind is torch.nn.Parameter)
        and t.is_cpu
        and t.dtype in NUMPY
        and t.layout is torch.strided
        and not t.is_nested
    )


def uniform(weights: Iterable[Tensor | None], dtype: torch.dtype) -> bool:
    """Whether all weights are there, on the CPU, in the dtype."""
    for w in weights:  # noqa: SIM110 - a generator takes twice as long
        if w is None or w.dtype is not dtype or not w.is_cpu:
            return False
    return True


def is_narrower(t: Any, dtype: torch.dtype) -> bool:
    """Whether `t` is what autocast may have made of numbers of the dtype of weights."""
    return isinstance(t, Tensor) and t.is_cpu and t.dtype in _NARROWER.get(dtype, ())


def watched() -> bool:
    """Whether operations are traced or transformed, which needs operations that torch knows.

    True within torch.jit.trace, torch.func's transforms, forward-mode differentiation and dispatch
    modes (FakeTensorMode, make_fx).
    """
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def mapped(gradients: Iterable[Tensor | None]) -> bool:
    """Whether gradients come many at once (torch.autograd.grad's is_grads_batched)."""
    return any(g is not None and _is_batched(g) for g in gradients)


def keeps_graph() -> bool:
    """In a backward pass: whether what was saved may be needed by another one."""
    kept: bool = _keeps_graph()
    return kept


def kind_of(t: Tensor) -> str:
    """What a tensor is, for errors: "float16 on cuda:0"."""
    return f"{str(t.dtype).removeprefix('torch.')} on {t.device}"
