"""Embedding table: rows by id, and the row-sparse gradient. Contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import INT32, Array, check, check_ids

from ._backend import function

_ALL_IDS = 2**31


def embedding_forward(*, y: Array, ids: Array, w: Array, backend: str | None = None) -> None:
    """y[n] = w[ids[n]].

    Parameters
    ----------
    y : [N, D], output
    ids : int32 [N]
        0 to V - 1.
    w : [V, D]
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array or has another dtype.
    ValueError
        Shape or layout.
    IndexError
        An id outside [0, V), with its position.

    Notes
    -----
    Source: the definition, as torch.nn.Embedding.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.empty((2, 1))
    >>> embedding_forward(y=y, ids=np.array([2, 0], np.int32), w=np.array([[5.0], [6.0], [7.0]]))
    >>> y[:, 0]
    array([7., 5.])
    """
    f = "embedding_forward"
    d: dict[str, Any] = {}
    check(ids, "N", d, func=f, name="ids", dtype=INT32)
    check(w, "V D", d, func=f, name="w")
    check(y, "N D", d, func=f, name="y", out=True)
    check_ids(ids, d["V"], func=f, name="ids")
    function(f, backend, d)(y=y, ids=ids, w=w)


def embedding_backward(
    *, rows: Array, drows: Array, ids: Array, dy: Array, backend: str | None = None
) -> int:
    """Gradient of the table as coalesced rows: drows[k] = sum of dy[n] where ids[n] = rows[k].

    Parameters
    ----------
    rows : int32 [N], output
        rows[:n] are the distinct ids, increasing; the rest is unspecified.
    drows : [N, D], output
        drows[:n] are their gradients, each summed in the order of the positions; the rest is
        unspecified.
    ids : int32 [N]
        As in `embedding_forward`.
    dy : [N, D]
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Returns
    -------
    int
        n, the number of distinct ids.

    Raises
    ------
    TypeError, ValueError
        As `embedding_forward`.
    IndexError
        A negative id.

    Notes
    -----
    Source: the chain rule on `embedding_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> rows, drows, ids = np.empty(3, np.int32), np.empty((3, 1)), np.array([4, 1, 4], np.int32)
    >>> n = embedding_backward(rows=rows, drows=drows, ids=ids, dy=np.array([[1.0], [2.0], [3.0]]))
    >>> rows[:n], drows[:n, 0]
    (array([1, 4], dtype=int32), array([2., 4.]))
    """
    f = "embedding_backward"
    d: dict[str, Any] = {}
    check(ids, "N", d, func=f, name="ids", dtype=INT32)
    check(dy, "N D", d, func=f, name="dy")
    check(rows, "N", d, func=f, name="rows", dtype=INT32, out=True)
    check(drows, "N D", d, func=f, name="drows", out=True)
    check_ids(ids, _ALL_IDS, func=f, name="ids")
    return int(function(f, backend, d)(rows=rows, drows=drows, ids=ids, dy=dy))
