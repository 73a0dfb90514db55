"""What recurrent cells have in common on a GPU before and after their loops over time."""

from __future__ import annotations

import math
from typing import Any

from pynlm.kernels.variant import Variant

from ._columns import column_sum
from .device import Array, Device
from .dropout import threshold


def start_gradient(gradient: Array, last: Array | None) -> None:
    """The gradient of a state, which is that of the last, if there is one."""
    gradient[...] = 0 if last is None else last


def input_gradients(
    device: Device,
    dx: Array | None,
    dw_ih: Array,
    d: Array,
    x: Array,
    w_ih: Array,
    lengths: Array | None,
) -> None:
    """Gradients of input and weights from d of w_ih x [T, B, columns], 0 beyond the lengths."""
    T, B, I = x.shape
    rows = d.reshape(T * B, len(w_ih))
    if lengths is not None:  # x beyond may be NaN
        x = rows_taking_part(device, x, lengths)
    device.matmul(dw_ih, rows.T, x.reshape(T * B, I))
    if dx is not None:
        device.matmul(dx.reshape(T * B, I), rows, w_ih)


def state_gradient(device: Device, dw: Array, d: Array, h0: Array, y: Array) -> None:
    """Gradient of weights w from d of w h [T B, columns], 0 beyond the lengths.

    `y` [T, B, H]: states as they enter w, which follow `h0`.
    """
    B, H = h0.shape
    device.matmul(dw, d[:B].T, h0[: len(d)])
    device.matmul(dw, d[B:].T, y.reshape(-1, H)[: max(len(d) - B, 0)], accumulate=True)


def rows_taking_part(device: Device, x: Array, lengths: Array) -> Array:
    """A copy of x [T, B, I] with zeros beyond the rows' lengths."""
    T, B, I = x.shape
    out = device.empty(x.shape, x.dtype)
    device.launch(
        "recurrent/rows.cu",
        "rows_taking_part",
        device.blocks_for(x.size),
        real=x.dtype,
        out=out,
        x=x,
        lengths=lengths,
        T=T,
        B=B,
        columns=I,
    )
    return out


def normalise_inputs(
    device: Device,
    v: Array,
    norm: Array | None,
    rstd: Array | None,
    gain: Array,
    bias: Array,
) -> None:
    """v = gain N(v) + bias for each row of v [T, B, n]; N(v) goes to `norm`, 1/sqrt to `rstd`."""
    device.launch(
        "recurrent/rows.cu",
        "normalise_rows",
        device.blocks_for(v.size // len(gain) * 32),
        real=v.dtype,
        v=v,
        norm=norm,
        rstd=rstd,
        gain=gain,
        bias=bias,
        rows=v.size // len(gain),
        n=len(gain),
    )


def norm_gradients(
    device: Device,
    dln_gates: Array,
    gate_sums: Array,
    d: Array,
    norm: Array,
    rstd: Array,
    ln_gates: Array,
    lengths: Array | None,
) -> tuple[Array, Array]:
    """Gains' gradients, and those of w_ih x and w_hh h, which are in the place of N of them.

    `d` [T, B, n]: of the pre-activations; `gate_sums` [B, n]: of the second gain, by rows.
    """
    T, B, n = d.shape
    column_sum(dln_gates[1], gate_sums)
    rows = d.reshape(T * B, n)
    column_sum(dln_gates[0], rows, by=norm[0], lengths=lengths)
    if not T * B:
        return norm[0], norm[1]
    device.launch(
        "recurrent/rows.cu",
        "normalise_rows_backward",
        device.blocks_for(T * B * 32),
        real=d.dtype,
        norm=norm[0],
        d=d,
        rstd=rstd[0],
        gain=ln_gates[0],
        lengths=lengths,
        B=B,
        rows=T * B,
        n=n,
    )
    return norm[0], norm[1]


def is_plain(variant: Variant | None, *options: Array | None) -> bool:
    """Whether no variant is asked for."""
    none = variant is None or not any(
        (variant.zoneout_h, variant.zoneout_c, variant.clip_h, variant.clip_c, variant.coupled)
    )
    return none and all(option is None for option in options)


def variant_arguments(variant: Variant) -> dict[str, Any]:
    """What general kernels take of a Variant."""
    return {
        "zoneout_h": variant.zoneout_h,
        "threshold_h": threshold(variant.zoneout_h),
        "clip_h": variant.clip_h or math.inf,
        "sample": variant.sample,
        "seed": variant.seed,
        "draw": variant.step,
        "layer": variant.layer,
        "time0": variant.time0,
        "row_ids": variant.rows,
    }


def cell_state_arguments(variant: Variant) -> dict[str, Any]:
    """What of a Variant only kernels of the LSTM take."""
    return {
        "zoneout_c": variant.zoneout_c,
        "threshold_c": threshold(variant.zoneout_c),
        "clip_c": variant.clip_c or math.inf,
        "norm_state": variant.norm_state,
    }
