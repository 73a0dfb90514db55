"""What biases need on a GPU: a vector added to every row, and sums over rows."""

from __future__ import annotations

from .device import Array, current

_SOURCE = "common/columns.cu"
_WIDTH, _ROWS, _WARPS = 32, 128, 8  # columns and rows summed by a block of so many warps
_MOST_DOWN = 65535  # blocks in a grid's second dimension


def add_to_rows(y: Array, b: Array) -> None:
    """y[r, c] += b[c] in place.

    Parameters
    ----------
    y : [R, C]
    b : [C]
    """
    device = current()
    R, C = y.shape
    if not R:
        return
    across = device.blocks_for(C)
    blocks = (across, min(R, max(1, 8 * device.processors // across)))
    device.launch(_SOURCE, "add_to_rows", blocks, real=y.dtype, y=y, b=b, R=R, C=C)


def column_sum(
    y: Array,
    x: Array,
    *,
    by: Array | None = None,
    lengths: Array | None = None,
    accumulate: bool = False,
) -> None:
    """y[c] = sum of x[r, c] over r, or with `accumulate` that added to y.

    The order of additions depends on the shape alone. One launch for up to 128 rows, else two.

    Parameters
    ----------
    y : [C], output
    x : [R, C]
        R may be 0.
    by : [R, C] or None
        What x is multiplied by, number by number.
    lengths : int32 [B] or None
        Of R = T B rows those that take part.
    """
    device = current()
    R, C = x.shape
    spans = max(1, -(-R // _ROWS))
    sums = y if spans == 1 else device.empty((spans, C), y.dtype)
    device.launch(
        _SOURCE,
        "column_sum_blocks",
        (-(-C // _WIDTH), min(spans, _MOST_DOWN)),
        real=y.dtype,
        shared=_WIDTH * _WARPS * y.dtype.itemsize,
        sums=sums,
        x=x,
        by=by,
        lengths=lengths,
        B=1 if lengths is None else len(lengths),
        R=R,
        C=C,
        accumulate=accumulate and spans == 1,
    )
    if spans > 1:
        sum_parts(y, sums, accumulate=accumulate)


def sum_parts(y: Array, sums: Array, *, accumulate: bool = False) -> None:
    """y[c] = sum of sums[s, c] over s in this order, or with `accumulate` that added to y."""
    device = current()
    S, C = sums.shape
    device.launch(
        _SOURCE,
        "column_sum_total",
        device.blocks_for(C),
        real=y.dtype,
        y=y,
        sums=sums,
        S=S,
        C=C,
        accumulate=accumulate,
    )
