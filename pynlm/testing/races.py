"""Accesses of arrays on streams, and whether they are ordered: what a race detector knows.

Every operation belongs to the stream that is current when it is queued. A vector clock for each
stream says which operations of the others it comes after, through events. An access that is not
ordered after a conflicting one (one of the two writes) raises, whatever order things happened to
run in here. So does memory that CuPy's pool could hand out again too early: it gives what was freed
back to the stream that it was allocated on, at once, so the next allocation there must come after
all that other streams did with it. Ranges of strided views count as whole, and any allocation as
one that takes the freed memory: stricter than a card.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_Stream = str
_Clock = dict[_Stream, int]
MAIN = "the default stream"


class Race(RuntimeError):
    """Two operations on different streams that nothing orders; the message names both."""


@dataclass
class _Memory:
    """An allocation: its stream, and the latest access of each kind (stream, range, writes)."""

    stream: _Stream
    made_by: str
    accesses: dict[tuple[_Stream, int, int, bool], tuple[int, str]] = field(default_factory=dict)
    reference: Any = None


class Timeline:
    """Streams, their clocks, and all memory.

    Attributes
    ----------
    current
        The stream that operations are queued on.
    forked
        The stream that must be left alone until its lanes are joined, if there is one.
    used
        Names of streams that were given work.

    Examples
    --------
    >>> timeline, x = Timeline(), np.zeros(3)
    >>> timeline.operation("fill", writes=[x])
    >>> with timeline.on("lane 1"):
    ...     timeline.operation("sum", reads=[x])
    Traceback (most recent call last):
    pynlm.testing.races.Race: sum on lane 1 reads what fill on the default stream writes, unordered
    """

    def __init__(self) -> None:
        self.current: _Stream = MAIN
        self.forked: _Stream | None = None
        self.used: set[_Stream] = set()
        self._clocks: dict[_Stream, _Clock] = {}
        self._memory: dict[int, _Memory] = {}
        # Freed memory of a stream: what others did with it last.
        self._freed: dict[_Stream, list[tuple[_Stream, int, str, str]]] = {}

    # ---- streams

    @contextlib.contextmanager
    def on(self, stream: _Stream) -> Iterator[None]:
        """Make a stream the current one."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def record(self) -> _Clock:
        """An event on the current stream."""
        return dict(self._clock())

    def wait(self, event: _Clock) -> None:
        """Make the current stream wait for an event."""
        clock = self._clock()
        for stream, count in event.items():
            clock[stream] = max(clock.get(stream, 0), count)

    def _clock(self) -> _Clock:
        return self._clocks.setdefault(self.current, {})

    # ---- memory

    def made(self, array: np.ndarray, by: str = "an allocation") -> None:
        """Note the memory of an array as allocated on the current stream, unless it is known."""
        root = _root(array)
        if id(root) in self._memory:
            return
        self._allow(by)
        key, stream, clock = id(root), self.current, self._clock()
        for other, count, what, made_by in self._freed.pop(stream, ()):
            if clock.get(other, 0) < count:
                raise Race(
                    f"{by} on {stream} may get the memory of {made_by} that {what} on {other} "
                    "still uses; it was freed before they were ordered"
                )
        memory = self._memory[key] = _Memory(stream, by)
        memory.reference = weakref.ref(root, lambda _: self._free(key))

    def _free(self, key: int) -> None:
        memory = self._memory.pop(key)
        clock = self._clocks.get(memory.stream, {})
        for (stream, *_), (count, what) in memory.accesses.items():
            if stream != memory.stream and clock.get(stream, 0) < count:
                freed = self._freed.setdefault(memory.stream, [])
                freed.append((stream, count, what, memory.made_by))

    # ---- operations

    def operation(
        self, what: str, reads: Sequence[np.ndarray] = (), writes: Sequence[np.ndarray] = ()
    ) -> None:
        """Queue an operation on the current stream.

        Raises
        ------
        Race
            It is not ordered after one that it conflicts with.
        """
        self._allow(what)
        stream, clock = self.current, self._clock()
        self.used.add(stream)
        clock[stream] = clock.get(stream, 0) + 1
        for arrays, writing in ((reads, False), (writes, True)):
            for array in arrays:
                if not array.size:
                    continue
                self.made(array, what)
                low, high = _range(array)
                accesses = self._memory[id(_root(array))].accesses
                for (other, begin, end, wrote), (count, by) in accesses.items():
                    if (
                        other != stream
                        and (writing or wrote)
                        and begin < high
                        and low < end
                        and clock.get(other, 0) < count
                    ):
                        does, did = (("reads", "writes")[w] for w in (writing, wrote))
                        raise Race(
                            f"{what} on {stream} {does} what {by} on {other} {did}, unordered"
                        )
                accesses[stream, low, high, writing] = clock[stream], what

    def _allow(self, what: str) -> None:
        if self.current == self.forked:
            raise Race(f"{what} on {self.current}, whose lanes are not joined yet")


def _root(array: np.ndarray) -> np.ndarray:
    """The array whose memory it is."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _range(array: np.ndarray) -> tuple[int, int]:
    """First byte, and the one behind the last."""
    low = high = int(array.__array_interface__["data"][0])
    for size, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (size - 1) * stride
        else:
            high += (size - 1) * stride
    return low, high + array.itemsize


timeline = Timeline()
"""Of all arrays of `pynlm.testing.device_arrays`."""
