"""LSTM over a whole sequence on a GPU."""

from __future__ import annotations

from typing import Any

from pynlm.kernels.variant import Variant

from . import recurrent
from ._columns import column_sum
from .device import Array, current
from .division import Part, divide

_PLAIN, _GENERAL = "recurrent/lstm.cu", "recurrent/lstm_general.cu"


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
    device, dtype = current(), x.dtype
    (T, B, I), H, columns = x.shape, c0.shape[1], len(w_ih)
    if T * B == 0:
        h_last[...] = h0
        c_last[...] = c0
        return
    saves = gates is not None
    inputs: Any = gates if saves else device.empty((T, B, columns), dtype)
    device.matmul(inputs.reshape(T * B, columns), x.reshape(T * B, I), w_ih.T)
    common = {
        "y": y, "h_last": h_last, "c_last": c_last, "gates": inputs, "c": c, "h0": h0, "c0": c0,
        "w_hh": w_hh, "lengths": lengths, "T": T, "B": B, "H": H, "saves": saves,
    }  # fmt: skip
    if recurrent.is_plain(variant, mask_h, peephole, w_hr, ln_gates):
        division = divide(device, B, x.itemsize, Part(H, 4, H), plain=True)
        division.launch(device, _PLAIN, "lstm_forward", dtype, b=b, **common)
        return
    given, P = variant or Variant(), h0.shape[1]
    if ln_gates is not None:
        recurrent.normalise_inputs(device, inputs, norm, rstd, ln_gates[0], b)
        if not saves:
            norm = device.empty((B, columns), dtype)
            norm_c = device.empty((B, H), dtype)
    parts = [Part(H, columns // H, P), *([] if w_hr is None else [Part(P, 1, H)])]
    division = divide(device, B, x.itemsize, *parts, norms=ln_gates is not None)
    division.launch(
        device,
        _GENERAL,
        "lstm_general_forward",
        dtype,
        f"GATES={columns // H}",
        b=None if ln_gates is not None else b,
        h_in=h_in,
        m=m,
        norm=norm,
        norm_c=norm_c,
        rstd=rstd,
        peephole=peephole,
        w_hr=w_hr,
        ln_gates=ln_gates,
        ln_cell=ln_cell,
        mask_h=mask_h,
        P=P,
        **recurrent.variant_arguments(given),
        **recurrent.cell_state_arguments(given),
        **common,
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
    device, dtype = current(), x.dtype
    (T, B, _), H, P = x.shape, c0.shape[1], h0.shape[1]
    columns = len(w_ih)
    recurrent.start_gradient(dh0, dh_last)
    recurrent.start_gradient(dc0, dc_last)
    common = {
        "dh0": dh0, "dc0": dc0, "gates": gates, "c": c, "c0": c0, "w_hh": w_hh, "dy": dy,
        "lengths": lengths, "T": T, "B": B, "H": H,
    }  # fmt: skip
    d_x = d_h = gates
    if recurrent.is_plain(variant, mask_h, peephole, w_hr, ln_gates):
        if T * B:
            part = Part(H, 1, columns, of_unit=4)
            division = divide(device, B, x.itemsize, part, plain=True)
            division.launch(device, _PLAIN, "lstm_backward", dtype, **common)
    else:
        given = variant or Variant()

        def sums(wanted: Any, *shape: int) -> Any:
            return None if wanted is None else device.zeros(shape, dtype)

        peephole_sums = sums(peephole, B, columns - H)
        gate_sums, cell_sums = sums(ln_gates, B, columns), sums(ln_cell, B, 2 * H)
        dr = sums(w_hr, T * B, P)
        parts = [Part(P, 1, columns), *([] if w_hr is None else [Part(H, 1, P)])]
        if T * B:
            division = divide(device, B, x.itemsize, *parts, norms=ln_gates is not None)
            division.launch(
                device,
                _GENERAL,
                "lstm_general_backward",
                dtype,
                f"GATES={columns // H}",
                y=y,
                norm=norm,
                norm_c=norm_c,
                rstd=rstd,
                peephole=peephole,
                w_hr=w_hr,
                ln_gates=ln_gates,
                ln_cell=ln_cell,
                mask_h=mask_h,
                rec=device.zeros((B, P), dtype),
                dr=dr,
                q=sums(ln_cell, B, H),
                rest=sums(ln_cell, B, H),
                dpeephole=peephole_sums,
                dln_gates=gate_sums,
                dln_cell=cell_sums,
                P=P,
                **recurrent.variant_arguments(given),
                **recurrent.cell_state_arguments(given),
                **common,
            )
        for total, rows in ((dpeephole, peephole_sums), (dln_cell, cell_sums)):
            if total is not None:
                column_sum(total, rows)
        if dw_hr is not None and m is not None:
            device.matmul(dw_hr, dr.T, m.reshape(T * B, H))
        if dln_gates is not None and norm is not None:
            d_x, d_h = recurrent.norm_gradients(
                device, dln_gates, gate_sums, gates, norm, rstd, ln_gates, lengths
            )
        if mask_h is not None:
            h0, y = h0 * mask_h, h_in
    column_sum(db, gates.reshape(T * B, len(db)))
    recurrent.input_gradients(device, dx, dw_ih, d_x, x, w_ih, lengths)
    recurrent.state_gradient(device, dw_hh, d_h.reshape(T * B, columns), h0, y)
