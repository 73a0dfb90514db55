"""Softmax cross-entropy of a linear map, written with the whole [N, V] table of logits.

Source: the definition; the maximum is taken out before exp, and stays apart from the logarithm of
the sum (adding the two first would lose the digits of the sum beside a large maximum). Label
smoothing: Szegedy et al., arXiv:1512.00567, §7; z-loss: Chowdhery et al., "PaLM",
arXiv:2204.02311, §5.

    z = (h W^T + b) / temperature
    log p[n, v] = (z[n, v] - max_v z) - log sum_v exp(z[n, v] - max_v z)
    nll[n] = -log p[n, targets[n]]
    loss[n] = (1 - e) nll[n] + e mean_v(-log p[n, v]) + z_loss (log sum_v exp z[n, v])^2
    d loss[n] / d z[n, v] = (1 + 2 z_loss log Z[n]) p[n, v] - (1 - e) [v = targets[n]] - e / V

The gradient filter, an approximation: Wijmans et al., "Cut your losses", arXiv:2411.09009, §4.3,
for whole words of a block of tokens.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .philox import SAMPLE, words

Array = npt.NDArray[Any]


def xent_forward(
    *,
    nll: Array,
    loss: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
) -> None:
    """Loss of every row; see `pynlm.kernels.xent_forward`."""
    z = _logits(h, w, b, temperature)
    _losses(z, nll, loss, targets, label_smoothing, z_loss)


def xent_gradients(
    *,
    nll: Array,
    loss: Array | None = None,
    dh: Array,
    dw: Array,
    db: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    weights: Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    gradient_filter: float = 0.0,
) -> None:
    """Loss and gradients; see `pynlm.kernels.xent_gradients`."""
    z = _logits(h, w, b, temperature)
    log_p = _losses(z, nll, loss, targets, label_smoothing, z_loss)
    dz = np.exp(log_p)
    kept = _kept(dz, targets, gradient_filter)
    if z_loss:
        dz *= 1 + 2 * z_loss * _log_z(z)[:, None]
    dz[np.arange(len(targets)), targets] -= 1 - label_smoothing
    dz -= label_smoothing / len(w)
    dz[~kept] = 0
    if weights is not None:
        dz *= weights[:, None]
    dz /= temperature
    dh[...] = dz @ w
    dw[...] = dz.T @ h
    if db is not None:
        db[...] = dz.sum(axis=0)


def xent_log_prob(
    *, log_prob: Array, h: Array, w: Array, b: Array | None = None, temperature: float = 1.0
) -> None:
    """Log-probabilities of every row; see `pynlm.kernels.xent_log_prob`."""
    log_prob[...] = _log_softmax(_logits(h, w, b, temperature))


def xent_top_k(
    *,
    log_prob: Array,
    ids: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    temperature: float = 1.0,
) -> None:
    """The most probable tokens of every row; see `pynlm.kernels.xent_top_k`."""
    z = _logits(h, w, b, temperature)
    ids[...] = np.argsort(-z, axis=1, kind="stable")[:, : ids.shape[1]]
    log_prob[...] = np.take_along_axis(_log_softmax(z), ids.astype(np.intp), axis=1)


def xent_sample(
    *,
    ids: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    rows: Array | None = None,
    seed: int,
    step: int,
    time: int = 0,
    layer: int = 0,
    temperature: float = 1.0,
) -> None:
    """One token drawn for every row; see `pynlm.kernels.xent_sample`."""
    p = np.exp(_log_softmax(_logits(h, w, b, temperature)))
    rows = np.arange(len(h)) if rows is None else rows
    drawn = words([time], rows, 2, site=SAMPLE, layer=layer, seed=seed, step=step)[0]
    u = ((drawn[:, 0] >> 5) * 2.0**26 + (drawn[:, 1] >> 6)) * 2.0**-53
    for n, row in enumerate(p):
        cumulative = np.cumsum(row)
        found = np.searchsorted(cumulative, u[n] * cumulative[-1], side="right")
        ids[n] = -1 if np.isnan(cumulative[-1]) else min(int(found), len(w) - 1)


def xent_entropy(
    *, entropy: Array, h: Array, w: Array, b: Array | None = None, temperature: float = 1.0
) -> None:
    """Entropy of every row; see `pynlm.kernels.xent_entropy`."""
    log_p = _log_softmax(_logits(h, w, b, temperature))
    p = np.exp(log_p)
    entropy[...] = -(p * np.where(p == 0, 0, log_p)).sum(axis=1)


def _logits(h: Array, w: Array, b: Array | None, temperature: float) -> Array:
    z: Array = h @ w.T
    if b is not None:
        z = z + b
    return z / temperature


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    log_p: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p


def _log_z(z: Array) -> Array:
    top = z.max(axis=1)
    log_z: Array = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    return log_z


def _kept(p: Array, targets: Array, bound: float) -> npt.NDArray[np.bool_]:
    """[N, V]: which gradients a filter leaves."""
    kept: npt.NDArray[np.bool_] = np.ones(p.shape, np.bool_)
    if bound > 0 and len(p):
        size = math.ceil(len(p) / math.ceil(len(p) / 128))
        for first in range(0, len(p), size):
            rows = slice(first, first + size)
            words: npt.NDArray[np.bool_] = np.any(p[rows] >= bound, axis=0)
            words[targets[rows]] = True
            kept[rows] = words
    return kept


def _losses(
    z: Array, nll: Array, loss: Array | None, targets: Array, label_smoothing: float, z_loss: float
) -> Array:
    """Write nll and loss, return log p."""
    log_p = _log_softmax(z)
    nll[...] = -log_p[np.arange(len(targets)), targets]
    if loss is not None:
        loss[...] = nll
        if label_smoothing:
            loss[...] = (1 - label_smoothing) * nll - label_smoothing * log_p.mean(axis=1)
        if z_loss:
            loss += z_loss * _log_z(z) ** 2
    return log_p
