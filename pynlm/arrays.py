"""Contract checks shared by the kernels: named dimensions, dtypes, layout, ranges.

`check` binds dimension symbols across the arguments of one call, so a mismatch is reported with
the sizes that the other arguments imply::

    lstm_forward: w_hh must be float32 [4H=512, H=128], got float32 [512, 64]

Nothing here casts, copies or makes an array contiguous; the functions only raise.
TypeError: not an array, or another dtype. ValueError: shape, layout, range. IndexError: a
token id outside its vocabulary.

Arrays of a GPU (CuPy's) are checked like NumPy's, but for what they hold: to look at it would wait
for the device. Kernels on a GPU leave out or mark with NaN what an id out of range would reach.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Dims = dict[str, Any]
"""Dimension symbol -> size; the key "dtype" holds the dtype that all float arguments share, the key
"device" the name of the first argument on a GPU."""

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
INT32 = np.dtype(np.int32)
UINT32_MAX = 0xFFFFFFFF

# Only these may be zero: no time steps, no batch rows, no gathered rows, no parameters.
_MAY_BE_EMPTY = frozenset({"T", "B", "N", "R", "P"})

device_types: dict[type, Any] = {}
"""Types of arrays on a GPU besides CuPy's, and their modules: what stands for them in tests."""


def on_device(x: object) -> bool:
    """Whether `x` is an array on a GPU; imports nothing.

    Examples
    --------
    >>> on_device(np.zeros(3))
    False
    """
    kind = type(x)
    return kind in device_types or (
        kind.__name__ == "ndarray" and kind.__module__.partition(".")[0] == "cupy"
    )


def to_host(x: Any) -> Array:
    """`x` itself, or (waiting for the device) a NumPy copy of an array on a GPU."""
    return x.get() if on_device(x) else x


def xp_of(x: object) -> Any:
    """The module of an array: numpy or cupy."""
    if not on_device(x):
        return np
    return device_types.get(type(x)) or sys.modules["cupy"]


def ndim_of(x: Any) -> int:
    """`np.ndim`, also of an array on a GPU.

    Examples
    --------
    >>> ndim_of([1.0, 2.0]), ndim_of(3.0)
    (1, 0)
    """
    return int(x.ndim) if on_device(x) else np.ndim(x)


_ndarray = np.ndarray  # one look-up less in each check
_Terms = tuple[tuple[int, str], ...]
_terms: dict[str, _Terms] = {}


def check(
    x: object,
    spec: str,
    dims: Dims,
    *,
    func: str,
    name: str,
    dtype: np.dtype[Any] | None = None,
    out: bool = False,
) -> None:
    """Raise unless `x` is a C-contiguous array with the dimensions of `spec`.

    Parameters
    ----------
    x
        The argument to check.
    spec
        Dimensions separated by spaces, each a symbol with an optional integer factor: "T B 4H".
        A symbol met for the first time is bound in `dims`; afterwards it must have that size.
        A number alone is that size.
    dims
        The bindings of this call, begun as `{}`.
    func, name
        Function and argument named in the error.
    dtype
        Exact dtype; None means the call's float dtype (float32 or float64), bound by the first
        float argument.
    out
        The array is written, so it must be writeable.

    Raises
    ------
    TypeError
        No array of NumPy or CuPy, or another dtype.
    ValueError
        Another number of dimensions, another size, not C-contiguous, not aligned, read-only.

    Examples
    --------
    >>> dims = {}
    >>> check(np.zeros((8, 3)), "4H I", dims, func="f", name="w")
    >>> dims["H"], dims["I"]
    (2, 3)
    """
    terms = _terms.get(spec) or _parse(spec)
    host = isinstance(x, _ndarray)
    if not host:
        if not on_device(x):
            raise TypeError(_message(x, terms, dims, func, name, dtype))
        dims.setdefault("device", name)
    want = dims.get("dtype") if dtype is None else dtype
    have = x.dtype  # type: ignore[attr-defined]
    if have is not want:
        if want is None and have in (FLOAT32, FLOAT64):
            dims["dtype"] = have
        elif want is None or have != want:
            raise TypeError(_message(x, terms, dims, func, name, dtype))
    shape = x.shape  # type: ignore[attr-defined]
    if len(shape) != len(terms):
        raise ValueError(_message(x, terms, dims, func, name, dtype))
    for size, (factor, symbol) in zip(shape, terms, strict=True):
        bound = dims.get(symbol) if symbol else 1
        if bound is None:
            bound, rest = divmod(size, factor)
            if rest or (bound == 0 and symbol not in _MAY_BE_EMPTY):
                raise ValueError(_message(x, terms, dims, func, name, dtype))
            dims[symbol] = bound
        elif size != factor * bound:
            raise ValueError(_message(x, terms, dims, func, name, dtype))
    flags = x.flags  # type: ignore[attr-defined]
    if host:
        good = flags.carray if out else flags.c_contiguous and flags.aligned
    else:
        good = flags.c_contiguous  # CuPy's arrays are aligned and writeable
    if not good:
        raise ValueError(layout_message(x, func, name))  # type: ignore[arg-type]


def check_together(*, func: str, **given: object) -> bool:
    """Raise ValueError if only some of the arguments are None; return whether none is.

    Examples
    --------
    >>> check_together(func="f", gates=None, c=None)
    False
    """
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"{func}: {' and '.join(given)} must be given together, got {missing[0]}=None"
        )
    return not missing


