"""GRU with the reset gate applied after the recurrent product (PyTorch's and cuDNN's form).

Source: Cho et al., "Learning phrase representations using RNN encoder-decoder", arXiv:1406.1078v1,
eq. 5-8 (v3 applies the reset gate before the product); the update convention is torch.nn.GRU's: z
keeps the old state. Gate order r, z, n.

    r = sigmoid(W_ir x + W_hr h + b_r)
    z = sigmoid(W_iz x + W_hz h + b_z)
    hn = W_hn h + b_hn
    n = tanh(W_in x + b_n + r * hn)
    h' = (1 - z) * n + z * h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .variant import StepNorm, clip_h, enters, keeps_h, mix, parts, unclip_h

if TYPE_CHECKING:
    from pynlm.kernels.variant import Variant

Array = npt.NDArray[Any]


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
    T, B, _ = x.shape
    H = h0.shape[1]
    y[...] = 0
    if h_in is not None:
        h_in[...] = 0
    h_last[...] = h0
    norms = StepNorm(ln_gates, norm, rstd)
    for t in range(T):
        m = _rows_at(t, lengths, B)  # rows 0..m-1 are still running
        h = h_last[:m]
        from_x = norms.forward(0, t, x[t, :m] @ w_ih.T) + b
        from_h = norms.forward(1, t, enters(mask_h, h) @ w_hh.T)
        r = sigmoid(from_x[:, :H] + from_h[:, :H])
        z = sigmoid(from_x[:, H : 2 * H] + from_h[:, H : 2 * H])
        if b_hn is None:  # reset before the product
            hn_t = r * enters(mask_h, h)
            n = np.tanh(from_x[:, 2 * H :] + hn_t @ w_hh[2 * H :].T)
        else:
            hn_t = from_h[:, 2 * H :] + b_hn
            n = np.tanh(from_x[:, 2 * H :] + r * hn_t)
        d = keeps_h(variant, t, m, h)
        y[t, :m] = mix(d, h, clip_h(variant, (1 - z) * n + z * h))
        h_last[:m] = y[t, :m]
        if h_in is not None:
            h_in[t, :m] = enters(mask_h, y[t, :m])
        if gates is not None and hn is not None:
            gates[t, :m] = np.concatenate([r, z, n], axis=1)
            hn[t, :m] = hn_t


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
    T, B, _ = x.shape
    if dx is not None:
        dx[...] = 0
    for gradient in (dw_ih, dw_hh, db, db_hn, dln_gates):
        if gradient is not None:
            gradient[...] = 0
    H = h0.shape[1]
    norms = StepNorm(ln_gates, norm, rstd)
    # Gradient of the state after step t; rows beyond their length hold that of their last state.
    dh = np.zeros_like(h0) if dh_last is None else dh_last.copy()
    for t in reversed(range(T)):
        m = _rows_at(t, lengths, B)
        r, z, n = np.split(gates[t, :m], 3, axis=1)
        h_prev = (y[t - 1] if t > 0 else h0)[:m]

        kept, dh_t = parts(keeps_h(variant, t, m, h_prev), dh[:m] + dy[t, :m])
        dh_t = unclip_h(variant, y[t, :m], dh_t)
        da_z = dh_t * (h_prev - n) * z * (1 - z)
        da_n = dh_t * (1 - z) * (1 - n**2)
        h = enters(mask_h, h_prev)
        if db_hn is None:  # reset before the product
            drh = da_n @ w_hh[2 * H :]
            da_r = drh * h * r * (1 - r)
            da_rz = np.concatenate([da_r, da_z], axis=1)
            dw_hh[: 2 * H] += da_rz.T @ h
            dw_hh[2 * H :] += da_n.T @ hn[t, :m]
            dh_in = drh * r + da_rz @ w_hh[: 2 * H]
            hn[t, m:] = 0
        else:
            da_r = da_n * hn[t, :m] * r * (1 - r)
            dhn = da_n * r
            through_h = np.concatenate([da_r, da_z, dhn], axis=1)
            through_h = norms.backward(1, t, through_h, dln_gates)
            dw_hh += through_h.T @ h
            db_hn += dhn.sum(axis=0)
            dh_in = through_h @ w_hh
            hn[t, :m] = dhn
            hn[t, m:] = 0
        da = np.concatenate([da_r, da_z, da_n], axis=1)
        through_x = norms.backward(0, t, da, dln_gates)
        dw_ih += through_x.T @ x[t, :m]
        db += da.sum(axis=0)
        if dx is not None:
            dx[t, :m] = through_x @ w_ih
        dh[:m] = kept + dh_t * z + enters(mask_h, dh_in)
        gates[t, :m] = da
        gates[t, m:] = 0
    dh0[...] = dh


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), without overflow and without losing the small values."""
    e = np.exp(-np.abs(a))
    value: Array = np.where(a >= 0, 1, e) / (1 + e)
    return value


def _rows_at(t: int, lengths: Array | None, B: int) -> int:
    """Rows that take part in step t; they come first because lengths do not increase."""
    return B if lengths is None else int(np.count_nonzero(lengths > t))
