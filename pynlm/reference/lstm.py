"""LSTM with PyTorch's gate order i, f, g, o.

Source: Hochreiter & Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997, with the
forget gate of Gers, Schmidhuber & Cummins, "Learning to forget", 2000, §3 (their φ, s and y are
f, c and h here; no peepholes). Layout of the weights: torch.nn.LSTM.

    a_t = W_ih x_t + W_hh h_{t-1} + b          pre-activations, rows i, f, g, o of height H
    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)

With peephole weights p (Gers, Schraudolph & Schmidhuber, "Learning precise timing with LSTM
recurrent networks", 2002, eq. 5-8) and clipping, c' being c_t before zoneout:

    a_i += p_i * c_{t-1};  a_f += p_f * c_{t-1};  a_o += p_o * c'
    c' = min(max(f * c_{t-1} + i * g, -clip_c), clip_c)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .variant import enters, keeps_c, keeps_h, mix, parts

if TYPE_CHECKING:
    from pynlm.kernels.variant import Variant

Array = npt.NDArray[Any]


def lstm_forward(
    *,
    y: Array,
    h_last: Array,
    c_last: Array,
    gates: Array | None = None,
    c: Array | None = None,
    h_in: Array | None = None,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    b: Array,
    peephole: Array | None = None,
    mask_h: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
) -> None:
    """Run an LSTM over time; see `pynlm.kernels.lstm_forward`."""
    T = x.shape[0]
    y[...] = 0
    if h_in is not None:
        h_in[...] = 0
    p_i, p_f, p_o = _peephole(peephole)
    h_last[...] = h0
    c_last[...] = c0
    for t in range(T):
        n = _rows_at(t, lengths, x.shape[1])  # rows 0..n-1 are still running
        h_prev, c_prev = h_last[:n].copy(), c_last[:n].copy()
        a = x[t, :n] @ w_ih.T + enters(mask_h, h_prev) @ w_hh.T + b
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
        i, f = sigmoid(_see(a_i, p_i, c_prev)), sigmoid(_see(a_f, p_f, c_prev))
        g = np.tanh(a_g)
        c_new = _clip(f * c_prev + i * g, variant)
        o = sigmoid(_see(a_o, p_o, c_new))
        d_h, d_c = keeps_h(variant, t, n, h_prev), keeps_c(variant, t, n, h_prev)
        h_t = mix(d_h, h_prev, o * np.tanh(c_new))
        c_t = mix(d_c, c_prev, c_new)
        y[t, :n] = h_last[:n] = h_t
        c_last[:n] = c_t
        if h_in is not None:
            h_in[t, :n] = enters(mask_h, h_t)
        if gates is not None and c is not None:
            gates[t, :n] = np.concatenate([i, f, g, o], axis=1)
            c[t, :n] = c_t


def lstm_backward(
    *,
    dx: Array | None = None,
    dh0: Array,
    dc0: Array,
    dw_ih: Array,
    dw_hh: Array,
    db: Array,
    dpeephole: Array | None = None,
    gates: Array,
    c: Array,
    h_in: Array | None = None,
    y: Array,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    peephole: Array | None = None,
    mask_h: Array | None = None,
    dy: Array,
    dh_last: Array | None = None,
    dc_last: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
) -> None:
    """Back-propagate through `lstm_forward`; see `pynlm.kernels.lstm_backward`."""
    T, B, _ = x.shape
    if dx is not None:
        dx[...] = 0
    for gradient in (dw_ih, dw_hh, db) if dpeephole is None else (dw_ih, dw_hh, db, dpeephole):
        gradient[...] = 0
    p_i, p_f, p_o = _peephole(peephole)
    # dh, dc: gradient with respect to the state after step t, of every row. A row that has not yet
    # been reached (t beyond its length) holds the gradient of its last state.
    dh = np.zeros_like(h0) if dh_last is None else dh_last.copy()
    dc = np.zeros_like(c0) if dc_last is None else dc_last.copy()
    for t in reversed(range(T)):
        n = _rows_at(t, lengths, B)
        i, f, g, o = np.split(gates[t, :n], 4, axis=1)
        h_prev = (y[t - 1] if t > 0 else h0)[:n]
        c_prev = (c[t - 1] if t > 0 else c0)[:n]
        c_raw = c_new = c[t, :n]
        if variant is not None:  # then c is what clipping and zoneout left of c'
            c_raw = f * c_prev + i * g
            c_new = _clip(c_raw, variant)
        tanh_c = np.tanh(c_new)
        d_h, d_c = keeps_h(variant, t, n, h_prev), keeps_c(variant, t, n, h_prev)

        dh_t = dh[:n] + dy[t, :n]
        dh_kept, dh_new = parts(d_h, dh_t)
        dc_kept, dc_new = parts(d_c, dc[:n])
        da_o = dh_new * tanh_c * o * (1 - o)
        dc_new = dc_new + _see(dh_new * o * (1 - tanh_c**2), p_o, da_o)
        dc_new = np.where((c_raw < c_new) | (c_raw > c_new), 0, dc_new)
        da_i = dc_new * g * i * (1 - i)
        da_f = dc_new * c_prev * f * (1 - f)
        da = np.concatenate([da_i, da_f, dc_new * i * (1 - g**2), da_o], axis=1)
        dw_ih += da.T @ x[t, :n]
        dw_hh += da.T @ enters(mask_h, h_prev)
        db += da.sum(axis=0)
        if dpeephole is not None:
            dpeephole += np.concatenate([da_i * c_prev, da_f * c_prev, da_o * c_new], 1).sum(0)
        if dx is not None:
            dx[t, :n] = da @ w_ih
        dh[:n] = enters(mask_h, da @ w_hh) + dh_kept
        dc[:n] = _see(_see(dc_new * f, p_i, da_i), p_f, da_f) + dc_kept
        gates[t, :n] = da
        gates[t, n:] = 0
    dh0[...] = dh
    dc0[...] = dc


def _peephole(peephole: Array | None) -> Sequence[Array | float]:
    return (0.0, 0.0, 0.0) if peephole is None else np.split(peephole, 3)


def _see(a: Array, p: Array | float, c: Array) -> Array:
    """a + p c; a itself without peephole weights, whatever c."""
    return a if isinstance(p, float) else a + p * c


def _clip(c: Array, variant: Variant | None) -> Array:
    bound = 0.0 if variant is None else variant.clip_c
    return np.clip(c, -bound, bound) if bound > 0 else c


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), without overflow and without losing the small values."""
    e = np.exp(-np.abs(a))
    value: Array = np.where(a >= 0, 1, e) / (1 + e)
    return value


def _rows_at(t: int, lengths: Array | None, B: int) -> int:
    """Rows that take part in step t; they come first because lengths do not increase."""
    return B if lengths is None else int(np.count_nonzero(lengths > t))
