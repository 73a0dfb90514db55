"""Hierarchical softmax: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import INT32, UINT32_MAX, Array, check, check_ids, check_integer, describe

from ._backend import function


def hsoftmax_forward(
    *,
    nll: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    first: Array,
    parent: Array,
    targets: Array,
    backend: str | None = None,
) -> None:
    """nll[n] = -log p(targets[n]), the product of the children's probabilities on its path.

    A node of k + 1 children has k rows of w; with z[0] = 0 and z[c] = h[n] w[r_c]^T + b[r_c]::

        log p(child c of node m) = z[c] - log sum_i exp(z[i]),  r_c = first[m] - m + c - 1

    so a node of one row is a logistic unit, and a tree over V tokens has V - 1 rows in all,
    whatever its form.

    Parameters
    ----------
    nll : [N], output
        Negative log-probability of each target, in nats.
    h : [N, H]
    w : [R, H], b : [R] or None
        R = V - 1.
    first : int32 [M + 1]
        Node m's children are numbers first[m] to first[m + 1] - 1 of all children, two or more.
    parent : int32 [V + M, 2]
        Of each token (v) and each node (V + m): its parent's number m, which is smaller than its
        own, and which of the children it is. Node 0 is the root; the root's entry is -1, -1.
    targets : int32 [N]
        0 to V - 1.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array or has another dtype.
    ValueError
        Shape or layout; the paths met do not lead to the root (cpu); `first` has other ends.
    IndexError
        A target outside [0, V).

    Notes
    -----
    Source: Morin & Bengio, AISTATS 2005, eq. 2. The logarithms of logistic units are exact, without
    a table or a limit.

    Examples
    --------
    >>> import numpy as np
    >>> tree = {"first": np.array([0, 2], np.int32),
    ...         "parent": np.array([[0, 0], [0, 1], [-1, -1]], np.int32)}
    >>> nll, targets = np.empty(2), np.array([0, 1], np.int32)
    >>> hsoftmax_forward(nll=nll, h=np.ones((2, 1)), w=np.full((1, 1), np.log(3)), **tree,
    ...                  targets=targets)
    >>> np.exp(-nll).round(6)
    array([0.25, 0.75])
    """
    f = "hsoftmax_forward"
    d = _check_inputs(f, h, w, b, first, parent=parent)
    check(targets, "N", d, func=f, name="targets", dtype=INT32)
    check(nll, "N", d, func=f, name="nll", out=True)
    check_ids(targets, d["V"], func=f, name="targets")
    function(f, backend, d)(nll=nll, h=h, w=w, b=b, first=first, parent=parent, targets=targets)


def hsoftmax_gradients(
    *,
    nll: Array,
    dh: Array,
    rows: Array,
    drows: Array,
    db: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    first: Array,
    parent: Array,
    targets: Array,
    weights: Array | None = None,
    backend: str | None = None,
) -> int:
    """The loss of `hsoftmax_forward`, and the gradients of sum_n weights[n] * nll[n].

    At each node of a path, with p the probabilities of its children::

        dz[c] = weights[n] * (p[c] - [c on the path]);  dh = sum dz[c] w[r_c];  dw[r_c] = dz[c] h

    Parameters
    ----------
    nll : [N], output
        Negative log-probability of each target, in nats, not weighted.
    dh : [N, H], output
    rows : int32 [P], output
        Rows of the nodes on any path, rising, once each; the gradient of all others is 0.
    drows : [P, H], output
        Gradients of these rows of w.
    db : [P] or None, output
        Gradients of these elements of b.
    h, w, b, first, parent, targets
        As `hsoftmax_forward`.
    weights : [N] or None
        Any finite numbers. None: 1.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Returns
    -------
    int
        How many rows there are; `rows`, `drows` and `db` are not written beyond. P = V - 1 is
        always enough, and so is the sum of the rows on each target's path.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `hsoftmax_forward`; ValueError for a P that is too small, too.

    Notes
    -----
    Source: the chain rule on `hsoftmax_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> tree = {"first": np.array([0, 2, 4], np.int32),
    ...         "parent": np.array([[0, 0], [1, 0], [1, 1], [-1, -1], [0, 1]], np.int32)}
    >>> nll, dh = np.empty(1), np.empty((1, 2))
    >>> rows, drows = np.empty(2, np.int32), np.empty((2, 2))
    >>> hsoftmax_gradients(nll=nll, dh=dh, rows=rows, drows=drows, h=np.ones((1, 2)),
    ...                    w=np.zeros((2, 2)), **tree, targets=np.array([1], np.int32))
    2
    >>> rows.tolist(), drows.tolist()
    ([0, 1], [[-0.5, -0.5], [0.5, 0.5]])
    """
    f = "hsoftmax_gradients"
    d = _check_inputs(f, h, w, b, first, parent=parent)
    check(targets, "N", d, func=f, name="targets", dtype=INT32)
    if weights is not None:
        check(weights, "N", d, func=f, name="weights")
    check(nll, "N", d, func=f, name="nll", out=True)
    check(dh, "N H", d, func=f, name="dh", out=True)
    check(rows, "P", d, func=f, name="rows", dtype=INT32, out=True)
    check(drows, "P H", d, func=f, name="drows", out=True)
    if db is not None:
        check(db, "P", d, func=f, name="db", out=True)
    check_ids(targets, d["V"], func=f, name="targets")
    count: int = function(f, backend, d)(
        nll=nll, dh=dh, rows=rows, drows=drows, db=db, h=h, w=w, b=b, first=first, parent=parent,
        targets=targets, weights=weights,
    )  # fmt: skip
    return count


def hsoftmax_log_prob(
    *,
    log_prob: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    first: Array,
    children: Array,
    backend: str | None = None,
) -> None:
    """log_prob[n, v] = log p(v), all of them in one pass down the tree.

    Parameters
    ----------
    log_prob : [N, V], output
        Natural logarithms of the probabilities, which add up to 1.
    h, w, b, first
        As `hsoftmax_forward`.
    children : int32 [V + M - 1]
        Node m's children, children[first[m]:first[m + 1]]: v for a token, V + j for node j.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array or has another dtype.
    ValueError
        Shape or layout; `first` and `children` lead out of the arrays or not to all tokens (cpu).

    Notes
    -----
    Source: Morin & Bengio, AISTATS 2005, eq. 2.

    Examples
    --------
    >>> import numpy as np
    >>> log_prob, tree = np.empty((1, 3)), {"first": np.array([0, 2, 4], np.int32)}
    >>> hsoftmax_log_prob(log_prob=log_prob, h=np.ones((1, 1)), w=np.zeros((2, 1)), **tree,
    ...                   children=np.array([0, 4, 1, 2], np.int32))
    >>> np.exp(log_prob)
    array([[0.5 , 0.25, 0.25]])
    """
    f = "hsoftmax_log_prob"
    d = _check_inputs(f, h, w, b, first, children=children)
    check(log_prob, "N V", d, func=f, name="log_prob", out=True)
    function(f, backend, d)(log_prob=log_prob, h=h, w=w, b=b, first=first, children=children)


def hsoftmax_top_k(
    *,
    log_prob: Array,
    ids: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    first: Array,
    children: Array,
    backend: str | None = None,
) -> None:
    """The K most probable tokens of each row, and their log-probabilities, falling.

    Exact, by best-first search: a node is opened when nothing more probable is left, so only the
    nodes are that are more probable than the last token found.

    Parameters
    ----------
    log_prob : [N, K], output
        Natural logarithms of the probabilities; K is 1 to V.
    ids : int32 [N, K], output
        Of equal probabilities the smaller id comes first.
    h, w, b, first, children
        As `hsoftmax_log_prob`.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError, ValueError
        As `hsoftmax_log_prob`; ValueError for K > V, too.

    Notes
    -----
    Source: the definition; best-first search: Hart, Nilsson, Raphael, "A formal basis for the
    heuristic determination of minimum cost paths" (1968), with the node's own probability as bound.

    Examples
    --------
    >>> import numpy as np
    >>> log_prob, ids = np.empty((1, 2)), np.empty((1, 2), np.int32)
    >>> hsoftmax_top_k(log_prob=log_prob, ids=ids, h=np.ones((1, 1)), w=np.ones((2, 1)),
    ...                first=np.array([0, 2, 4], np.int32),
    ...                children=np.array([0, 4, 1, 2], np.int32))
    >>> ids
    array([[2, 0]], dtype=int32)
    """
    f = "hsoftmax_top_k"
    d = _check_inputs(f, h, w, b, first, children=children)
    check(log_prob, "N K", d, func=f, name="log_prob", out=True)
    check(ids, "N K", d, func=f, name="ids", dtype=INT32, out=True)
    check_integer(d["K"], func=f, name="K", low=1, high=d["V"])
    function(f, backend, d)(
        log_prob=log_prob, ids=ids, h=h, w=w, b=b, first=first, children=children
    )


def hsoftmax_sample(
    *,
    ids: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    first: Array,
    children: Array,
    seed: int,
    step: int,
    time: int = 0,
    backend: str | None = None,
) -> None:
    """One token of each row, drawn child by child from the root down.

    Parameters
    ----------
    ids : int32 [N], output
        -1 for a row whose logits are NaN or +inf on the way.
    h, w, b, first, children
        As `hsoftmax_log_prob`.
    seed, step, time : int
        In [0, 2^32). The random numbers of row n depend on (seed, step, time, n) alone.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError, ValueError
        As `hsoftmax_log_prob`, and a seed, step or time out of its range.

    Notes
    -----
    Source: ancestral sampling; the random numbers are `pynlm.reference.philox`'s, one for each
    node of the path.

    Examples
    --------
    >>> import numpy as np
    >>> ids = np.empty(5, np.int32)
    >>> hsoftmax_sample(ids=ids, h=np.ones((5, 1)), w=np.zeros((2, 1)), seed=1, step=0,
    ...                 first=np.array([0, 2, 4], np.int32),
    ...                 children=np.array([0, 4, 1, 2], np.int32))
    >>> ids.tolist()
    [2, 0, 2, 1, 0]
    """
    f = "hsoftmax_sample"
    d = _check_inputs(f, h, w, b, first, children=children)
    check(ids, "N", d, func=f, name="ids", dtype=INT32, out=True)
    for name, value in (("seed", seed), ("step", step), ("time", time)):
        check_integer(value, func=f, name=name, low=0, high=UINT32_MAX)
    function(f, backend, d)(
        ids=ids, h=h, w=w, b=b, first=first, children=children, seed=seed, step=step, time=time
    )


def _check_inputs(
    f: str, h: Array, w: Array, b: Array | None, first: Array, **links: Array
) -> dict[str, Any]:
    """Dtypes and sizes; what is in `first` and `parent` or `children` the kernels meet."""
    d: dict[str, Any] = {}
    check(h, "N H", d, func=f, name="h")
    check(w, "R H", d, func=f, name="w")
    if b is not None:
        check(b, "R", d, func=f, name="b")
    d["V"] = d["R"] + 1
    check(first, "F", d, func=f, name="first", dtype=INT32)
    entries = d["V"] + d["F"] - 1
    if "parent" in links:
        parent = links["parent"]
        check(parent, "E 2", d, func=f, name="parent", dtype=INT32)
        if d["E"] != entries:
            raise ValueError(
                f"{f}: parent must be int32 [V+M={entries}, 2], got {describe(parent)}"
            )
    if "children" in links:
        children = links["children"]
        check(children, "P", d, func=f, name="children", dtype=INT32)
        if d["P"] != entries - 1:
            raise ValueError(
                f"{f}: children must be int32 [V+M-1={entries - 1}], got {describe(children)}"
            )
    return d
