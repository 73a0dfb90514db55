"""Where a model's arrays live, and reused buffers, so that a steady step allocates no large one."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod
from sys import getrefcount
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pynlm.cuda.device import Device
    from pynlm.cuda.lanes import Lanes
    from pynlm.layers.recurrent import Recurrent

Array = npt.NDArray[Any]

ALIGN = 64
DEVICES = ("cpu", "cuda")


class OneLane:
    """`pynlm.cuda.lanes.Lanes` where nothing runs side by side: no waiting, nothing to keep."""

    def __getitem__(self, i: int) -> AbstractContextManager[None]:
        return nullcontext()

    def mark(self) -> None:
        """No event."""

    def wait(self, event: object, *arrays: Array) -> None:
        """Nothing to wait for."""

    def hold(self, *arrays: Array) -> None:
        """Nothing to keep."""


class _Buffer:
    """One block of bytes; free when only this object refers to its array."""

    __slots__ = ("offset", "raw", "size")

    def __init__(self, size: int) -> None:
        self.raw: npt.NDArray[np.uint8] = np.empty(size + ALIGN, np.uint8)
        self.offset = -self.raw.ctypes.data % ALIGN
        self.size = size

    def __lt__(self, other: _Buffer) -> bool:
        return self.size < other.size

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        x: Array = np.ndarray(shape, dtype, self.raw, self.offset)
        return x

    def references(self) -> int:
        return getrefcount(self.raw)


# What `references` returns for a free buffer; measured, because Python versions differ.
_FREE = _Buffer(0).references()


class Pool:
    """Leases arrays of one device; a lease ends when nothing refers to the array any more.

    Reference counts decide, so there is nothing to hand back: a closure that is called or dropped
    lets go of its arrays, and the next lease of a like size takes their memory. An array (or view)
    that anybody still holds is never handed out again.

    A buffer serves requests of half its size and more. When none is free, one is made, and the
    largest free one that is too small (but more than half as large) is dropped: shapes that vary
    within a factor keep one buffer each, not one a shape. On a GPU all of this is CuPy's own doing.

    Parameters
    ----------
    device
        The GPU that arrays live on; None: they are NumPy's. See `pool_on`.

    Attributes
    ----------
    device
        As given.
    xp
        The module of the arrays: numpy or cupy.

    Examples
    --------
    >>> pool = Pool()
    >>> x = pool.lease((35, 20, 650), np.float32)
    >>> del x
    >>> x = pool.lease((35, 20, 650), np.float32)
    >>> pool.allocations
    1
    """

    def __init__(self, device: Device | None = None) -> None:
        self.device = device
        self.xp: Any = np if device is None else device.xp
        self._buffers: list[_Buffer] = []  # by rising size
        self._lock = threading.Lock()
        self._staged: tuple[tuple[Array, Array], ...] = ()
        self.allocations = 0
        """How many buffers were ever made; constant in a steady state."""

    def lease(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An uninitialised, 64-byte-aligned, C-contiguous array."""
        if self.device is not None:
            leased: Array = self.device.empty(shape, dtype)
            return leased
        dtype = np.dtype(dtype)
        need = prod(shape) * dtype.itemsize
        with self._lock:
            buffers = self._buffers
            first = bisect_left(buffers, need, key=_size) if buffers else 0
            for i in range(first, len(buffers)):
                buffer = buffers[i]
                if buffer.size > max(2 * need, ALIGN):
                    break
                if buffer.references() == _FREE:
                    return buffer.view(shape, dtype)
            for i in range(first - 1, -1, -1):
                buffer = buffers[i]
                if 2 * buffer.size <= need:
                    break
                if buffer.references() == _FREE:
                    del buffers[i]
                    break
            buffer = _Buffer(_round_up(need))
            insort(buffers, buffer)
            self.allocations += 1
            return buffer.view(shape, dtype)

    def like(self, x: Array) -> Array:
        """A lease with the shape and dtype of `x`."""
        return self.lease(x.shape, x.dtype)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An array as it lies that is no lease: a result, of which callers may keep thousands."""
        if self.device is None:
            return np.empty(shape, dtype)
        made: Array = self.device.empty(shape, dtype)
        return made

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Zeros that are no lease."""
        if self.device is None:
            return np.zeros(shape, dtype)
        made: Array = self.device.zeros(shape, dtype)
        return made

    def flat_zeros(self, size: int, dtype: np.dtype[Any]) -> Array:
        """Zeros [size] that begin at a multiple of 64 bytes."""
        return aligned_zeros(size, dtype) if self.device is None else self.zeros((size,), dtype)

    @contextmanager
    def computing_in(self, math: str) -> Iterator[None]:
        """Within the block a GPU computes products of float32 numbers in `math`, see its `MATH`."""
        device = self.device
        if device is None:
            yield
            return
        before, device.math = device.math, math
        try:
            yield
        finally:
            device.math = before

    def lanes(self, count: int) -> AbstractContextManager[OneLane | Lanes]:
        """So many lanes of a GPU that run side by side until the end of the block.

        Examples
        --------
        >>> with Pool().lanes(2) as lanes:
        ...     with lanes[0]:
        ...         x, done = np.ones(3), lanes.mark()
        ...     with lanes[1]:
        ...         lanes.wait(done, x)  # what is read of another lane
        ...         y = 2 * x
        >>> y
        array([2., 2., 2.])
        """
        if self.device is None or count == 1:
            return nullcontext(OneLane())
        return self.device.fork(count)

    def waves(self, layers: Sequence[Recurrent], time: int, batch: int) -> tuple[int, int]:
        """Lanes, and chunks of time, in which layers one upon another are fastest; (1, 1): whole.

        Depends on shapes and the kind of device only.
        """
        if self.device is None or len(layers) < 2:
            return 1, 1
        from pynlm.cuda import waves

        cells = tuple(waves.Cell(**layer.sizes) for layer in layers)  # type: ignore[arg-type]
        return waves.chunks_of(self.device, cells, time, batch)

    def pair(self, layers: Sequence[Recurrent], time: int, batch: int) -> int:
        """Lanes, 1 or 2, in which two layers that need nothing of each other are fastest."""
        if self.device is None:
            return 1
        from pynlm.cuda import waves

        cells = tuple(waves.Cell(**layer.sizes) for layer in layers)  # type: ignore[arg-type]
        return 1 + waves.worth_two_lanes(self.device, cells, time, batch)

    def explained(self, error: MemoryError) -> MemoryError:
        """The same, with what is free on a GPU."""
        return error if self.device is None else self.device.explained(error)

    def bring(self, x: Array) -> Array:
        """A NumPy array to where the pool's are: itself, or a copy on the GPU, without waiting."""
        if self.device is None:
            return x
        if self._staged:
            for own, place in self._staged:
                if own.dtype == x.dtype and own.ctypes.data == x.ctypes.data and own.size == x.size:
                    staged: Array = place.reshape(x.shape)
                    return staged
        there: Array = self.device.bring(x)
        return there

    @contextmanager
    def staged(self, pairs: Sequence[tuple[Array, Array]]) -> Iterator[None]:
        """Within the block `bring` of these NumPy arrays gives the GPU's arrays beside them.

        That of a view of the whole, too.
        """
        self._staged = tuple(pairs)
        try:
            yield
        finally:
            self._staged = ()

    def load(self, out: Array, x: Array) -> None:
        """Copy a NumPy array into one of the pool's device."""
        if self.device is None:
            np.copyto(out, x)
        else:
            out.set(np.ascontiguousarray(x))  # type: ignore[attr-defined]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, leased and free."""
        return sum(buffer.size for buffer in self._buffers)

    @property
    def leased(self) -> int:
        """How many buffers are in use."""
        return sum(buffer.references() != _FREE for buffer in self._buffers)

    def trim(self) -> None:
        """Give the free buffers back to the system."""
        with self._lock:
            self._buffers = [b for b in self._buffers if b.references() != _FREE]


