"""Training losses over sampled tokens, written with a whole [N, K] table of logits.

Source: importance sampling and sampled softmax: Bengio & Senecal, AISTATS 2003; Jean et al.,
arXiv:1412.2007, §3; noise-contrastive estimation: Gutmann & Hyvarinen, AISTATS 2010; Mnih & Teh,
arXiv:1206.6426, §3; negative sampling: Mikolov et al., arXiv:1310.4546, eq. 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def candidates_forward(
    *,
    loss: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    samples: Array,
    counts: Array | None = None,
    log_expected: Array | None = None,
    target_log_expected: Array | None = None,
    objective: str = "softmax",
    remove_hits: bool = True,
    temperature: float = 1.0,
) -> None:
    """Loss of every row; see `pynlm.kernels.candidates_forward`."""
    t, x = _logits(h, w, b, targets, samples, temperature, log_expected, target_log_expected)
    if objective == "softmax" and counts is not None:
        x = x + np.log(counts)
    _hide(x, targets, samples, remove_hits)
    loss[...] = _losses(t, x, counts, objective)[0]


def candidates_gradients(
    *,
    loss: Array,
    dh: Array,
    rows: Array,
    drows: Array,
    db: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    weights: Array | None = None,
    samples: Array,
    counts: Array | None = None,
    log_expected: Array | None = None,
    target_log_expected: Array | None = None,
    objective: str = "softmax",
    remove_hits: bool = True,
    temperature: float = 1.0,
) -> int:
    """Loss and gradients; see `pynlm.kernels.candidates_gradients`."""
    if not len(h):
        return 0
    t, x = _logits(h, w, b, targets, samples, temperature, log_expected, target_log_expected)
    if objective == "softmax" and counts is not None:
        x = x + np.log(counts)
    _hide(x, targets, samples, remove_hits)
    loss[...], dt, dx = _losses(t, x, counts, objective)
    factor = (1.0 if weights is None else weights) / temperature
    dt, dx = dt * factor, dx * np.reshape(factor, (-1, 1))
    dh[...] = dt[:, None] * w[targets] + dx @ w[samples]
    united = np.union1d(samples, targets)
    n = len(united)
    rows[:n] = united
    at, place = np.searchsorted(united, samples), np.searchsorted(united, targets)
    drows[:n] = 0
    drows[at] = dx.T @ h
    np.add.at(drows, place, dt[:, None] * h)
    if db is not None:
        db[:n] = 0
        db[at] = dx.sum(axis=0)
        np.add.at(db, place, dt)
    return n


def _logits(
    h: Array,
    w: Array,
    b: Array | None,
    targets: Array,
    samples: Array,
    temperature: float,
    log_expected: Array | None,
    target_log_expected: Array | None,
) -> tuple[Array, Array]:
    """Corrected logits of the targets [N] and the samples [N, K]."""
    t = (h * w[targets]).sum(axis=1)
    x = h @ w[samples].T
    if b is not None:
        t, x = t + b[targets], x + b[samples]
    t, x = t / temperature, x / temperature
    if target_log_expected is not None:
        t = t - target_log_expected
    if log_expected is not None:
        x = x - log_expected
    return t, x


def _hide(x: Array, targets: Array, samples: Array, remove_hits: bool) -> None:
    if remove_hits:
        x[samples[None, :] == targets[:, None]] = -np.inf


def _losses(t: Array, x: Array, counts: Array | None, objective: str) -> tuple[Array, Array, Array]:
    """Loss [N] and the gradients of t [N] and x [N, K]."""
    if objective == "logistic":
        m = np.ones(x.shape[1], x.dtype) if counts is None else counts
        loss = _softplus(-t) + (m * _softplus(x)).sum(axis=1)
        return loss, -_sigmoid(-t), m * _sigmoid(x)
    top = np.maximum(t, x.max(axis=1))
    e, mine = np.exp(x - top[:, None]), np.exp(t - top)
    others = e.sum(axis=1)
    total = others + mine
    return (top - t) + np.log(total), -others / total, e / total[:, None]


def _softplus(x: Array) -> Array:
    y: Array = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return y


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    s: Array = np.where(x < 0, e, 1) / (1 + e)
    return s
