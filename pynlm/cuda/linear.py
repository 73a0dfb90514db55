"""Affine map of rows on a GPU: products of cuBLAS, and the bias."""

from __future__ import annotations

from ._columns import add_to_rows, column_sum
from .device import Array, current


def linear_forward(*, y: Array, x: Array, w: Array, b: Array | None = None) -> None:
    """y = x W^T + b; see `pynlm.kernels.linear_forward`."""
    current().matmul(y, x, w.T)
    if b is not None:
        add_to_rows(y, b)


def linear_backward(
    *, dx: Array | None = None, dw: Array, db: Array | None = None, dy: Array, x: Array, w: Array
) -> None:
    """Gradients of `linear_forward`; see `pynlm.kernels.linear_backward`."""
    device = current()
    if dx is not None:
        device.matmul(dx, dy, w)
    device.matmul(dw, dy.T, x)
    if db is not None:
        column_sum(db, dy)