def check_any_shape(
    x: object, dims: Dims, *, func: str, name: str, out: bool = False
) -> npt.NDArray[Any]:
    """Like `check`, for a float array of any shape; returns its flat view."""
    array: Any = x
    host = isinstance(x, np.ndarray)
    if not (host or on_device(x)) or array.dtype not in (FLOAT32, FLOAT64):
        expected = "float32 or float64 [...]"
        raise TypeError(f"{func}: {name} must be {expected}, got {describe(x)}")
    dims["dtype"] = array.dtype
    flags = array.flags
    if host:
        good = flags.carray if out else flags.c_contiguous and flags.aligned
    else:
        dims["device"], good = name, flags.c_contiguous
    if not good:
        raise ValueError(layout_message(array, func, name))
    flat: npt.NDArray[Any] = array.reshape(-1)
    return flat


def check_lengths(lengths: object, dims: Dims, *, func: str) -> None:
    """Raise unless `lengths` is None or int32 [B], non-increasing, in [0, T].

    `dims` must hold B and T already. On a GPU they are not looked at.
    """
    if lengths is None:
        return
    check(lengths, "B", dims, func=func, name="lengths", dtype=INT32)
    if on_device(lengths):
        return
    values: list[int] = lengths.tolist()  # type: ignore[attr-defined]
    limit = dims["T"]
    previous = limit
    for row, n in enumerate(values):
        if not 0 <= n <= limit:
            raise ValueError(f"{func}: lengths[{row}] must be in [0, T={limit}], got {n}")
        if n > previous:
            raise ValueError(
                f"{func}: lengths must be non-increasing, got lengths[{row}]={n} after {previous}"
            )
        previous = n


def check_ids(ids: object, limit: int, *, func: str, name: str, symbol: str = "V") -> None:
    """Raise IndexError, naming the first position, unless every id is in [0, limit).

    `ids` must have passed `check` with dtype int32. On a GPU they are not looked at.
    """
    if on_device(ids):
        return
    assert isinstance(ids, np.ndarray)
    # As unsigned numbers negative ids are huge, so one pass finds both kinds of fault.
    if ids.size and int(ids.view(np.uint32).max()) >= limit:
        position = int(np.argmax(ids.view(np.uint32) >= limit))
        raise IndexError(
            f"{func}: {name}[{position}] must be in [0, {symbol}={limit}), got {int(ids[position])}"
        )


def check_rows(rows: object, limit: int, *, func: str) -> None:
    """Raise unless `rows` (checked int32) is strictly increasing and in [0, limit)."""
    check_ids(rows, limit, func=func, name="rows")
    if isinstance(rows, np.ndarray) and rows.size > 1:
        falls = rows[1:] <= rows[:-1]
        if falls.any():
            at = int(np.argmax(falls)) + 1
            raise ValueError(
                f"{func}: rows must be strictly increasing, "
                f"got rows[{at}]={int(rows[at])} after {int(rows[at - 1])}"
            )


def check_number(
    value: float,
    *,
    func: str,
    name: str,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raise ValueError unless `value` is finite and in the interval; TypeError if no number."""
    try:
        inside = (low < value if low_open else low <= value) and (
            value < high if high_open else value <= high
        )
        finite = math.isfinite(value)
    except TypeError:
        raise TypeError(f"{func}: {name} must be a number, got {describe(value)}") from None
    if not (inside and finite):
        left, right = "[("[low_open or low == -math.inf], "])"[high_open or high == math.inf]
        raise ValueError(
            f"{func}: {name} must be in {left}{low:g}, {high:g}{right}, got {float(value)!r}"
        )


def check_integer(value: int, *, func: str, name: str, low: int, high: int) -> None:
    """Raise unless `value` is an integer in [low, high]."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{func}: {name} must be an integer, got {describe(value)}")
    if not low <= value <= high:
        raise ValueError(f"{func}: {name} must be in [{low}, {high}], got {value}")


def describe(x: object) -> str:
    """Say what came: "float32 [5, 3]" for an array, else the type and a scalar's value."""
    if isinstance(x, np.ndarray):
        return f"{x.dtype} [{', '.join(map(str, x.shape))}]"
    if on_device(x):
        array: Any = x
        return f"{array.dtype} [{', '.join(map(str, array.shape))}] on a GPU"
    if isinstance(x, (int, float, str)) and len(repr(x)) <= 40:
        return f"{type(x).__name__} {x!r}"
    return type(x).__name__


def layout_message(x: Array, func: str, name: str) -> str:
    """The error for an array of the right shape and dtype that cannot be used as it lies."""
    if not x.flags.c_contiguous:
        return (
            f"{func}: {name} must be C-contiguous (np.ascontiguousarray makes a copy that is), "
            f"got {describe(x)} with strides {list(x.strides)}"
        )
    if not x.flags.aligned:
        return f"{func}: {name} must be aligned to its items, got an unaligned {describe(x)}"
    return f"{func}: {name} must be writeable, got a read-only {describe(x)}"


def _parse(spec: str) -> _Terms:
    terms = []
    for word in spec.split():
        symbol = word.lstrip("0123456789")
        terms.append((int(word[: len(word) - len(symbol)] or 1), symbol))
    _terms[spec] = tuple(terms)
    return _terms[spec]


def _message(
    x: object, terms: _Terms, dims: Dims, func: str, name: str, dtype: np.dtype[Any] | None
) -> str:
    kind = dtype or dims.get("dtype") or "float32 or float64"
    parts = []
    for factor, symbol in terms:
        text = f"{factor}{symbol}" if factor != 1 or not symbol else symbol
        if symbol in dims:
            text += f"={factor * dims[symbol]}"
        elif symbol and isinstance(x, np.ndarray) and 0 in x.shape and symbol not in _MAY_BE_EMPTY:
            text += ">0"
        parts.append(text)
    return f"{func}: {name} must be {kind} [{', '.join(parts)}], got {describe(x)}"
