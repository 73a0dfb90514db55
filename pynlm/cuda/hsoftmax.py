"""Hierarchical softmax on a GPU."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import numpy as np

from ._columns import column_sum
from ._sorted import check_sortable, sort_ids, sum_sorted
from .device import Array, current

_SOURCE, _PREDICT = "softmax/hsoftmax.cu", "softmax/hsoftmax_predict.cu"
_WIDE_ROWS = 32  # a node of so many and more is wide (hsoftmax_node-inl.h)
_BLOCK_NUMBERS = 1 << 25  # logits of all nodes at a time
_THREADS = 128  # of the kernels that walk, a warp a row
_WARPS = _THREADS // 32


class _Shape(NamedTuple):
    """What of a tree decides sizes.

    Attributes
    ----------
    V, M
        Tokens and nodes.
    root
        Rows of the root if it is a product of all tokens, else 0.
    cost
        Most rows on any token's path, without those of such a root.
    """

    V: int
    M: int
    root: int
    cost: int


def hsoftmax_forward(
    *, nll: Array, h: Array, w: Array, b: Array | None = None, first: Array, parent: Array,
    targets: Array,
) -> None:  # fmt: skip
    """Loss of every row; see `pynlm.kernels.hsoftmax_forward`.

    Waits when it first meets a tree that may have nodes of 32 rows and more.
    """
    tree = _shape(first, parent, len(w) + 1)
    root_loss = None
    if tree.root:
        root_loss, _ = _root(tree, h, w, b, first, parent, targets, None, gradients=False)
    _paths(tree, nll, h, w, b, first, parent, targets, root_loss)


def hsoftmax_gradients(
    *, nll: Array, dh: Array, rows: Array, drows: Array, db: Array | None = None, h: Array,
    w: Array, b: Array | None = None, first: Array, parent: Array, targets: Array,
    weights: Array | None = None,
) -> int:  # fmt: skip
    """Loss, gradients and the number of rows; see `pynlm.kernels.hsoftmax_gradients`.

    Waits for the count.
    """
    if not len(h) or len(w) == 0:
        nll.fill(0)
        dh.fill(0)
        return 0
    found = _gradients(nll, dh, rows, drows, db, h, w, b, first, parent, targets, weights)
    count = int(found[0])
    if count > len(rows):
        raise ValueError(
            f"hsoftmax_gradients: rows must have room for the {count} rows on the targets' paths, "
            f"got {len(rows)}"
        )
    return count


def hsoftmax_gradients_dense(
    *, nll: Array, dh: Array, dw: Array, db: Array | None = None, h: Array, w: Array,
    b: Array | None = None, first: Array, parent: Array, targets: Array,
    weights: Array | None = None,
) -> None:  # fmt: skip
    """`hsoftmax_gradients` with the whole gradients dw [V - 1, H] and db [V - 1].

    Waits for the device only when it first meets a tree.
    """
    dw.fill(0)
    if db is not None:
        db.fill(0)
    if not len(h) or len(w) == 0:
        nll.fill(0)
        dh.fill(0)
        return
    _gradients(nll, dh, None, dw, db, h, w, b, first, parent, targets, weights)


def _gradients(
    nll: Array, dh: Array, rows: Array | None, dw: Array, db: Array | None, h: Array, w: Array,
    b: Array | None, first: Array, parent: Array, targets: Array, weights: Array | None,
) -> Array:  # fmt: skip
    """Into rows of dw [R, H], or those of w if `rows` is None; their number, int32 [1]."""
    device = current()
    tree = _shape(first, parent, len(w) + 1, measure=True)
    N, root = len(h), tree.root
    check_sortable(f"hsoftmax: {N} tokens with up to {tree.cost} nodes", N * tree.cost)
    distinct = device.empty((1,), np.int32)
    distinct.fill(root)
    root_loss = None
    if root:
        root_loss, dz = _root(tree, h, w, b, first, parent, targets, weights, gradients=True)
        device.matmul(dh, dz, w[:root])
        if root <= len(dw):
            device.matmul(dw[:root], dz.T, h)
            if db is not None:
                column_sum(db[:root], dz)
            if rows is not None:
                rows[:root] = device.xp.arange(root, dtype=np.int32)
    dz, met = device.empty((N, tree.cost), h.dtype), device.empty((N, tree.cost), np.int32)
    _paths(
        tree, nll, h, w, b, first, parent, targets, root_loss, weights=weights, dh=dh, rows=met,
        z=dz,
    )  # fmt: skip
    if tree.cost:
        sum_sorted(
            sort_ids(met.reshape(-1), tree.V), out=dw, x=h, factors=dz.reshape(-1), factor_sums=db,
            ids=rows, distinct=distinct, stride=tree.cost, limit=tree.V - 1, offset=root,
        )  # fmt: skip
    return distinct


def _root(
    tree: _Shape, h: Array, w: Array, b: Array | None, first: Array, parent: Array, targets: Array,
    weights: Array | None, *, gradients: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """The root's loss float64 [N], and its logits [N, root] or the gradients of them."""
    device = current()
    N = len(h)
    z, loss = device.empty((N, tree.root), h.dtype), device.empty((N,), np.float64)
    device.matmul(z, h, w[: tree.root].T)
    device.launch(
        _SOURCE, "hsoftmax_root", device.blocks_for(32 * N), real=h.dtype, loss=loss, z=z, b=b,
        first=first, parent=parent, targets=targets, weights=weights, N=N, R=tree.root, V=tree.V,
        M=tree.M, gradients=gradients,
    )  # fmt: skip
    return loss, z


