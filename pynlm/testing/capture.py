"""CUDA graphs without a GPU: work that is recorded by the addresses of its arrays, and done later.

What a graph on a card would silently do wrong, or refuse, shows here: numbers given by value are
those of the recording; memory that was let go of while recording is handed out again, and holds
rubbish when the graph begins; an array from elsewhere must still be there; whatever waits for the
device or reads the host's memory raises.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pynlm.cuda.graphs import CaptureError, Graph, Recorder
from pynlm.testing.races import timeline

Array = Any

arena: Arena | None = None
"""Where new arrays of the device come from, None: anywhere."""
_tape: list[Callable[[], None]] | None = None  # what is being recorded


class _Lease:
    """What an array and all its views hold on to."""

    __slots__ = ("__weakref__",)


_leases: weakref.WeakValueDictionary[int, _Lease] = weakref.WeakValueDictionary()


class Arena:
    """Memory for graphs: what nothing refers to any more is handed out again.

    A block serves requests of its own size, so that work which is repeated needs no other blocks.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, int], list[np.ndarray]] = {}

    def take(self, shape: Any, dtype: Any) -> Array:
        """An array of rubbish, NumPy's; CaptureError if there is no block while recording."""
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        # As CuPy's pool: each stream has blocks of its own.
        blocks = self._blocks.setdefault((timeline.current, size), [])
        block = next((b for b in blocks if id(b) not in _leases), None)
        if block is None:
            if _tape is not None:
                raise CaptureError(f"memory of {size} bytes that the rehearsal did not need")
            block = np.empty(size, np.uint8)
            blocks.append(block)
        block.fill(0xFF)  # NaN, or -1
        _taken.append(_Lease())
        _leases[id(block)] = _taken[-1]
        return np.ndarray(shape, dtype, block)

    def spoil(self) -> None:
        """Fill what is free with rubbish."""
        for blocks in self._blocks.values():
            for block in blocks:
                if id(block) not in _leases:
                    block.fill(0xFF)


_taken: list[_Lease] = []  # leases of arrays that are not behind the wall yet


def lease_of(x: Array) -> _Lease | None:
    """What an array behind the wall must hold on to, so that its memory stays its own."""
    lease = _leases.get(id(_root(x)))
    _taken.clear()
    return lease


def refuse(what: str) -> None:
    """CaptureError if a graph is being recorded."""
    if _tape is not None:
        raise CaptureError(f"{what} cannot be part of a graph")


def queue(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that writes to arrays (NumPy's), now or (then None) when the graph runs."""
    if _tape is None:
        return function(*args, **kwargs)
    given, named = _addresses(args), {name: _addresses(x) for name, x in kwargs.items()}

    def run() -> None:
        function(*_arrays(given), **{name: _arrays(x) for name, x in named.items()})

    _tape.append(run)
    return None


def compute(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of a function that writes to none of its arguments, or where it will be."""
    if arena is None:
        return function(*args, **kwargs)
    with np.errstate(all="ignore" if _tape is not None else None):  # of rubbish, for its shape
        found = function(*args, **kwargs)
    if not isinstance(found, (np.ndarray, np.generic)):
        refuse(f"{function}, whose result is the host's,")
        return found
    found = np.asarray(found)
    roots = {id(_root(x)) for x in _flat((args, tuple(kwargs.values())))}
    if id(_root(found)) in roots:
        return found  # a view
    out = arena.take(found.shape, found.dtype)
    if _tape is None:
        out[...] = found
    else:
        queue(_assign, out, function, args, kwargs)
    return out


def _assign(out: Array, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    out[...] = function(*args, **kwargs)


class EmulatedRecorder(Recorder):
    """Records what passes through `queue` and `compute`."""

    def __init__(self) -> None:
        self._arena = Arena()

    def rehearse(self, work: Callable[[], Any]) -> Any:
        with _in(self._arena, None):
            return work()

    def record(self, work: Callable[[], None]) -> Graph:
        tape: list[Callable[[], None]] = []
        with _in(self._arena, tape):
            work()
        return EmulatedGraph(tape, self._arena)


class EmulatedGraph:
    """Recorded work."""

    def __init__(self, tape: list[Callable[[], None]], memory: Arena) -> None:
        self._tape, self._memory = tape, memory

    def launch(self) -> None:
        """Do it."""
        self._memory.spoil()
        for run in self._tape:
            run()


@contextlib.contextmanager
def _in(memory: Arena, tape: list[Callable[[], None]] | None) -> Iterator[None]:
    global arena, _tape
    before = arena, _tape
    arena, _tape = memory, tape
    try:
        yield
    finally:
        arena, _tape = before


class _Address:
    """Where an array is; the memory is not kept."""

    def __init__(self, x: np.ndarray) -> None:
        root = _root(x)
        self._memory = weakref.ref(root)
        self._offset = x.ctypes.data - root.ctypes.data
        self._shape, self._dtype, self._strides = x.shape, x.dtype, x.strides

    def array(self) -> np.ndarray:
        memory = self._memory()
        if memory is None:
            raise CaptureError(f"the graph uses an array {list(self._shape)} that is gone")
        memory = memory if memory.flags.c_contiguous else memory.T
        return np.ndarray(self._shape, self._dtype, memory, self._offset, self._strides)


def _root(x: Any) -> Any:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


def _flat(x: Any) -> Iterator[np.ndarray]:
    if isinstance(x, np.ndarray):
        yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from _flat(part)


def _addresses(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return _Address(x)
    if isinstance(x, (tuple, list)):
        return type(x)(map(_addresses, x))
    if isinstance(x, dict):
        return {name: _addresses(value) for name, value in x.items()}
    return x


def _arrays(x: Any) -> Any:
    if isinstance(x, _Address):
        return x.array()
    if isinstance(x, (tuple, list)):
        return type(x)(map(_arrays, x))
    if isinstance(x, dict):
        return {name: _arrays(value) for name, value in x.items()}
    return x
