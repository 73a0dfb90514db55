"""Lanes: streams of a GPU that run side by side between a fork and a join.

A fork makes every lane wait for what was queued before it, the join makes the stream that was
forked wait for every lane; between the two nothing is queued on that stream. All of this is events
that are recorded and waited for, so that it may be captured in a graph.

CuPy's pool hands out again what Python let go of, at once, on the stream that it was allocated on:
a lane could get memory that another lane still reads. So what a lane reads of another's, made in
this fork or in an earlier one, is given to `Lanes.wait` or `Lanes.hold`, which keep it until the
join. All else is in order: a lane's own memory returns to that lane, that of the forked stream is
not handed out before the join, and every fork comes after every join.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any


class Lanes:
    """The lanes of a fork: `with lanes[i]:` queues in lane i modulo their number.

    Without streams there is one lane, the current stream.
    """

    def __init__(self, device: Forks, streams: Sequence[Any]) -> None:
        self._device, self._streams = device, streams
        self._held: list[Any] = []

    def __len__(self) -> int:
        return len(self._streams) or 1

    def __getitem__(self, i: int) -> contextlib.AbstractContextManager[Any]:
        if not self._streams:
            return contextlib.nullcontext()
        return self._device.on_lane(i % len(self._streams), self._streams)

    def mark(self) -> Any:
        """An event: all that the current lane has been given until now."""
        return self._device.record() if self._streams else None

    def wait(self, event: Any, *arrays: Any) -> None:
        """What the current lane is given from now on runs after the event.

        `arrays` are what it will read of the other lane, see `hold`.
        """
        if self._streams:
            self._device.wait(event)
            self.hold(*arrays)

    def hold(self, *arrays: Any) -> None:
        """Keep the memory of arrays until the join."""
        if self._streams:
            self._held += arrays

    def release(self) -> None:
        """Let go of what was held: after the join."""
        self._held.clear()


class Forks(ABC):
    """What of a device makes lanes.

    Attributes
    ----------
    processors
        Streaming multiprocessors.
    """

    processors: int

    @functools.cached_property
    def _of_thread(self) -> threading.local:
        return threading.local()

    @property
    def lanes(self) -> int:
        """Lanes of this thread's fork; 1 outside."""
        return getattr(self._of_thread, "lanes", 1)

    @property
    def share(self) -> int:
        """Blocks of a cooperative launch, so that those of all lanes fit the card together."""
        return self.processors // self.lanes

    @contextlib.contextmanager
    def fork(self, count: int) -> Iterator[Lanes]:
        """So many lanes that run side by side; at the end of the block all are waited for.

        Within another fork, or for a count of 1, the current stream is the only lane.

        Examples
        --------
        ::

            with device.fork(2) as lanes:
                with lanes[0]:
                    device.launch(...)  # writes x
                    made = lanes.mark()
                with lanes[1]:
                    device.launch(...)
                    lanes.wait(made, x)
                    device.launch(...)  # reads x
        """
        count = min(count, self.processors)
        if count < 2 or self.lanes > 1:
            yield Lanes(self, ())
            return
        lanes, start = Lanes(self, self.streams(count)), self.record()
        for i in range(count):
            with lanes[i]:
                self.wait(start)
        self._of_thread.lanes = count
        try:
            yield lanes
        finally:
            self._of_thread.lanes = 1
            for i in range(count):
                with lanes[i]:
                    end = self.record()
                self.wait(end)
            lanes.release()

    @abstractmethod
    def streams(self, count: int) -> Sequence[Any]:
        """This thread's streams for lanes, always the same ones."""

    @abstractmethod
    def on_lane(self, i: int, streams: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
        """Make lane i's stream the current one."""

    @abstractmethod
    def record(self) -> Any:
        """An event on the current stream."""

    @abstractmethod
    def wait(self, event: Any) -> None:
        """Make the current stream wait for an event."""


class CupyStreams(Forks):
    """Streams of CuPy, whose functions and allocations go to the current one."""

    xp: Any

    def streams(self, count: int) -> Sequence[Any]:
        """See `Forks`."""
        found: list[Any] = self._of_thread.__dict__.setdefault("streams", [])
        # Others would wait for the default stream, and it for them.
        found += (self.xp.cuda.Stream(non_blocking=True) for _ in range(len(found), count))
        return found[:count]

    @contextlib.contextmanager
    def on_lane(self, i: int, streams: Sequence[Any]) -> Iterator[None]:
        """See `Forks`."""
        state = self._of_thread
        before = getattr(state, "lane", None)
        with streams[i]:
            state.lane = i
            try:
                yield
            finally:
                state.lane = before

    def record(self) -> Any:
        """See `Forks`."""
        event = self.xp.cuda.Event(disable_timing=True)
        event.record(self.xp.cuda.get_current_stream())
        return event

    def wait(self, event: Any) -> None:
        """See `Forks`."""
        self.xp.cuda.get_current_stream().wait_event(event)

    def cublas_handle(self) -> int:
        """A lane's own: of one on several streams cuBLAS does not promise the same bits."""
        lane = getattr(self._of_thread, "lane", None)
        if lane is None:
            return int(self.xp.cuda.device.get_cublas_handle())
        handles: dict[int, int] = self._of_thread.__dict__.setdefault("handles", {})
        if lane not in handles:
            handles[lane] = self.xp.cuda.cublas.create()
        return handles[lane]
