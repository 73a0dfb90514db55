"""Hierarchical softmax, node by node along each path.

Source: Morin & Bengio, "Hierarchical probabilistic neural network language model" (AISTATS 2005),
eq. 2; Huffman trees: Mikolov et al., arXiv:1310.4546, §2.1; classes: Goodman, arXiv:cs/0108006, §3.

    log p(v) = sum of log p(c | m) over the nodes m on the path to v and the children c taken
    log p(c | m) = z[c] - logsumexp(z),  z[0] = 0,  z[c] = h w[r]^T + b[r] for c >= 1,
    with r = first[m] - m + c - 1: a node of k children has k - 1 rows
    d nll / d z[c] = p(c | m) - [c taken]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .philox import SAMPLE, philox_4x32

Array = npt.NDArray[Any]


def hsoftmax_forward(
    *, nll: Array, h: Array, w: Array, b: Array | None = None, first: Array, parent: Array,
    targets: Array,
) -> None:  # fmt: skip
    """Loss of every row; see `pynlm.kernels.hsoftmax_forward`."""
    for n, target in enumerate(targets):
        nll[n] = -sum(
            _log_softmax(h[n], w, b, rows)[child] for rows, child in _path(first, parent, target, w)
        )


def hsoftmax_gradients(
    *, nll: Array, dh: Array, rows: Array, drows: Array, db: Array | None = None, h: Array,
    w: Array, b: Array | None = None, first: Array, parent: Array, targets: Array,
    weights: Array | None = None,
) -> int:  # fmt: skip
    """Loss, gradients and the number of rows; see `pynlm.kernels.hsoftmax_gradients`."""
    dw, db_all, met = np.zeros_like(w), np.zeros_like(w[:, :1]), np.zeros(len(w), bool)
    for n, target in enumerate(targets):
        nll[n], dh[n] = 0, 0
        for own, child in _path(first, parent, target, w):
            log_p = _log_softmax(h[n], w, b, own)
            nll[n] -= log_p[child]
            dz = np.exp(log_p)
            # 1 - p as the sum of the others, which keeps its digits where p is almost 1
            dz[child] = -np.delete(dz, child).sum()
            dz = dz[1:] * (1 if weights is None else weights[n])
            dh[n] += dz @ w[own]
            dw[own] += dz[:, None] * h[n]
            db_all[own, 0] += dz
            met[own] = True
    found = np.flatnonzero(met)
    rows[: len(found)] = found
    drows[: len(found)] = dw[found]
    if db is not None:
        db[: len(found)] = db_all[found, 0]
    return len(found)


def hsoftmax_log_prob(
    *, log_prob: Array, h: Array, w: Array, b: Array | None = None, first: Array, children: Array
) -> None:
    """Log-probabilities of every row; see `pynlm.kernels.hsoftmax_log_prob`."""
    vocabulary, nodes = len(w) + 1, len(first) - 1
    for n in range(len(h)):
        log_p = np.zeros(vocabulary + nodes, h.dtype)  # of all entries, tokens first
        for m in range(nodes):
            below = children[first[m] : first[m + 1]]
            log_p[below] = log_p[vocabulary + m] + _log_softmax(h[n], w, b, _rows(first, m))
        log_prob[n] = log_p[:vocabulary]


def hsoftmax_top_k(
    *, log_prob: Array, ids: Array, h: Array, w: Array, b: Array | None = None, first: Array,
    children: Array,
) -> None:  # fmt: skip
    """Most probable tokens of every row; see `pynlm.kernels.hsoftmax_top_k`."""
    everything = np.empty((len(h), len(w) + 1), h.dtype)
    hsoftmax_log_prob(log_prob=everything, h=h, w=w, b=b, first=first, children=children)
    ids[...] = np.argsort(-everything, axis=1, kind="stable")[:, : ids.shape[1]]
    log_prob[...] = np.take_along_axis(everything, ids.astype(np.intp), axis=1)


def hsoftmax_sample(
    *, ids: Array, h: Array, w: Array, b: Array | None = None, first: Array, children: Array,
    seed: int, step: int, time: int = 0,
) -> None:  # fmt: skip
    """One token of every row; see `pynlm.kernels.hsoftmax_sample`."""
    vocabulary = len(w) + 1
    for n in range(len(h)):
        entry, depth = vocabulary if vocabulary > 1 else 0, 0
        while entry >= vocabulary:
            m = entry - vocabulary
            word0, word1, _, _ = philox_4x32(depth, n, time, SAMPLE << 16, seed, step)
            u = ((int(word0) >> 5) * 2**26 + (int(word1) >> 6)) * 2.0**-53
            p = np.exp(_log_softmax(h[n], w, b, _rows(first, m)))
            if not np.isfinite(p).all():
                entry = -1
                break
            entry = int(children[first[m] + np.searchsorted(np.cumsum(p), u * p.sum(), "right")])
            depth += 1
        ids[n] = entry


def _rows(first: Array, m: int) -> slice:
    """The rows of w that node m has."""
    return slice(int(first[m]) - m, int(first[m + 1]) - m - 1)


def _path(first: Array, parent: Array, target: int, w: Array) -> Iterator[tuple[slice, int]]:
    """Rows of each node on the way up from a token, and the child taken there."""
    entry = int(target)
    while parent[entry, 0] >= 0:
        m, child = int(parent[entry, 0]), int(parent[entry, 1])
        yield _rows(first, m), child
        entry = len(w) + 1 + m


def _log_softmax(h: Array, w: Array, b: Array | None, rows: slice) -> Array:
    z = np.concatenate([np.zeros(1, h.dtype), w[rows] @ h + (0 if b is None else b[rows])])
    if len(z) == 2:  # logistic: exact however far apart the two are
        over = z[::-1] - z
        log_p: Array = -(np.maximum(over, 0) + np.log1p(np.exp(-abs(over))))
        return log_p
    shifted = z - z.max()
    return shifted - np.log(np.exp(shifted).sum())
