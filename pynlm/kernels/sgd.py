"""Stochastic gradient descent with momentum: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import INT32, Array, Dims, check, check_number, check_rows

from ._backend import function
from .queued import check_scale_and_rate


def sgd_update(
    *,
    w: Array,
    g: Array,
    momentum_buffer: Array | None = None,
    scale: float,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    backend: str | None = None,
) -> None:
    """One step of SGD on flat parameters, in place.

    ::

        d = scale * g + weight_decay * w
        buffer = momentum * buffer + d
        w -= lr * (d + momentum * buffer  if nesterov else  buffer)

    Parameters
    ----------
    w : [P], changed in place
    g : [P]
        Gradient, not changed.
    momentum_buffer : [P] or None, changed in place
        Zeros before the first step. None: no momentum, w -= lr * d.
    scale : float
        Multiplies the gradient first (clipping by norm). On a GPU also float64 [1] there.
    lr : float
        Learning rate, >= 0. On a GPU also float64 [1] there.
    momentum : float
        In [0, 1); must be 0 without a buffer.
    weight_decay : float
        >= 0.
    nesterov : bool
        Needs a buffer.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array or has another dtype.
    ValueError
        Shape, layout or range; momentum without a buffer.

    Notes
    -----
    Source: torch.optim.SGD with dampening 0; Sutskever et al. 2013.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.array([1.0, 2.0])
    >>> sgd_update(w=w, g=np.array([10.0, 10.0]), scale=0.5, lr=0.1)
    >>> w
    array([0.5, 1.5])
    """
    f = "sgd_update"
    d: dict[str, Any] = {}
    check(w, "P", d, func=f, name="w", out=True)
    check(g, "P", d, func=f, name="g")
    if momentum_buffer is not None:
        check(momentum_buffer, "P", d, func=f, name="momentum_buffer", out=True)
    _check_rates(f, d, momentum_buffer, scale, lr, momentum, weight_decay, nesterov)
    function(f, backend, d)(
        w=w,
        g=g,
        momentum_buffer=momentum_buffer,
        scale=scale,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
    )


def sgd_update_rows(
    *,
    w: Array,
    rows: Array,
    drows: Array,
    momentum_buffer: Array | None = None,
    scale: float,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    backend: str | None = None,
) -> None:
    """`sgd_update` of a table whose gradient is zero except in `rows`.

    The result is the dense one: decay and momentum act on every row.

    Parameters
    ----------
    w : [V, D], changed in place
    rows : int32 [R]
        Strictly increasing, 0 to V - 1.
    drows : [R, D]
        Gradient of those rows.
    momentum_buffer : [V, D] or None, changed in place
    scale, lr, momentum, weight_decay, nesterov
        As `sgd_update`.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError, ValueError
        As `sgd_update`; rows that do not increase.
    IndexError
        A row outside [0, V).

    Notes
    -----
    Source: `sgd_update`.

    Examples
    --------
    >>> import numpy as np
    >>> w, rows = np.zeros((3, 1)), np.array([1], np.int32)
    >>> sgd_update_rows(w=w, rows=rows, drows=np.ones((1, 1)), scale=1.0, lr=0.5)
    >>> w[:, 0]
    array([ 0. , -0.5,  0. ])
    """
    f = "sgd_update_rows"
    d: dict[str, Any] = {}
    check(w, "V D", d, func=f, name="w", out=True)
    check(rows, "R", d, func=f, name="rows", dtype=INT32)
    check(drows, "R D", d, func=f, name="drows")
    check_rows(rows, d["V"], func=f)
    if momentum_buffer is not None:
        check(momentum_buffer, "V D", d, func=f, name="momentum_buffer", out=True)
    _check_rates(f, d, momentum_buffer, scale, lr, momentum, weight_decay, nesterov)
    function(f, backend, d)(
        w=w,
        rows=rows,
        drows=drows,
        momentum_buffer=momentum_buffer,
        scale=scale,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
    )


def _check_rates(
    func: str,
    d: Dims,
    momentum_buffer: Array | None,
    scale: float,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    check_scale_and_rate(scale, lr, d, func=func)
    check_number(momentum, func=func, name="momentum", low=0.0, high=1.0, high_open=True)
    check_number(weight_decay, func=func, name="weight_decay", low=0.0)
    if momentum_buffer is None and (momentum or nesterov):
        what = "nesterov=True" if nesterov else f"momentum={momentum:g}"
        raise ValueError(f"{func}: momentum_buffer must be an array with {what}, got None")