def pool_on(device: str, func: str = "Pool") -> Pool:
    """A pool of arrays on "cpu" or "cuda", the current GPU.

    Raises
    ------
    ValueError
        Another device.
    pynlm.cuda.device.DeviceUnavailable (a RuntimeError)
        There is no GPU, or no CuPy; the message names what to install.
    """
    if device not in DEVICES:
        valid = " or ".join(map(repr, DEVICES))
        raise ValueError(f"{func}: device must be {valid}, got {device!r}")
    if device == "cpu":
        return Pool()
    from pynlm.cuda.device import current

    return Pool(current())


def aligned_zeros(size: int, dtype: np.dtype[Any]) -> Array:
    """Zeros [size] that begin at a multiple of 64 bytes; untouched, they take no memory."""
    # np.zeros maps zero pages lazily
    raw = np.zeros(size * dtype.itemsize + ALIGN, np.uint8)
    zeros: Array = np.ndarray((size,), dtype, raw, -raw.ctypes.data % ALIGN)
    return zeros


def _size(buffer: _Buffer) -> int:
    return buffer.size


def _round_up(size: int) -> int:
    # At most 1/8 more than asked for, so that slightly different shapes share a buffer.
    step = max(ALIGN, 1 << max(0, size.bit_length() - 1) >> 3)
    return -(-size // step) * step
