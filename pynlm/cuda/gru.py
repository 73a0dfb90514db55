"""GRU over a whole sequence on a GPU, reset after or before the product."""

from __future__ import annotations

from pynlm.kernels.variant import Variant

from . import recurrent
from ._columns import column_sum
from .device import Array, current
from .division import Part, divide

_PLAIN, _GENERAL = "recurrent/gru.cu", "recurrent/gru_general.cu"
_BEFORE = "recurrent/gru_before.cu"


def gru_forward(
    *,
    y: Array,
    h_last: Array,
    gates: Array | None = None,
    hn: Array | None = None,
    h_in: Array | None = None,
    norm: Array | None = None,
    rstd: Array | None = None,
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    b: Array,
    b_hn: Array | None,
    ln_gates: Array | None = None,
    mask_h: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
) -> None:
    """Run a GRU over time; see `pynlm.kernels.gru_forward`."""
    device, dtype = current(), x.dtype
    (T, B, I), H = x.shape, h0.shape[1]
    if T * B == 0:
        h_last[...] = h0
        return
    inputs = device.empty((T, B, 3 * H), dtype) if gates is None else gates
    device.matmul(inputs.reshape(T * B, 3 * H), x.reshape(T * B, I), w_ih.T)
    common = {
        "y": y, "h_last": h_last, "gates": inputs, "h0": h0, "w_hh": w_hh, "b": b,
        "lengths": lengths, "T": T, "B": B, "H": H,
    }  # fmt: skip
    variants = {
        "h_in": h_in, "mask_h": mask_h, **recurrent.variant_arguments(variant or Variant())
    }  # fmt: skip
    if b_hn is None:
        parts = Part(H, 2, H), Part(H, 1, H)
        division = divide(device, B, x.itemsize, *parts)
        division.launch(device, _BEFORE, "gru_before_forward", dtype, rh=hn, **variants, **common)
        return
    plain = recurrent.is_plain(variant, mask_h, ln_gates)
    division = divide(device, B, x.itemsize, Part(H, 3, H), plain=plain, norms=ln_gates is not None)
    common |= {"hn": hn, "b_hn": b_hn}
    if plain:
        division.launch(device, _PLAIN, "gru_forward", dtype, **common)
        return
    if ln_gates is not None:
        recurrent.normalise_inputs(device, inputs, norm, rstd, ln_gates[0], b)
        common["b"] = None
        if norm is None:
            norm = device.empty((B, 3 * H), dtype)
    division.launch(
        device, _GENERAL, "gru_general_forward", dtype,
        norm=norm, rstd=rstd, ln_gates=ln_gates, **variants, **common,
    )  # fmt: skip


def gru_backward(
    *,
    dx: Array | None = None,
    dh0: Array,
    dw_ih: Array,
    dw_hh: Array,
    db: Array,
    db_hn: Array | None,
    dln_gates: Array | None = None,
    gates: Array,
    hn: Array,
    h_in: Array | None = None,
    norm: Array | None = None,
    rstd: Array | None = None,
    y: Array,
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    ln_gates: Array | None = None,
    mask_h: Array | None = None,
    dy: Array,
    dh_last: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
) -> None:
    """Back-propagate through `gru_forward`; see `pynlm.kernels.gru_backward`."""
    device, dtype = current(), x.dtype
    (T, B, _), H = x.shape, h0.shape[1]
    recurrent.start_gradient(dh0, dh_last)
    common = {
        "dh0": dh0, "gates": gates, "y": y, "h0": h0, "w_hh": w_hh, "dy": dy, "lengths": lengths,
        "T": T, "B": B, "H": H,
    }  # fmt: skip
    given = recurrent.variant_arguments(variant or Variant())
    gate_sums = None if ln_gates is None else device.zeros((B, 3 * H), dtype)
    if not T * B:
        pass
    elif db_hn is None:
        parts = Part(H, 1, 2 * H), Part(H, 1, H)
        divide(device, B, x.itemsize, *parts).launch(
            device, _BEFORE, "gru_before_backward", dtype,
            rh=hn, mask_h=mask_h, rec=device.zeros((B, H), dtype), **given, **common,
        )  # fmt: skip
    else:
        plain, part = recurrent.is_plain(variant, mask_h, ln_gates), Part(H, 1, 3 * H, of_unit=3)
        division = divide(device, B, x.itemsize, part, plain=plain, norms=ln_gates is not None)
        if plain:
            division.launch(device, _PLAIN, "gru_backward", dtype, hn=hn, **common)
        else:
            division.launch(
                device, _GENERAL, "gru_general_backward", dtype,
                hn=hn, norm=norm, rstd=rstd, ln_gates=ln_gates, mask_h=mask_h,
                rec=device.zeros((B, H), dtype), dln_gates=gate_sums, **given, **common,
            )  # fmt: skip
    column_sum(db, gates.reshape(T * B, len(db)))
    if db_hn is not None:
        column_sum(db_hn, hn.reshape(T * B, H))
    if mask_h is not None:
        h0, y = h0 * mask_h, h_in
    rows = gates.reshape(T * B, 3 * H)
    if dln_gates is not None:
        d_x, d_h = recurrent.norm_gradients(
            device, dln_gates, gate_sums, gates, norm, rstd, ln_gates, lengths
        )
        recurrent.input_gradients(device, dx, dw_ih, d_x, x, w_ih, lengths)
        recurrent.state_gradient(device, dw_hh, d_h.reshape(rows.shape), h0, y)
        return
    recurrent.input_gradients(device, dx, dw_ih, gates, x, w_ih, lengths)
    recurrent.state_gradient(device, dw_hh[: 2 * H], rows[:, : 2 * H], h0, y)
    hn = hn.reshape(T * B, H)
    if db_hn is None:
        device.matmul(dw_hh[2 * H :], rows[:, 2 * H :].T, hn)
    else:
        recurrent.state_gradient(device, dw_hh[2 * H :], hn, h0, y)
