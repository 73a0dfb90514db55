"""Simple recurrent network, tanh or relu.

Source: Elman, "Finding structure in time", Cognitive Science 14(2), 1990; layout: torch.nn.RNN.

    h_t = f(W_ih x_t + W_hh h_{t-1} + b),   f = tanh or relu
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .variant import StepNorm, clip_h, enters, keeps_h, mix, parts, unclip_h

if TYPE_CHECKING:
    from pynlm.kernels.variant import Variant

Array = npt.NDArray[Any]


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
    T, B, _ = x.shape
    y[...] = 0
    if h_in is not None:
        h_in[...] = 0
    h_last[...] = h0
    norms = StepNorm(ln_gates, norm, rstd)
    for t in range(T):
        n = _rows_at(t, lengths, B)  # rows 0..n-1 are still running
        h = h_last[:n]
        from_x = norms.forward(0, t, x[t, :n] @ w_ih.T)
        a = from_x + norms.forward(1, t, enters(mask_h, h) @ w_hh.T) + b
        d = keeps_h(variant, t, n, h)
        new = np.tanh(a) if nonlinearity == "tanh" else np.maximum(a, 0)
        y[t, :n] = mix(d, h, clip_h(variant, new))
        h_last[:n] = y[t, :n]
        if h_in is not None:
            h_in[t, :n] = enters(mask_h, y[t, :n])


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
    T, B, _ = x.shape
    if dx is not None:
        dx[...] = 0
    for gradient in (dw_ih, dw_hh, db, dln_gates):
        if gradient is not None:
            gradient[...] = 0
    dpre[...] = 0
    norms = StepNorm(ln_gates, norm, rstd)
    # Gradient of the state after step t; rows beyond their length hold that of their last state.
    dh = np.zeros_like(h0) if dh_last is None else dh_last.copy()
    for t in reversed(range(T)):
        n = _rows_at(t, lengths, B)
        h_prev = (y[t - 1] if t > 0 else h0)[:n]
        kept, dh_t = parts(keeps_h(variant, t, n, h_prev), dh[:n] + dy[t, :n])
        dh_t = unclip_h(variant, y[t, :n], dh_t)
        h_t = y[t, :n]  # f(a), but where zoneout kept the state, and dh_t is 0
        da = dh_t * (1 - h_t**2) if nonlinearity == "tanh" else np.where(h_t > 0, dh_t, 0)
        d_x, d_h = (norms.backward(k, t, da, dln_gates) for k in (0, 1))
        dw_ih += d_x.T @ x[t, :n]
        dw_hh += d_h.T @ enters(mask_h, h_prev)
        db += da.sum(axis=0)
        if dx is not None:
            dx[t, :n] = d_x @ w_ih
        dh[:n] = kept + enters(mask_h, d_h @ w_hh)
        dpre[t, :n] = da
    dh0[...] = dh


def _rows_at(t: int, lengths: Array | None, B: int) -> int:
    """Rows that take part in step t; they come first because lengths do not increase."""
    return B if lengths is None else int(np.count_nonzero(lengths > t))