def _paths(
    tree: _Shape, nll: Array, h: Array, w: Array, b: Array | None, first: Array, parent: Array,
    targets: Array, root_loss: Array | None, *, weights: Array | None = None,
    dh: Array | None = None, rows: Array | None = None, z: Array | None = None,
) -> None:  # fmt: skip
    device = current()
    N, H = h.shape
    blocks = device.blocks_for(32 * N, _THREADS)
    if rows is None and _may_be_wide(tree.V, tree.M):
        z = device.empty((blocks * _WARPS, tree.cost), h.dtype)
    device.launch(
        _SOURCE, "hsoftmax_paths", blocks, real=h.dtype, shared=_THREADS * (h.itemsize + 4),
        nll=nll, dh=dh, rows=rows, z=z, h=h, w=w, b=b, first=first, parent=parent, targets=targets,
        weights=weights, root_loss=root_loss, N=N, H=H, cost=tree.cost, V=tree.V, M=tree.M,
    )  # fmt: skip


def _may_be_wide(V: int, M: int) -> bool:
    """Whether a tree of M nodes may have a wide one: what all have beyond a row each."""
    return V - 1 - M >= _WIDE_ROWS - 1


# Shapes of the trees met, by the two arrays' ids; gone with either array.
_shapes: dict[tuple[int, int], _Shape] = {}


def _shape(first: Array, parent: Array, V: int, *, measure: bool = False) -> _Shape:
    """What the kernels need to know of a tree; without `measure` only what wide nodes need.

    Reads the tree when these two arrays are first met, for which it waits. They must not change
    after that.
    """
    M = len(first) - 1
    if V == 1 or not (measure or _may_be_wide(V, M)):
        return _Shape(V, M, 0, 0)
    key = id(first), id(parent)
    known = _shapes.get(key)
    if known is None or (known.V, known.M) != (V, M):
        known = _shapes[key] = _measured(first, parent, V, M)
        for array in (first, parent):
            weakref.finalize(array, _shapes.pop, key, None)
    return known


