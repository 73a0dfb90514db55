"""What stands for CuPy in tests without a GPU: arrays that NumPy's functions do not take.

NumPy arrays in the place of a GPU's would hide what fails on a GPU: a NumPy array where one of the
device is wanted, or the reverse, and waits for the device. These arrays know what CuPy's know and
are as strict, or stricter: an index must be on the device, too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pynlm.arrays import describe, device_types
from pynlm.testing import capture
from pynlm.testing.races import timeline


class DeviceArray:
    """An array "on the device": NumPy's, behind a wall.

    Attributes
    ----------
    waits
        Of the class: how many times anything had to wait for the device.

    Examples
    --------
    >>> x = Cupy().asarray(np.arange(3.0))
    >>> (x + x).get()
    array([0., 2., 4.])
    >>> np.asarray(x)
    Traceback (most recent call last):
    TypeError: implicit conversion of a GPU's array to NumPy's
    """

    __slots__ = ("__weakref__", "_array", "_lease")

    waits = 0

    def __init__(self, array: Any) -> None:
        self._array = np.asarray(array)
        timeline.made(self._array)
        self._lease = capture.lease_of(self._array)

    # ---- what waits

    def get(self) -> Any:
        """A NumPy copy."""
        _wait("a wait for the device")
        timeline.operation("get", reads=[self._array])
        return self._array.copy()

    def item(self) -> Any:
        """The only element."""
        return self.get().item()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion of a GPU's array to NumPy's")

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    __index__ = __int__

    # ---- what does not

    def set(self, array: Any) -> None:
        """Overwrite by a NumPy array of the same shape and dtype."""
        assert type(array) is np.ndarray and array.flags.c_contiguous
        assert array.shape == self.shape and array.dtype == self.dtype, describe(array)
        capture.refuse("a copy from the host")
        timeline.operation("set", writes=[self._array])
        self._array[...] = array

    @property
    def flags(self) -> _Flags:
        """Contiguity."""
        return _Flags(self._array.flags)

    @property
    def T(self) -> DeviceArray:
        """Transposed."""
        return DeviceArray(self._array.T)

    def __getattr__(self, name: str) -> Any:
        if name in _FACTS:
            return getattr(self._array, name)
        if name not in _METHODS:
            raise AttributeError(f"a GPU's array has no {name}")
        return partial(_wrapped(partial(_call_method, name), fills=name == "fill"), self)

    def __len__(self) -> int:
        return len(self._array)

    def __repr__(self) -> str:
        return f"DeviceArray({self._array!r})"

    def __getitem__(self, index: Any) -> DeviceArray:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(i, DeviceArray) and i.dtype == bool for i in parts):
            _wait("an index whose size must be known")
        found: DeviceArray = _wrapped(_item)(self, index)
        return found

    def __setitem__(self, index: Any, value: Any) -> None:
        _wrapped(operator.setitem, fills=True)(self, index, value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        return _wrapped(ufunc)(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"np.{function.__name__}: a GPU's array; call its own module")

    __hash__ = None  # type: ignore[assignment]


class _Flags:
    """CuPy's flags, of which there are few."""

    def __init__(self, flags: Any) -> None:
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous


class Cupy:
    """The module `cupy`, as far as NumPy has the same functions."""

    ndarray = DeviceArray

    def asarray(self, x: Any, dtype: Any = None) -> DeviceArray:
        """A copy on the device, or `x` itself if it is there."""
        if isinstance(x, DeviceArray) and dtype in (None, x.dtype):
            return x
        return self.array(x, dtype)

    def array(self, x: Any, dtype: Any = None) -> DeviceArray:
        """A copy on the device."""
        if not isinstance(x, DeviceArray):
            capture.refuse("a copy from the host")
        own = x._array if isinstance(x, DeviceArray) else x
        copy = DeviceArray(capture.compute(np.array, own, dtype))
        timeline.operation("array", _arrays([own]) if own is not x else [], [copy._array])
        return copy

    def empty(self, shape: Any, dtype: Any = float) -> DeviceArray:
        """Memory filled with NaN or -1."""
        dtype = np.dtype(dtype)
        if capture.arena is not None:
            return DeviceArray(capture.arena.take(shape, dtype))
        return DeviceArray(np.full(shape, np.nan if dtype.kind == "f" else -1).astype(dtype))

    def empty_like(self, x: DeviceArray) -> DeviceArray:
        """Memory filled with NaN or -1."""
        return self.empty(x.shape, x.dtype)

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found
        function = _wrapped(found, fills=name == "copyto")

        def call(*args: Any, **kwargs: Any) -> Any:
            if name in _WAITING:
                _wait(name)
            if name in _COPYING:
                capture.refuse(name)
            return function(*args, **kwargs)

        return call


