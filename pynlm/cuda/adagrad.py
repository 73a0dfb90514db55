"""Adagrad on a GPU."""

from __future__ import annotations

from ._updates import launch_flat, launch_rows
from .device import Array, Late

_SOURCE = "optim/adagrad.cu"


def adagrad_update(
    *, w: Array, g: Array, v: Array, scale: Late, lr: Late, eps: float, weight_decay: float
) -> None:
    """One step on flat parameters; see `pynlm.kernels.adagrad_update`."""
    launch_flat(
        _SOURCE, "adagrad_update", w=w, g=g, v=v, scale=scale, lr=lr, eps=eps,
        weight_decay=weight_decay,
    )  # fmt: skip


def adagrad_update_rows(
    *,
    w: Array,
    rows: Array,
    drows: Array,
    v: Array,
    scale: Late,
    lr: Late,
    eps: float,
    weight_decay: float,
) -> None:
    """The same step for a row-sparse gradient; see `pynlm.kernels.adagrad_update_rows`."""
    launch_rows(
        _SOURCE, "adagrad_update_rows", w=w, rows=rows, drows=drows, v=v,
        absent_too=weight_decay != 0 or eps <= 0, scale=scale, lr=lr, eps=eps,
        weight_decay=weight_decay,
    )  # fmt: skip