def _measured(first: Array, parent: Array, V: int, M: int) -> _Shape:
    device = current()
    rows = int(first[1]) - 1
    root = rows if rows >= _WIDE_ROWS else 0
    costs = device.empty((V,), np.int64)
    device.launch(
        _SOURCE, "hsoftmax_costs", device.blocks_for(V), costs=costs, first=first, parent=parent,
        V=V, M=M, skip_root=root > 0,
    )  # fmt: skip
    return _Shape(V, M, root, int(costs.max()))


def hsoftmax_log_prob(
    *, log_prob: Array, h: Array, w: Array, b: Array | None = None, first: Array, children: Array
) -> None:
    """Log-probabilities of every row; see `pynlm.kernels.hsoftmax_log_prob`."""
    device = current()
    N, V, M = len(h), len(w) + 1, len(first) - 1
    parent = device.empty((V + M, 2), np.int32)
    device.launch(
        _PREDICT, "hsoftmax_parents", device.blocks_for(V + M), real=h.dtype, parent=parent,
        first=first, children=children, V=V, M=M,
    )  # fmt: skip
    for n, some in _blocks(N, V):
        z = device.empty((some, V - 1), h.dtype)
        if V > 1:
            device.matmul(z, h[n : n + some], w.T)
        tops = device.empty((some, M), h.dtype)
        log_sums = device.empty((some, M), np.float64)
        device.launch(
            _PREDICT, "hsoftmax_norms", device.blocks_for(some * M), real=h.dtype, tops=tops,
            log_sums=log_sums, z=z, b=b, first=first, N=some, V=V, M=M,
        )  # fmt: skip
        device.launch(
            _PREDICT, "hsoftmax_log_probs", device.blocks_for(some * V), real=h.dtype,
            log_prob=log_prob[n : n + some], z=z, tops=tops, log_sums=log_sums, first=first,
            parent=parent, N=some, V=V, M=M,
        )  # fmt: skip


def hsoftmax_top_k(
    *, log_prob: Array, ids: Array, h: Array, w: Array, b: Array | None = None, first: Array,
    children: Array,
) -> None:  # fmt: skip
    """Most probable tokens of every row; see `pynlm.kernels.hsoftmax_top_k`."""
    device = current()
    V, K = len(w) + 1, ids.shape[1]
    for n, some in _blocks(len(h), V):
        rows = slice(n, n + some)
        everything = device.empty((some, V), h.dtype)
        hsoftmax_log_prob(log_prob=everything, h=h[rows], w=w, b=b, first=first, children=children)
        device.launch(
            _PREDICT, "hsoftmax_select", device.blocks_for(some, 1), real=h.dtype,
            shared=4 * (2 * 256 + 4), log_prob=log_prob[rows], ids=ids[rows],
            chosen=device.empty((some, K), np.int32), all=everything, N=some, V=V, K=K,
        )  # fmt: skip


def hsoftmax_sample(
    *, ids: Array, h: Array, w: Array, b: Array | None = None, first: Array, children: Array,
    seed: int, step: int, time: int = 0,
) -> None:  # fmt: skip
    """One token of every row; see `pynlm.kernels.hsoftmax_sample`."""
    device = current()
    V, M = len(w) + 1, len(first) - 1
    for n, some in _blocks(len(h), V):
        rows, z = slice(n, n + some), None
        if M != V - 1:
            z = device.empty((some, V - 1), h.dtype)
            device.matmul(z, h[rows], w.T)
        device.launch(
            _PREDICT, "hsoftmax_sample", device.blocks_for(32 * some, _THREADS), real=h.dtype,
            shared=32 * h.itemsize + 4 * _WARPS, ids=ids[rows], z=z, h=h[rows], w=w, b=b,
            first=first, children=children, N=some, H=h.shape[1], V=V, M=M, seed=seed, step=step,
            time=time, row0=n,
        )  # fmt: skip


def _blocks(N: int, V: int) -> list[tuple[int, int]]:
    """First row and number of rows of each block."""
    size = max(1, _BLOCK_NUMBERS // V)
    return [(n, min(size, N - n)) for n in range(0, N, size)]
