"""LSTM over a whole sequence on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from pynlm.kernels.variant import Variant

from . import recurrent
from .device import Array, current
from .recurrent import Part

_SOURCE = "recurrent/lstm.cu"


def lstm_forward(
    *,
    y: Array,
    h_last: Array,
    c_last: Array,
    gates: Array | None = None,
    c: Array | None = None,
    h_in: Array | None = None,
    m: Array | None = None,
    norm: Array | None = None,
    norm_c: Array | None = None,
    rstd: Array | None = None,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    b: Array,
    peephole: Array | None = None,
    w_hr: Array | None = None,
    ln_gates: Array | None = None,
    ln_cell: Array | None = None,
    mask_h: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
) -> None:
    """Run an LSTM over time; see `pynlm.kernels.lstm_forward`."""
    device = current()
    (T, B, I), H = x.shape, c0.shape[1]
    if T * B == 0:
        h_last[...] = h0
        c_last[...] = c0
        return
    inputs = device.empty((T, B, len(w_ih)), x.dtype) if gates is None else gates
    device.matmul(inputs.reshape(T * B, -1), x.reshape(T * B, I), w_ih.T)
    division = recurrent.divide(device, B, x.itemsize, Part(H, 4, H))
    device.launch(
        _SOURCE,
        "lstm_forward",
        division.grid,
        real=x.dtype,
        shared=division.shared,
        cooperative=True,
        defines=division.defines,
        y=y,
        h_last=h_last,
        c_last=c_last,
        gates=inputs,
        c=c,
        h0=h0,
        c0=c0,
        w_hh=w_hh,
        b=b,
        lengths=lengths,
        T=T,
        B=B,
        H=H,
        saves=gates is not None,
        states=recurrent.exchange(device, B, H, x.dtype),
        far=division.far(device, 0, x.dtype),
        counters=division.counters(device),
        units=division.units[0],
        rows=division.rows,
        **division.products[0].arguments,
    )


def lstm_backward(
    *,
    dx: Array | None = None,
    dh0: Array,
    dc0: Array,
    dw_ih: Array,
    dw_hh: Array,
    db: Array,
    dpeephole: Array | None = None,
    dw_hr: Array | None = None,
    dln_gates: Array | None = None,
    dln_cell: Array | None = None,
    gates: Array,
    c: Array,
    h_in: Array | None = None,
    m: Array | None = None,
    norm: Array | None = None,
    norm_c: Array | None = None,
    rstd: Array | None = None,
    y: Array,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    peephole: Array | None = None,
    w_hr: Array | None = None,
    ln_gates: Array | None = None,
    ln_cell: Array | None = None,
    mask_h: Array | None = None,
    dy: Array,
    dh_last: Array | None = None,
    dc_last: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
) -> None:
    """Back-propagate through `lstm_forward`; see `pynlm.kernels.lstm_backward`."""
    device = current()
    (T, B, _), H = x.shape, c0.shape[1]
    recurrent.start_gradient(dh0, dh_last)
    recurrent.start_gradient(dc0, dc_last)
    if T * B:
        division = recurrent.divide(device, B, x.itemsize, Part(H, 1, 4 * H))
        device.launch(
            _SOURCE,
            "lstm_backward",
            division.grid,
            real=x.dtype,
            shared=division.shared,
            cooperative=True,
            defines=division.defines,
            dh0=dh0,
            dc0=dc0,
            gates=gates,
            c=c,
            c0=c0,
            w_hh=w_hh,
            dy=dy,
            lengths=lengths,
            T=T,
            B=B,
            H=H,
            states=recurrent.exchange(device, B, 4 * H, x.dtype),
            far=division.far(device, 0, x.dtype),
            counters=division.counters(device),
            units=division.units[0],
            rows=division.rows,
            **division.products[0].arguments,
        )
    recurrent.layer_gradients(
        device, dx, dw_ih, dw_hh, gates, gates, x, w_ih, h0, y, lengths
    )
    recurrent.column_sums(device, db, gates)
