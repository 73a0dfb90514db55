"""What a training step on a GPU calls in place of functions whose results would be waited for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pynlm.arrays import INT32, Array, Dims, check, check_any_shape, check_number, on_device

FLOAT64 = np.dtype(np.float64)


def embedding_backward_dense(*, dw: Array, ids: Array, dy: Array) -> None:
    """`embedding_backward` into the whole table's gradient; how many rows it has is not asked.

    Parameters
    ----------
    dw : [V, D], output
        Row v is the sum of dy[n] over the n with ids[n] = v, in their order; 0 where there is none.
    ids : int32 [N], dy : [N, D]
        As `embedding_backward`'s.

    Raises
    ------
    TypeError, ValueError
        Arrays that are not on a GPU; dtype, shape or layout.
    """
    from pynlm.cuda.embedding import embedding_backward_dense as backward

    f = "embedding_backward_dense"
    d: Dims = {}
    check(ids, "N", d, func=f, name="ids", dtype=INT32)
    check(dy, "N D", d, func=f, name="dy")
    check(dw, "V D", d, func=f, name="dw", out=True)
    backward(dw=dw, ids=ids, dy=dy)


def candidates_gradients_dense(
    *, loss: Array, dh: Array, dw: Array, db: Array | None = None, **inputs: Any
) -> None:
    """`candidates_gradients` with the whole gradients, of which most rows are 0.

    Parameters
    ----------
    loss : [N], dh : [N, H], dw : [V, H], db : [V] or None, output
    inputs
        As `candidates_gradients`'s, without the backend.

    Raises
    ------
    TypeError, ValueError
        Arrays that are not on a GPU; dtype, shape or layout.
    """
    from pynlm.cuda.candidates import candidates_gradients_dense as gradients

    _check_outputs("candidates_gradients_dense", loss, dh, dw, db, inputs)
    gradients(loss=loss, dh=dh, dw=dw, db=db, **inputs)


def hsoftmax_gradients_dense(
    *, nll: Array, dh: Array, dw: Array, db: Array | None = None, **inputs: Any
) -> None:
    """`hsoftmax_gradients` with the whole gradients, of which most rows are 0.

    Parameters
    ----------
    nll : [N], dh : [N, H], dw : [V - 1, H], db : [V - 1] or None, output
    inputs
        As `hsoftmax_gradients`'s, without the backend.

    Raises
    ------
    TypeError, ValueError
        Arrays that are not on a GPU; dtype, shape or layout.
    """
    from pynlm.cuda.hsoftmax import hsoftmax_gradients_dense as gradients

    _check_outputs("hsoftmax_gradients_dense", nll, dh, dw, db, inputs)
    gradients(nll=nll, dh=dh, dw=dw, db=db, **inputs)


def _check_outputs(
    f: str, loss: Array, dh: Array, dw: Array, db: Array | None, inputs: dict[str, Any]
) -> None:
    d: Dims = {}
    for name in ("h", "w", "b", "targets", "weights"):
        if inputs.get(name) is not None:
            spec = {"h": "N H", "w": "R H", "b": "R"}.get(name, "N")
            dtype = INT32 if name == "targets" else None
            check(inputs[name], spec, d, func=f, name=name, dtype=dtype)
    check(loss, "N", d, func=f, name="loss", out=True)
    check(dh, "N H", d, func=f, name="dh", out=True)
    check(dw, "R H", d, func=f, name="dw", out=True)
    if db is not None:
        check(db, "R", d, func=f, name="db", out=True)


def sums_of_squares(*, totals: Array, parts: list[Array]) -> None:
    """totals[i] = `sum_squares(x=parts[i])`.

    Parameters
    ----------
    totals : float64 [n], output
    parts : n arrays of any shape

    Raises
    ------
    TypeError, ValueError
        Dtype, shape or layout.
    """
    from pynlm.cuda.clip import sum_squares_on_device

    f = "sums_of_squares"
    check(totals, str(len(parts)), {}, func=f, name="totals", dtype=FLOAT64, out=True)
    for i, x in enumerate(parts):
        flat = check_any_shape(x, {}, func=f, name=f"parts[{i}]")
        sum_squares_on_device(flat, totals[i : i + 1])


def clip_scale(*, totals: Array, limit: float) -> Array:
    """What to multiply a gradient by so that its norm is `limit` at most: the updates' `scale`.

    Parameters
    ----------
    totals : float64 [n]
        Sums of squares of the gradient's parts.
    limit : float
        Positive.

    Returns
    -------
    float64 [1] on the GPU: min(1, limit / norm), 1 where the norm is NaN.

    Raises
    ------
    TypeError, ValueError
        Dtype, shape or layout; a limit that is not positive.
    """
    from pynlm.cuda.clip import clip_scale as scale

    check(totals, "N", {}, func="clip_scale", name="totals", dtype=FLOAT64)
    check_number(limit, func="clip_scale", name="limit", low=0.0, low_open=True)
    return scale(totals, limit)


def clip_scale_scaled(*, totals: Array, limit: float, scaling: Array) -> Array:
    """`clip_scale` of a gradient that was multiplied by a loss scale, and the next loss scale.

    Products of half precision lose small gradients; so the loss is multiplied by a power of two,
    which is halved where that made the gradient overflow, and else doubled every 2000 steps, up to
    2**24.

    Parameters
    ----------
    totals : float64 [n], changed in place
        Sums of squares of the gradient's parts, which become those without the loss scale.
    limit : float
        Positive; may be infinite.
    scaling : float64 [2], changed in place
        The loss scale, and for how many steps it has been the same.

    Returns
    -------
    float64 [1] on the GPU: the updates' `scale`, which takes the loss scale out, too; NaN where the
    norm is not finite: then updates change nothing.

    Raises
    ------
    TypeError, ValueError
        Dtype, shape or layout; a limit that is not positive.

    Notes
    -----
    Source: Micikevicius et al., arXiv:1710.03740, §3.2; with the intervals of NVIDIA's Apex.
    """
    from pynlm.cuda.clip import clip_scale_scaled as scale

    f = "clip_scale_scaled"
    check(totals, "N", {}, func=f, name="totals", dtype=FLOAT64, out=True)
    check(scaling, "2", {}, func=f, name="scaling", dtype=FLOAT64, out=True)
    if limit != math.inf:
        check_number(limit, func=f, name="limit", low=0.0, low_open=True)
    return scale(totals, limit, scaling)


def is_late(value: object, d: Dims, *, func: str, name: str) -> bool:
    """Whether a number stands on a GPU, as float64 [1]: a step in a CUDA graph reads it there.

    What changes from step to step may (an update's `scale`, `lr` and `t`, the `step` of random
    numbers). It is not looked at; then the call's arrays, which `d` is about, must be there, too.

    Raises
    ------
    TypeError, ValueError
        Another dtype or shape.
    """
    if not on_device(value):
        return False
    check(value, "1", {}, func=func, name=name, dtype=FLOAT64)
    d.setdefault("device", name)
    return True


def check_scale_and_rate(scale: object, lr: object, d: Dims, *, func: str) -> None:
    """Raise unless an update's `scale` is finite and its `lr` finite and not negative.

    Either may be on a GPU, see `is_late`.
    """
    if not is_late(scale, d, func=func, name="scale"):
        check_number(scale, func=func, name="scale")  # type: ignore[arg-type]
    if not is_late(lr, d, func=func, name="lr"):
        check_number(lr, func=func, name="lr", low=0.0)  # type: ignore[arg-type]