_FACTS = {"shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides"}
_METHODS = {
    *("reshape", "ravel", "astype", "copy", "fill", "sum", "max", "min", "any", "all", "view"),
    *("argmax", "argmin", "argsort", "take", "transpose", "mean", "cumsum", "dot"),
}
# How large their results are is known only when they are.
_WAITING = {"unique", "nonzero", "flatnonzero", "argwhere", "array_equal"}
# CuPy copies the arrays' addresses from the host.
_COPYING = {"concatenate", "stack", "vstack", "hstack"}


def _wait(what: str) -> None:
    capture.refuse(what)
    DeviceArray.waits += 1


def _item(x: Any, index: Any) -> Any:
    """CuPy's x[index]: one number is a view, too."""
    found = x[index]
    if isinstance(found, np.generic):
        return x[(*index, ...) if isinstance(index, tuple) else (index, ...)]
    return found


def _call_method(name: str, x: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(x, name)(*args, **kwargs)


def unwrap(x: Any) -> Any:
    """The NumPy array behind the wall; TypeError for one in front of it."""
    if isinstance(x, DeviceArray):
        return x._array
    if isinstance(x, np.ndarray):
        raise TypeError(f"NumPy's {describe(x)} among arrays of a GPU")
    if isinstance(x, (tuple, list)):
        return type(x)(map(unwrap, x))
    return x


def wrap(x: Any) -> Any:
    """The inverse; scalars of NumPy become arrays, as CuPy has it."""
    if isinstance(x, (np.ndarray, np.generic)):
        return DeviceArray(x)
    return tuple(map(wrap, x)) if isinstance(x, tuple) else x


def _wrapped(function: Callable[..., Any], *, fills: bool = False) -> Callable[..., Any]:
    """The function of arrays of the device; `fills`: it writes to the first of them."""
    name = getattr(function, "__name__", None) or getattr(function, "args", ("",))[0]

    def call(*args: Any, **kwargs: Any) -> Any:
        given = {key: unwrap(value) for key, value in kwargs.items()}
        own = unwrap(args)
        reads, out = _arrays([*own, *given.values()]), given.get("out")
        if fills:
            reads, out = _arrays([*own[1:], *given.values()]), own[0]
            if function is operator.setitem and not _gathers(own[1]):
                out = _item(own[0], own[1])
        if out is not None:
            timeline.operation(str(name), reads, _arrays([out]))
            capture.queue(function, *own, **given)
            out = kwargs.get("out")
            return out[0] if isinstance(out, tuple) else out
        found = wrap(capture.compute(function, *own, **given))
        made = found if isinstance(found, tuple) else (found,)
        copies = [
            x._array
            for x in made
            if isinstance(x, DeviceArray)
            and not any(np.may_share_memory(x._array, y) for y in reads)
        ]
        if copies:  # what is left are views
            timeline.operation(str(name), reads, copies)
        return found

    return call


def _gathers(index: Any) -> bool:
    """Whether what an index finds is a copy."""
    return any(isinstance(i, (list, np.ndarray)) for i in _parts(index))


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _arrays(values: Any) -> list[Any]:
    """NumPy's arrays in nested sequences."""
    found = []
    for x in values:
        if isinstance(x, np.ndarray):
            found.append(x)
        elif isinstance(x, (tuple, list)):
            found += _arrays(x)
    return found


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: DeviceArray) -> DeviceArray:
        found: DeviceArray = _wrapped(function)(self)
        return found

    return call


def _operators() -> None:
    def infix(function: Callable[..., Any], *, swapped: bool) -> Callable[..., Any]:
        def call(self: DeviceArray, other: Any) -> DeviceArray:
            pair = (other, self) if swapped else (self, other)
            found: DeviceArray = _wrapped(function)(*pair)
            return found

        return call

    def inplace(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: DeviceArray, other: Any) -> DeviceArray:
            _wrapped(function, fills=True)(self, other)
            return self

        return call

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
        function = getattr(operator, f"__{name}__")
        setattr(DeviceArray, f"__{name}__", infix(function, swapped=False))
        setattr(DeviceArray, f"__r{name}__", infix(function, swapped=True))
        setattr(DeviceArray, f"__i{name}__", inplace(getattr(operator, f"__i{name}__")))
    for name in ("lt", "le", "eq", "ne", "gt", "ge", "and", "or", "xor"):
        function = getattr(operator, f"__{name}__")
        setattr(DeviceArray, f"__{name}__", infix(function, swapped=False))
    for name in ("neg", "abs", "invert"):
        function = getattr(operator, f"__{name}__")
        setattr(DeviceArray, f"__{name}__", _unary(function))


_operators()
device_types[DeviceArray] = Cupy()
