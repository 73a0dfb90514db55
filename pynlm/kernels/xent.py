"""Exact softmax cross-entropy of a linear map: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import INT32, Array, check, check_ids

from ._backend import function


def xent_forward(
    *,
    nll: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    backend: str = "cpu",
) -> None:
    """nll[n] = log sum_v exp(z[n, v]) - z[n, targets[n]] with z = h W^T + b; the loss only.

    Parameters
    ----------
    nll : [N], output
        Negative log-probability of each target, in nats.
    h : [N, H]
    w : [V, H], b : [V] or None
    targets : int32 [N]
        0 to V - 1.
    backend : "cpu" or "reference"

    Raises
    ------
    TypeError
        An argument is no NumPy array or has another dtype.
    ValueError
        Shape or layout.
    IndexError
        A target outside [0, V).

    Notes
    -----
    Source: the definition. The cpu backend forms the logits in tiles and never holds N x V of them.

    Examples
    --------
    >>> import numpy as np
    >>> nll, targets = np.empty(1), np.array([1], np.int32)
    >>> xent_forward(nll=nll, h=np.ones((1, 2)), w=np.zeros((4, 2)), targets=targets)
    >>> nll.round(4)  # log 4
    array([1.3863])
    """
    f = "xent_forward"
    d: dict[str, Any] = {}
    check(h, "N H", d, func=f, name="h")
    check(w, "V H", d, func=f, name="w")
    if b is not None:
        check(b, "V", d, func=f, name="b")
    check(targets, "N", d, func=f, name="targets", dtype=INT32)
    check(nll, "N", d, func=f, name="nll", out=True)
    check_ids(targets, d["V"], func=f, name="targets")
    function(f, backend)(nll=nll, h=h, w=w, b=b, targets=targets)


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
    backend: str = "cpu",
) -> None:
    """The loss of `xent_forward` and the gradients of sum_n weights[n] * nll[n], in one pass.

    With p = softmax(h W^T + b)::

        dz[n, v] = weights[n] * (p[n, v] - [v = targets[n]])
        dh = dz W;  dw = dz^T h;  db = sum_n dz[n]

    Parameters
    ----------
    nll : [N], output
        Negative log-probability of each target, in nats, not weighted.
    dh : [N, H], dw : [V, H], output
    db : [V] or None, output
    h : [N, H]
    w : [V, H], b : [V] or None
    targets : int32 [N]
        0 to V - 1.
    weights : [N] or None
        Any finite numbers (1/N for a mean, 0 for padding). None: 1.
    backend : "cpu" or "reference"

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xent_forward`.

    Notes
    -----
    Source: the chain rule on `xent_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> nll, dh, dw, db = np.empty(1), np.empty((1, 2)), np.empty((4, 2)), np.empty(4)
    >>> xent_gradients(nll=nll, dh=dh, dw=dw, db=db, h=np.ones((1, 2)), w=np.zeros((4, 2)),
    ...                b=np.zeros(4), targets=np.array([1], np.int32))
    >>> db
    array([ 0.25, -0.75,  0.25,  0.25])
    """
    f = "xent_gradients"
    d: dict[str, Any] = {}
    check(h, "N H", d, func=f, name="h")
    check(w, "V H", d, func=f, name="w")
    if b is not None:
        check(b, "V", d, func=f, name="b")
    check(targets, "N", d, func=f, name="targets", dtype=INT32)
    if weights is not None:
        check(weights, "N", d, func=f, name="weights")
    check(nll, "N", d, func=f, name="nll", out=True)
    check(dh, "N H", d, func=f, name="dh", out=True)
    check(dw, "V H", d, func=f, name="dw", out=True)
    if db is not None:
        check(db, "V", d, func=f, name="db", out=True)
    check_ids(targets, d["V"], func=f, name="targets")
    function(f, backend)(
        nll=nll, dh=dh, dw=dw, db=db, h=h, w=w, b=b, targets=targets, weights=weights
    )


def xent_log_prob(
    *, log_prob: Array, h: Array, w: Array, b: Array | None = None, backend: str = "cpu"
) -> None:
    """log_prob[n, v] = z[n, v] - log sum_u exp(z[n, u]) with z = h W^T + b.

    Parameters
    ----------
    log_prob : [N, V], output
        Natural logarithms of the probabilities.
    h : [N, H]
    w : [V, H], b : [V] or None
    backend : "cpu" or "reference"

    Raises
    ------
    TypeError
        An argument is no NumPy array or has another dtype.
    ValueError
        Shape or layout.

    Notes
    -----
    Source: the definition.

    Examples
    --------
    >>> import numpy as np
    >>> log_prob = np.empty((1, 2))
    >>> xent_log_prob(log_prob=log_prob, h=np.ones((1, 1)), w=np.array([[0.0], [np.log(3)]]))
    >>> np.exp(log_prob).round(6)
    array([[0.25, 0.75]])
    """
    f = "xent_log_prob"
    d: dict[str, Any] = {}
    check(h, "N H", d, func=f, name="h")
    check(w, "V H", d, func=f, name="w")
    if b is not None:
        check(b, "V", d, func=f, name="b")
    check(log_prob, "N V", d, func=f, name="log_prob", out=True)
    function(f, backend)(log_prob=log_prob, h=h, w=w, b=b)
