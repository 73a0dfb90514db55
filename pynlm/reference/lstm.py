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

Coupled gates (Greff et al., "LSTM: a search space odyssey", arXiv:1503.04069): rows i, g, o and
f = 1 - i. Projection (Sak, Senior & Beaufays, arXiv:1402.1128): h_t = W_hr (o * tanh(c_t)). Layer
norm (Ba, Kiros & Hinton, arXiv:1607.06450, eq. 20-22): N of both products and of c', see `variant`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .variant import (
    StepNorm,
    clip_h,
    enters,
    keeps_c,
    keeps_h,
    mix,
    normalise,
    normalise_backward,
    parts,
    unclip_h,
)

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
    T = x.shape[0]
    y[...] = 0
    for masked in (h_in, m):
        if masked is not None:
            masked[...] = 0
    coupled = _coupled(variant)
    p_i, p_f, p_o = _peephole(peephole, coupled)
    norms = StepNorm(ln_gates, norm, rstd)
    h_last[...] = h0
    c_last[...] = c0
    for t in range(T):
        n = _rows_at(t, lengths, x.shape[1])  # rows 0..n-1 are still running
        h_prev, c_prev = h_last[:n].copy(), c_last[:n].copy()
        from_x = norms.forward(0, t, x[t, :n] @ w_ih.T)
        a = from_x + norms.forward(1, t, enters(mask_h, h_prev) @ w_hh.T) + b
        a_i, *a_f, a_g, a_o = np.split(a, 3 if coupled else 4, axis=1)
        i = sigmoid(_see(a_i, p_i, c_prev))
        f = 1 - i if coupled else sigmoid(_see(a_f[0], p_f, c_prev))
        g = np.tanh(a_g)
        c_new = seen = _clip(f * c_prev + i * g, variant)
        if ln_cell is not None:
            normalised, scale = normalise(c_new)
            seen = normalised * ln_cell[0] + ln_cell[1]
            c_new = seen if variant is not None and variant.norm_state else c_new
            if norm_c is not None and rstd is not None:
                norm_c[t, :n], rstd[2, t, :n] = normalised, scale
        o = sigmoid(_see(a_o, p_o, c_new))
        out = o * np.tanh(seen)
        if m is not None:
            m[t, :n] = out
        h_new = out if w_hr is None else out @ w_hr.T
        d_h, d_c = keeps_h(variant, t, n, h_prev), keeps_c(variant, t, n, c_prev)
        h_t = mix(d_h, h_prev, clip_h(variant, h_new))
        c_t = mix(d_c, c_prev, c_new)
        y[t, :n] = h_last[:n] = h_t
        c_last[:n] = c_t
        if h_in is not None:
            h_in[t, :n] = enters(mask_h, h_t)
        if gates is not None:
            gates[t, :n] = np.concatenate([i, g, o] if coupled else [i, f, g, o], axis=1)
        if c is not None:
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
    T, B, _ = x.shape
    for gradient in (dx, dw_ih, dw_hh, db, dpeephole, dw_hr, dln_gates, dln_cell):
        if gradient is not None:
            gradient[...] = 0
    coupled, norm_state = _coupled(variant), variant is not None and variant.norm_state
    p_i, p_f, p_o = _peephole(peephole, coupled)
    norms = StepNorm(ln_gates, norm, rstd)
    # dh, dc: gradient with respect to the state after step t, of every row. A row that has not yet
    # been reached (t beyond its length) holds the gradient of its last state.
    dh = np.zeros_like(h0) if dh_last is None else dh_last.copy()
    dc = np.zeros_like(c0) if dc_last is None else dc_last.copy()
    for t in reversed(range(T)):
        n = _rows_at(t, lengths, B)
        i, *f_saved, g, o = np.split(gates[t, :n], 3 if coupled else 4, axis=1)
        f = 1 - i if coupled else f_saved[0]
        h_prev = (y[t - 1] if t > 0 else h0)[:n]
        c_prev = (c[t - 1] if t > 0 else c0)[:n]
        c_raw = f * c_prev + i * g
        if variant is None and ln_cell is None:
            c_raw = c[t, :n]  # else c is what clipping, layer norm and zoneout left of c'
        seen = c_new = c_clipped = _clip(c_raw, variant)
        if ln_cell is not None and norm_c is not None:
            seen = norm_c[t, :n] * ln_cell[0] + ln_cell[1]
            c_new = seen if norm_state else c_clipped
        d_h, d_c = keeps_h(variant, t, n, h_prev), keeps_c(variant, t, n, c_prev)

        dh_t = dh[:n] + dy[t, :n]
        dh_kept, dh_new = parts(d_h, dh_t)
        dh_new = unclip_h(variant, y[t, :n], dh_new)
        dc_kept, dc_new = parts(d_c, dc[:n])
        dm = dh_new
        if w_hr is not None and dw_hr is not None and m is not None:
            dw_hr += dh_new.T @ m[t, :n]
            dm = dh_new @ w_hr
        tanh_c = np.tanh(seen)
        da_o = dm * tanh_c * o * (1 - o)
        dseen = dm * o * (1 - tanh_c**2)
        dc_new = _see(dc_new, p_o, da_o)
        if ln_cell is None or dln_cell is None or norm_c is None or rstd is None:
            dc_new = dc_new + dseen
        else:
            if norm_state:
                dseen, dc_new = dseen + dc_new, np.zeros_like(dc_new)
            dln_cell += np.stack([(dseen * norm_c[t, :n]).sum(axis=0), dseen.sum(axis=0)])
            dc_new = dc_new + normalise_backward(dseen * ln_cell[0], norm_c[t, :n], rstd[2, t, :n])
        dc_new = np.where((c_raw < c_clipped) | (c_raw > c_clipped), 0, dc_new)
        da_g = dc_new * i * (1 - g**2)
        if coupled:
            da_i = dc_new * (g - c_prev) * i * (1 - i)
            da = np.concatenate([da_i, da_g, da_o], axis=1)
            seen_by = [da_i * c_prev, da_o * c_new]
            dc_prev = _see(dc_new * f, p_i, da_i)
        else:
            da_i = dc_new * g * i * (1 - i)
            da_f = dc_new * c_prev * f * (1 - f)
            da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
            seen_by = [da_i * c_prev, da_f * c_prev, da_o * c_new]
            dc_prev = _see(_see(dc_new * f, p_i, da_i), p_f, da_f)
        db += da.sum(axis=0)
        if dpeephole is not None:
            dpeephole += np.concatenate(seen_by, axis=1).sum(axis=0)
        d_x, d_h_product = (norms.backward(k, t, da, dln_gates) for k in (0, 1))
        dw_ih += d_x.T @ x[t, :n]
        dw_hh += d_h_product.T @ enters(mask_h, h_prev)
        if dx is not None:
            dx[t, :n] = d_x @ w_ih
        dh[:n] = enters(mask_h, d_h_product @ w_hh) + dh_kept
        dc[:n] = dc_prev + dc_kept
        gates[t, :n] = da
        gates[t, n:] = 0
    dh0[...] = dh
    dc0[...] = dc


def _coupled(variant: Variant | None) -> bool:
    return variant is not None and variant.coupled


def _peephole(peephole: Array | None, coupled: bool) -> Sequence[Array | float]:
    """p_i, p_f, p_o."""
    if peephole is None:
        return (0.0, 0.0, 0.0)
    if coupled:
        p_i, p_o = np.split(peephole, 2)
        return (p_i, 0.0, p_o)
    return np.split(peephole, 3)


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
