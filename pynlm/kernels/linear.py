"""Affine map: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import Array, check

from ._backend import function


def linear_forward(
    *, y: Array, x: Array, w: Array, b: Array | None = None, backend: str | None = None
) -> None:
    """y = x W^T + b.

    Parameters
    ----------
    y : [N, O], output
    x : [N, I]
    w : [O, I]
        Weights in torch.nn.Linear's layout.
    b : [O] or None
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array or has another dtype.
    ValueError
        Shape or layout.

    Notes
    -----
    Source: the definition, as torch.nn.Linear.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.empty((1, 2))
    >>> linear_forward(y=y, x=np.array([[1.0, 2.0]]), w=np.array([[3.0, 4.0], [5.0, 6.0]]))
    >>> y
    array([[11., 17.]])
    """
    f = "linear_forward"
    d: dict[str, Any] = {}
    check(x, "N I", d, func=f, name="x")
    check(w, "O I", d, func=f, name="w")
    if b is not None:
        check(b, "O", d, func=f, name="b")
    check(y, "N O", d, func=f, name="y", out=True)
    function(f, backend, d)(y=y, x=x, w=w, b=b)


def linear_backward(
    *,
    dx: Array | None = None,
    dw: Array,
    db: Array | None = None,
    dy: Array,
    x: Array,
    w: Array,
    backend: str | None = None,
) -> None:
    """Gradients of `linear_forward`: dx = dy W, dw = dy^T x, db = sum over N of dy.

    Parameters
    ----------
    dx : [N, I] or None, output
        None: not computed.
    dw : [O, I], output
    db : [O] or None, output
    dy : [N, O]
    x, w
        The arguments of `linear_forward`.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError, ValueError
        As `linear_forward`.

    Notes
    -----
    Source: the chain rule on `linear_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> dw = np.empty((1, 2))
    >>> linear_backward(dw=dw, dy=np.array([[2.0]]), x=np.array([[3.0, 4.0]]), w=np.ones((1, 2)))
    >>> dw
    array([[6., 8.]])
    """
    f = "linear_backward"
    d: dict[str, Any] = {}
    check(x, "N I", d, func=f, name="x")
    check(w, "O I", d, func=f, name="w")
    check(dy, "N O", d, func=f, name="dy")
    if dx is not None:
        check(dx, "N I", d, func=f, name="dx", out=True)
    check(dw, "O I", d, func=f, name="dw", out=True)
    if db is not None:
        check(db, "O", d, func=f, name="db", out=True)
    function(f, backend, d)(dx=dx, dw=dw, db=db, dy=dy, x=x, w=w)
