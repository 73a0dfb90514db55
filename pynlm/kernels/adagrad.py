"""Adagrad: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import INT32, Array, Dims, check, check_number, check_rows

from ._backend import function
from .queued import check_scale_and_rate


def adagrad_update(
    *,
    w: Array,
    g: Array,
    v: Array,
    scale: float,
    lr: float,
    eps: float,
    weight_decay: float,
    backend: str | None = None,
) -> None:
    """One step of Adagrad on flat parameters, in place.

    ::

        d = scale * g + weight_decay * w;  v += d**2;  w -= lr * d / (sqrt(v) + eps)

    Parameters
    ----------
    w, v : [P], changed in place
        Parameters, and their sums of squared gradients (zeros before the first step).
    g : [P]
        Gradient, not changed.
    scale : float
        Multiplies the gradient first (clipping by norm). On a GPU also float64 [1] there.
    lr : float
        Learning rate, >= 0. On a GPU also float64 [1] there.
    eps : float
        Positive.
    weight_decay : float
        >= 0.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array or has another dtype.
    ValueError
        Shape, layout or range.

    Notes
    -----
    Source: Duchi, Hazan & Singer, JMLR 12, 2011; torch.optim.Adagrad with lr_decay 0.

    Examples
    --------
    >>> import numpy as np
    >>> w, v = np.array([1.0]), np.zeros(1)
    >>> adagrad_update(w=w, g=np.array([8.0]), v=v, scale=0.5, lr=0.1, eps=1e-10, weight_decay=0.0)
    >>> w.round(6), v
    (array([0.9]), array([16.]))
    """
    f = "adagrad_update"
    d: dict[str, Any] = {}
    check(w, "P", d, func=f, name="w", out=True)
    check(g, "P", d, func=f, name="g")
    check(v, "P", d, func=f, name="v", out=True)
    _check_rates(f, d, scale, lr, eps, weight_decay)
    function(f, backend, d)(w=w, g=g, v=v, scale=scale, lr=lr, eps=eps, weight_decay=weight_decay)


def adagrad_update_rows(
    *,
    w: Array,
    rows: Array,
    drows: Array,
    v: Array,
    scale: float,
    lr: float,
    eps: float,
    weight_decay: float,
    backend: str | None = None,
) -> None:
    """`adagrad_update` of a table whose gradient is zero except in `rows`.

    The result is the dense one: decay acts on every row.

    Parameters
    ----------
    w, v : [V, D], changed in place
    rows : int32 [R]
        Strictly increasing, 0 to V - 1.
    drows : [R, D]
        Gradient of those rows.
    scale, lr, eps, weight_decay
        As `adagrad_update`.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError, ValueError
        As `adagrad_update`; rows that do not increase.
    IndexError
        A row outside [0, V).

    Notes
    -----
    Source: `adagrad_update`.

    Examples
    --------
    >>> import numpy as np
    >>> w, v, rows = np.zeros((3, 1)), np.zeros((3, 1)), np.array([1], np.int32)
    >>> adagrad_update_rows(w=w, rows=rows, drows=np.ones((1, 1)), v=v, scale=1.0, lr=0.5,
    ...                     eps=1e-10, weight_decay=0.0)
    >>> w[:, 0].round(6)
    array([ 0. , -0.5,  0. ])
    """
    f = "adagrad_update_rows"
    d: dict[str, Any] = {}
    check(w, "V D", d, func=f, name="w", out=True)
    check(rows, "R", d, func=f, name="rows", dtype=INT32)
    check(drows, "R D", d, func=f, name="drows")
    check_rows(rows, d["V"], func=f)
    check(v, "V D", d, func=f, name="v", out=True)
    _check_rates(f, d, scale, lr, eps, weight_decay)
    function(f, backend, d)(
        w=w, rows=rows, drows=drows, v=v, scale=scale, lr=lr, eps=eps, weight_decay=weight_decay
    )


def _check_rates(
    func: str, d: Dims, scale: float, lr: float, eps: float, weight_decay: float
) -> None:
    check_scale_and_rate(scale, lr, d, func=func)
    check_number(eps, func=func, name="eps", low=0.0, low_open=True)
    check_number(weight_decay, func=func, name="weight_decay", low=0.0)
