"""What layers and models convert for their callers: lists, int64 ids, layouts, row order.

Kernels convert nothing. Floats keep their precision: a float64 array for a float32 layer is an
error, which the kernel raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import describe, on_device, to_host
from pynlm.layers.pool import Pool

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int32]
_INT32 = np.dtype(np.int32)


def as_ids(x: object, *, func: str, name: str) -> IntArray:
    """Integers of any width (array or nested lists) as C-contiguous NumPy int32.

    Layers want ids on the host: there they can be looked at. CuPy's are waited for.

    Raises
    ------
    TypeError
        Not integers.
    IndexError
        A value that int32 cannot hold.
    """
    if type(x) is np.ndarray and x.dtype == _INT32 and x.flags.c_contiguous:
        return x
    a = np.asarray(to_host(x))
    if a.dtype.kind not in "iu":
        if a.size:
            raise TypeError(f"{func}: {name} must be integers, got {a.dtype}")
        a = a.astype(_INT32)
    if a.size and a.dtype.itemsize >= 4 and a.dtype != _INT32:
        info = np.iinfo(_INT32)
        low, high = int(a.min()), int(a.max())
        if low < info.min or high > info.max:
            value = low if low < info.min else high
            raise IndexError(f"{func}: {name} must fit in int32, got {value}")
    return np.ascontiguousarray(a, _INT32)


def as_floats(x: object, dtype: np.dtype[Any]) -> Array:
    """An array made C-contiguous; a list (or other non-array) also gets `dtype`."""
    if type(x) is np.ndarray:
        return x if x.flags.c_contiguous else np.ascontiguousarray(x)
    if on_device(x):
        there: Any = x
        return there if there.flags.c_contiguous else there.copy()
    return np.ascontiguousarray(x, None if isinstance(x, np.ndarray) else dtype)


def as_exact_floats(x: object, dtype: np.dtype[Any], *, func: str, name: str) -> Array:
    """`as_floats`, with an error that names what is not numbers or of another dtype.

    Raises
    ------
    TypeError
        Naming the function and the argument.
    """
    try:
        a = as_floats(x, dtype)
    except (TypeError, ValueError):  # NumPy's, of words, ragged lists and the like
        a = None
    if a is None or a.dtype != dtype:
        raise TypeError(f"{func}: {name} must be {dtype}, got {describe(x)}")
    return a


def as_counts(counts: object, *, func: str, size: int | None = None) -> npt.NDArray[np.int64]:
    """How often each token occurs, as int64 [V] (V: `size`, or any from 1 on).

    Raises
    ------
    TypeError, ValueError
        No integers; another shape; a negative count.
    """
    want = "[V], V >= 1" if size is None else f"[V={size}]"
    given = np.asarray(counts)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{func}: counts must be integers {want}, got {describe(given)}")
    if given.ndim != 1 or not given.size or (size is not None and len(given) != size):
        raise ValueError(f"{func}: counts must be {want}, got {list(given.shape)}")
    numbers = given.astype(np.int64)
    if numbers.min() < 0:
        v = int(np.argmax(numbers < 0))
        raise ValueError(f"{func}: counts must not be negative, got counts[{v}]={given[v]}")
    return numbers


class RowOrder:
    """Rows of a batch sorted by falling length, as the recurrent kernels take them.

    Attributes
    ----------
    rows
        int64 [B]: row b of the sorted batch is row `rows[b]` of the caller's batch.
    lengths
        int32 [B], non-increasing.
    """

    __slots__ = ("_back", "_there", "lengths", "rows")

    def __init__(self, lengths: IntArray) -> None:
        self.rows = np.argsort(-lengths.astype(np.int64), kind="stable")
        self.lengths = np.ascontiguousarray(lengths[self.rows])
        self._back = np.empty_like(self.rows)
        self._back[self.rows] = np.arange(len(self.rows))
        self._there: dict[bool, Array] = {}  # both orders on a GPU

    def sort(self, x: Array, pool: Pool, axis: int = 1) -> Array:
        """A leased copy of `x` in sorted order."""
        return take(x, self._index(x, pool, back=False), pool, axis)

    def restore(self, x: Array, pool: Pool, axis: int = 1) -> Array:
        """A leased copy of `x` in the caller's order."""
        return take(x, self._index(x, pool, back=True), pool, axis)

    def sort_state(self, state: Sequence[Array], pool: Pool) -> tuple[Array, ...]:
        """Copies of a layer's state [B, H] in sorted order, no leases."""
        return tuple(s[self._index(s, pool, back=False)] for s in state)

    def restore_state(self, state: Sequence[Array], pool: Pool) -> tuple[Array, ...]:
        """Copies of a layer's state [B, H] in the caller's order, no leases."""
        return tuple(s[self._index(s, pool, back=True)] for s in state)

    def _index(self, x: Array, pool: Pool, *, back: bool) -> Array:
        """One of the two orders where `x` is."""
        index = self._back if back else self.rows
        if not on_device(x):
            return index
        if back not in self._there:
            self._there[back] = pool.bring(index)
        return self._there[back]


def row_order(
    lengths: object, time: int, batch: int, *, func: str
) -> tuple[IntArray | None, RowOrder | None]:
    """Checked `lengths` as the kernels take them, and the row order if they had to be sorted.

    Raises
    ------
    TypeError, ValueError
        `lengths` is not [B] integers in [0, T].
    """
    if lengths is None:
        return None, None
    n = as_ids(lengths, func=func, name="lengths")
    if n.shape != (batch,):
        raise ValueError(f"{func}: lengths must be int32 [B={batch}], got {list(n.shape)}")
    if batch == 0:
        return n, None
    low, high = int(n.min()), int(n.max())
    if low < 0 or high > time:
        wrong = low if low < 0 else high
        raise ValueError(f"{func}: lengths must be in [0, T={time}], got {wrong}")
    if not (n[1:] > n[:-1]).any():
        return n, None
    order = RowOrder(n)
    return order.lengths, order


def take(x: Array, index: npt.NDArray[np.intp], pool: Pool, axis: int = 0) -> Array:
    """`x.take(index, axis)`, leased from the pool if `x` lives where the pool's arrays do.

    The index, in range, is NumPy's or where `x` is.
    """
    if pool.device is not None:
        there = not on_device(x) or on_device(index)
        found: Array = x.take(index if there else pool.bring(index), axis)
        return found
    shape = x.shape[:axis] + index.shape + x.shape[axis + 1 :]
    # mode="clip" spares the buffered output that "raise" makes; nothing is clipped.
    return np.take(x, index, axis=axis, out=pool.lease(shape, x.dtype), mode="clip")
