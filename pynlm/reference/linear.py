"""Affine map, weights in torch.nn.Linear's layout: y = x W^T + b."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def linear_forward(*, y: Array, x: Array, w: Array, b: Array | None = None) -> None:
    """y = x W^T + b; see `pynlm.kernels.linear_forward`."""
    y[...] = x @ w.T
    if b is not None:
        y += b


def linear_backward(
    *, dx: Array | None = None, dw: Array, db: Array | None = None, dy: Array, x: Array, w: Array
) -> None:
    """Gradients of `linear_forward`; see `pynlm.kernels.linear_backward`."""
    if dx is not None:
        dx[...] = dy @ w
    dw[...] = dy.T @ x
    if db is not None:
        db[...] = np.sum(dy, axis=0)
