"""Simple recurrent network over a whole sequence on a GPU."""

from __future__ import annotations

from pynlm.kernels.variant import Variant

from . import recurrent
from ._columns import column_sum
from .device import Array, current
from .division import Part, divide

_PLAIN, _GENERAL = "recurrent/rnn.cu", "recurrent/rnn_general.cu"


def rnn_forward(
    *,
    y: Array,
    h_last: Array,
    h_in: Array | None = None,
    norm: Array | None = None,
    rstd: Array | None = None,
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    b: Array,
    ln_gates: Array | None = None,
    mask_h: Array | None = None,
    nonlinearity: str,
    lengths: Array | None = None,
    variant: Variant | None = None,
) -> None:
    """Run a simple recurrent network over time; see `pynlm.kernels.rnn_forward`."""
    device, dtype = current(), x.dtype
    (T, B, I), H = x.shape, h0.shape[1]
    if T * B == 0:
        h_last[...] = h0
        return
    device.matmul(y.reshape(T * B, H), x.reshape(T * B, I), w_ih.T)
    common = {
        "y": y, "h_last": h_last, "h0": h0, "w_hh": w_hh, "b": b, "lengths": lengths,
        "T": T, "B": B, "H": H, "relu": nonlinearity == "relu",
    }  # fmt: skip
    plain = recurrent.is_plain(variant, mask_h, ln_gates)
    division = divide(device, B, x.itemsize, Part(H, 1, H), plain=plain, norms=ln_gates is not None)
    if plain:
        division.launch(device, _PLAIN, "rnn_forward", dtype, **common)
        return
    if ln_gates is not None:
        recurrent.normalise_inputs(device, y, norm, rstd, ln_gates[0], b)
        common["b"] = None
        if norm is None:
            norm = device.empty((B, H), dtype)
    division.launch(
        device, _GENERAL, "rnn_general_forward", dtype,
        h_in=h_in, norm=norm, rstd=rstd, ln_gates=ln_gates, mask_h=mask_h,
        **recurrent.variant_arguments(variant or Variant()), **common,
    )  # fmt: skip


def rnn_backward(
    *,
    dx: Array | None = None,
    dh0: Array,
    dw_ih: Array,
    dw_hh: Array,
    db: Array,
    dln_gates: Array | None = None,
    dpre: Array,
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
    nonlinearity: str,
    lengths: Array | None = None,
    variant: Variant | None = None,
) -> None:
    """Back-propagate through `rnn_forward`; see `pynlm.kernels.rnn_backward`."""
    device, dtype = current(), x.dtype
    (T, B, _), H = x.shape, h0.shape[1]
    recurrent.start_gradient(dh0, dh_last)
    gate_sums = None if ln_gates is None else device.zeros((B, H), dtype)
    if T * B:
        common = {
            "dh0": dh0, "dpre": dpre, "y": y, "w_hh": w_hh, "dy": dy, "lengths": lengths,
            "T": T, "B": B, "H": H, "relu": nonlinearity == "relu",
        }  # fmt: skip
        plain, part = recurrent.is_plain(variant, mask_h, ln_gates), Part(H, 1, H, of_unit=1)
        division = divide(device, B, x.itemsize, part, plain=plain, norms=ln_gates is not None)
        if plain:
            division.launch(device, _PLAIN, "rnn_backward", dtype, **common)
        else:
            division.launch(
                device, _GENERAL, "rnn_general_backward", dtype,
                norm=norm, rstd=rstd, ln_gates=ln_gates, mask_h=mask_h,
                rec=device.zeros((B, H), dtype), dln_gates=gate_sums,
                **recurrent.variant_arguments(variant or Variant()), **common,
            )  # fmt: skip
    column_sum(db, dpre.reshape(T * B, H))
    d_x = d_h = dpre
    if dln_gates is not None:
        d_x, d_h = recurrent.norm_gradients(
            device, dln_gates, gate_sums, dpre, norm, rstd, ln_gates, lengths
        )
    if mask_h is not None:
        h0, y = h0 * mask_h, h_in
    recurrent.input_gradients(device, dx, dw_ih, d_x, x, w_ih, lengths)
    recurrent.state_gradient(device, dw_hh, d_h.reshape(T * B, H), h0, y)
