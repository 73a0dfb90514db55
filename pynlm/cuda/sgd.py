"""Stochastic gradient descent with momentum on a GPU."""

from __future__ import annotations

from ._updates import launch_flat, launch_rows
from .device import Array, Late

_SOURCE = "optim/sgd.cu"


def sgd_update(
    *,
    w: Array,
    g: Array,
    momentum_buffer: Array | None = None,
    scale: Late,
    lr: Late,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """One step on flat parameters; see `pynlm.kernels.sgd_update`."""
    launch_flat(
        _SOURCE, "sgd_update", w=w, g=g, momentum_buffer=momentum_buffer, scale=scale, lr=lr,
        momentum=momentum, weight_decay=weight_decay, nesterov=nesterov,
    )  # fmt: skip


def sgd_update_rows(
    *,
    w: Array,
    rows: Array,
    drows: Array,
    momentum_buffer: Array | None = None,
    scale: Late,
    lr: Late,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """The same step for a row-sparse gradient; see `pynlm.kernels.sgd_update_rows`."""
    launch_rows(
        _SOURCE, "sgd_update_rows", w=w, rows=rows, drows=drows, momentum_buffer=momentum_buffer,
        absent_too=weight_decay != 0 or momentum_buffer is not None, scale=scale, lr=lr,
        momentum=momentum, weight_decay=weight_decay, nesterov=nesterov,
    )  # fmt: skip
