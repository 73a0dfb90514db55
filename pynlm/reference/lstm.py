"""LSTM with PyTorch's gate order i, f, g, o.

Source: Hochreiter & Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997, with the
forget gate of Gers, Schmidhuber & Cummins, "Learning to forget", 2000, §3 (their φ, s and y are
f, c and h here; no peepholes). Layout of the weights: torch.nn.LSTM.

    a_t = W_ih x_t + W_hh h_{t-1} + b          pre-activations, rows i, f, g, o of height H
    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def lstm_forward(
    *,
    y: Array,
    h_last: Array,
    c_last: Array,
    gates: Array | None = None,
    c: Array | None = None,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    b: Array,
    lengths: Array | None = None,
) -> None:
    """Run an LSTM over time; see `pynlm.kernels.lstm_forward`."""
    T = x.shape[0]
    y[...] = 0
    h_last[...] = h0
    c_last[...] = c0
    for t in range(T):
        n = _rows_at(t, lengths, x.shape[1])  # rows 0..n-1 are still running
        a = x[t, :n] @ w_ih.T + h_last[:n] @ w_hh.T + b
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        c_t = f * c_last[:n] + i * g
        h_t = o * np.tanh(c_t)
        y[t, :n] = h_last[:n] = h_t
        c_last[:n] = c_t
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
    gates: Array,
    c: Array,
    y: Array,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    dy: Array,
    dh_last: Array | None = None,
    dc_last: Array | None = None,
    lengths: Array | None = None,
) -> None:
    """Back-propagate through `lstm_forward`; see `pynlm.kernels.lstm_backward`."""
    T, B, _ = x.shape
    if dx is not None:
        dx[...] = 0
    for gradient in (dw_ih, dw_hh, db):
        gradient[...] = 0
    # dh, dc: gradient with respect to the state after step t, of every row. A row that has not yet
    # been reached (t beyond its length) holds the gradient of its last state.
    dh = np.zeros_like(h0) if dh_last is None else dh_last.copy()
    dc = np.zeros_like(c0) if dc_last is None else dc_last.copy()
    for t in reversed(range(T)):
        n = _rows_at(t, lengths, B)
        i, f, g, o = np.split(gates[t, :n], 4, axis=1)
        h_prev = (y[t - 1] if t > 0 else h0)[:n]
        c_prev = (c[t - 1] if t > 0 else c0)[:n]
        tanh_c = np.tanh(c[t, :n])

        dh_t = dh[:n] + dy[t, :n]
        dc_t = dc[:n] + dh_t * o * (1 - tanh_c**2)
        da = np.concatenate(
            [
                dc_t * g * i * (1 - i),
                dc_t * c_prev * f * (1 - f),
                dc_t * i * (1 - g**2),
                dh_t * tanh_c * o * (1 - o),
            ],
            axis=1,
        )
        dw_ih += da.T @ x[t, :n]
        dw_hh += da.T @ h_prev
        db += da.sum(axis=0)
        if dx is not None:
            dx[t, :n] = da @ w_ih
        dh[:n] = da @ w_hh
        dc[:n] = dc_t * f
        gates[t, :n] = da
        gates[t, n:] = 0
    dh0[...] = dh
    dc0[...] = dc


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), without overflow and without losing the small values."""
    e = np.exp(-np.abs(a))
    value: Array = np.where(a >= 0, 1, e) / (1 + e)
    return value


def _rows_at(t: int, lengths: Array | None, B: int) -> int:
    """Rows that take part in step t; they come first because lengths do not increase."""
    return B if lengths is None else int(np.count_nonzero(lengths > t))
