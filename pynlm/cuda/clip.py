"""Sum of squares and clipping by value on a GPU."""

from __future__ import annotations

import numpy as np

from .device import Array, Late, current

_SOURCE = "optim/clip.cu"
_BLOCK = 4096
_SHARED = 8 * 8  # a double of each warp

MOST_SCALE = 2.0**24
PATIENCE = 2000


def sum_squares(*, x: Array) -> float:
    """Sum of x**2 in double precision; see `pynlm.kernels.sum_squares`. Waits for the device."""
    return float(sum_squares_on_device(x)[0])


def sum_squares_on_device(x: Array, total: Array | None = None) -> Array:
    """The sum as a float64 array [1] on the device (`total`, if given), without waiting."""
    device = current()
    blocks = -(-x.size // _BLOCK)
    sums = device.empty((max(blocks, 1),), np.float64)
    total = device.empty((1,), np.float64) if total is None else total
    device.launch(
        _SOURCE,
        "sum_squares_blocks",
        device.blocks_for(blocks, 1),
        real=x.dtype,
        shared=_SHARED,
        sums=sums,
        x=x,
        n=x.size,
    )
    device.launch(
        _SOURCE,
        "sum_squares_total",
        1,
        real=x.dtype,
        shared=_SHARED,
        total=total,
        sums=sums,
        n=blocks,
    )
    return total


def clip_scale(totals: Array, limit: float) -> Array:
    """What a gradient is multiplied by to have a norm of at most `limit`, without waiting.

    Parameters
    ----------
    totals
        float64 [n] on the device: sums of squares of the gradient's parts.
    limit
        Positive.

    Returns
    -------
    Array
        float64 [1] on the device, min(1, limit / norm): the `scale` of the update functions here.
        1 if the norm is NaN.
    """
    device = current()
    scale = device.empty((1,), np.float64)
    device.launch(_SOURCE, "clip_scale", 1, scale=scale, totals=totals, n=totals.size, limit=limit)
    return scale


def clip_scale_scaled(totals: Array, limit: float, scaling: Array) -> Array:
    """`clip_scale` of a gradient that is scaling[0] times too large; see `kernels.queued`."""
    device = current()
    scale = device.empty((1,), np.float64)
    device.launch(
        _SOURCE, "clip_scale_scaled", 1, scale=scale, totals=totals, scaling=scaling,
        n=totals.size, limit=limit, most=MOST_SCALE, patience=PATIENCE,
    )  # fmt: skip
    return scale


def clip_values(*, x: Array, limit: Late) -> None:
    """x = min(max(x, -limit), limit), in place; see `pynlm.kernels.clip_values`."""
    device = current()
    device.launch(
        _SOURCE,
        "clip_values",
        device.blocks_for(x.size),
        real=x.dtype,
        x=x,
        n=x.size,
        limit=limit,
    )
