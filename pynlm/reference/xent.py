"""Softmax cross-entropy of a linear map, written with the whole [N, V] table of logits.

Source: the definition; the maximum is taken out before exp, and stays apart from the logarithm of
the sum (adding the two first would lose the digits of the sum beside a large maximum).

    z = h W^T + b
    log p[n, v] = (z[n, v] - max_v z) - log sum_v exp(z[n, v] - max_v z)
    nll[n] = -log p[n, targets[n]]
    d nll[n] / d z[n, v] = p[n, v] - [v = targets[n]]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def xent_forward(*, nll: Array, h: Array, w: Array, b: Array | None = None, targets: Array) -> None:
    """Loss of every row; see `pynlm.kernels.xent_forward`."""
    log_p = _log_softmax(h, w, b)
    nll[...] = -log_p[np.arange(len(targets)), targets]


def xent_gradients(
    *,
    nll: Array,
    dh: Array,
    dw: Array,
    db: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    weights: Array | None = None,
) -> None:
    """Loss and gradients; see `pynlm.kernels.xent_gradients`."""
    rows = np.arange(len(targets))
    log_p = _log_softmax(h, w, b)
    nll[...] = -log_p[rows, targets]
    dz = np.exp(log_p)
    dz[rows, targets] -= 1
    if weights is not None:
        dz *= weights[:, None]
    dh[...] = dz @ w
    dw[...] = dz.T @ h
    if db is not None:
        db[...] = dz.sum(axis=0)


def xent_log_prob(*, log_prob: Array, h: Array, w: Array, b: Array | None = None) -> None:
    """Log-probabilities of every row; see `pynlm.kernels.xent_log_prob`."""
    log_prob[...] = _log_softmax(h, w, b)


def _log_softmax(h: Array, w: Array, b: Array | None) -> Array:
    z = h @ w.T
    if b is not None:
        z = z + b
    shifted = z - z.max(axis=1, keepdims=True)
    log_p: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p
