"""Adam and AdamW: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import INT32, Array, Dims, check, check_integer, check_number, check_rows

from ._backend import function
from .queued import check_scale_and_rate, is_late


def adam_update(
    *,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    t: int,
    backend: str | None = None,
) -> None:
    """One step of Adam (decoupled False) or AdamW (True) on flat parameters, in place.

    ::

        d = scale * g;  decoupled: w *= 1 - lr * weight_decay;  else: d += weight_decay * w
        m = beta1 * m + (1 - beta1) * d;  v = beta2 * v + (1 - beta2) * d**2
        w -= lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    Parameters
    ----------
    w, m, v : [P], changed in place
        Parameters and the two moments, zeros before the first step.
    g : [P]
        Gradient, not changed.
    scale : float
        Multiplies the gradient first (clipping by norm). On a GPU also float64 [1] there.
    lr : float
        Learning rate, >= 0. On a GPU also float64 [1] there.
    beta1, beta2 : float
        In [0, 1).
    eps : float
        Positive.
    weight_decay : float
        >= 0.
    decoupled : bool
    t : int
        Number of this update, counted from 1. On a GPU also float64 [1] there.
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
    Source: Kingma & Ba, arXiv:1412.6980, algorithm 1; Loshchilov & Hutter, arXiv:1711.05101,
    algorithm 2, with torch.optim.AdamW's factor lr on the decay.

    Examples
    --------
    >>> import numpy as np
    >>> w, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    >>> adam_update(w=w, g=np.array([8.0]), m=m, v=v, scale=1.0, lr=0.1, beta1=0.9, beta2=0.999,
    ...             eps=1e-8, weight_decay=0.0, decoupled=False, t=1)
    >>> w.round(6)
    array([0.9])
    """
    f = "adam_update"
    d: dict[str, Any] = {}
    check(w, "P", d, func=f, name="w", out=True)
    check(g, "P", d, func=f, name="g")
    check(m, "P", d, func=f, name="m", out=True)
    check(v, "P", d, func=f, name="v", out=True)
    _check_rates(f, d, scale, lr, beta1, beta2, eps, weight_decay, t)
    function(f, backend, d)(
        w=w,
        g=g,
        m=m,
        v=v,
        scale=scale,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
        t=t,
    )


def adam_update_rows(
    *,
    w: Array,
    rows: Array,
    drows: Array,
    m: Array,
    v: Array,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    t: int,
    backend: str | None = None,
) -> None:
    """`adam_update` of a table whose gradient is zero except in `rows`.

    The result is the dense one: the moments, and with them the parameters, of every row move.

    Parameters
    ----------
    w, m, v : [V, D], changed in place
    rows : int32 [R]
        Strictly increasing, 0 to V - 1.
    drows : [R, D]
        Gradient of those rows.
    scale, lr, beta1, beta2, eps, weight_decay, decoupled, t
        As `adam_update`.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError, ValueError
        As `adam_update`; rows that do not increase.
    IndexError
        A row outside [0, V).

    Notes
    -----
    Source: `adam_update`.

    Examples
    --------
    >>> import numpy as np
    >>> w, m, v = np.zeros((3, 1)), np.zeros((3, 1)), np.zeros((3, 1))
    >>> adam_update_rows(w=w, rows=np.array([1], np.int32), drows=np.ones((1, 1)), m=m, v=v,
    ...                  scale=1.0, lr=0.5, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0,
    ...                  decoupled=False, t=1)
    >>> w[:, 0].round(6)
    array([ 0. , -0.5,  0. ])
    """
    f = "adam_update_rows"
    d: dict[str, Any] = {}
    check(w, "V D", d, func=f, name="w", out=True)
    check(rows, "R", d, func=f, name="rows", dtype=INT32)
    check(drows, "R D", d, func=f, name="drows")
    check_rows(rows, d["V"], func=f)
    check(m, "V D", d, func=f, name="m", out=True)
    check(v, "V D", d, func=f, name="v", out=True)
    _check_rates(f, d, scale, lr, beta1, beta2, eps, weight_decay, t)
    function(f, backend, d)(
        w=w,
        rows=rows,
        drows=drows,
        m=m,
        v=v,
        scale=scale,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
        t=t,
    )


def _check_rates(
    func: str,
    d: Dims,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    t: int,
) -> None:
    check_scale_and_rate(scale, lr, d, func=func)
    check_number(beta1, func=func, name="beta1", low=0.0, high=1.0, high_open=True)
    check_number(beta2, func=func, name="beta2", low=0.0, high=1.0, high_open=True)
    check_number(eps, func=func, name="eps", low=0.0, low_open=True)
    check_number(weight_decay, func=func, name="weight_decay", low=0.0)
    if not is_late(t, d, func=func, name="t"):
        check_integer(t, func=func, name="t", low=1, high=2**53)
