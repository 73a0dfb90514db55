"""Sum of squares (for clipping by global norm) and clipping by value: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import Array, check_any_shape, check_number

from ._backend import function
from .queued import is_late


def sum_squares(*, x: Array, backend: str | None = None) -> float:
    """Return the sum of x**2, accumulated in double precision.

    Parameters
    ----------
    x : any shape
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Returns
    -------
    float
        0.0 for an empty array. The same bits for any number of threads: blocks of 4096 elements
        are summed each by itself, then in order.

    Raises
    ------
    TypeError
        Not an array of float32 or float64.
    ValueError
        Not C-contiguous.

    Notes
    -----
    Source: the norm of Pascanu, Mikolov & Bengio, arXiv:1211.5063, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> sum_squares(x=np.array([3.0, 4.0]))
    25.0
    """
    d: dict[str, Any] = {}
    flat = check_any_shape(x, d, func="sum_squares", name="x")
    return float(function("sum_squares", backend, d)(x=flat))


def clip_values(*, x: Array, limit: float, backend: str | None = None) -> None:
    """x = min(max(x, -limit), limit), in place; NaN stays NaN.

    Parameters
    ----------
    x : any shape, changed in place
    limit : float
        Positive. On a GPU also float64 [1] there.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        Not an array of float32 or float64.
    ValueError
        Not C-contiguous, read-only, or a limit that is not positive.

    Notes
    -----
    Source: the definition, as torch.nn.utils.clip_grad_value_.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([-3.0, 0.5, 2.0])
    >>> clip_values(x=x, limit=1.0)
    >>> x
    array([-1. ,  0.5,  1. ])
    """
    d: dict[str, Any] = {}
    flat = check_any_shape(x, d, func="clip_values", name="x", out=True)
    if not is_late(limit, d, func="clip_values", name="limit"):
        check_number(limit, func="clip_values", name="limit", low=0.0, low_open=True)
    function("clip_values", backend, d)(x=flat, limit=limit)
