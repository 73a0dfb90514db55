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
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .device import Device


class Lanes:
    """The lanes of a fork: `with lanes[i]:` queues in lane i modulo their number.

    Without streams there is one lane, the current stream.
    """

    def __init__(self, device: Device, streams: Sequence[Any]) -> None:
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


@contextlib.contextmanager
def fork(device: Device, count: int) -> Iterator[Lanes]:
    """See `Device.fork`."""
    count = min(count, device.processors)
    if count < 2 or device.lanes > 1:
        yield Lanes(device, ())
        return
    streams = device.streams(count)
    lanes, start = Lanes(device, streams), device.record()
    for i in range(count):
        with lanes[i]:
            device.wait(start)
    device.lanes = count
    try:
        yield lanes
    finally:
        device.lanes = 1
        for i in range(count):
            with lanes[i]:
                end = device.record()
            device.wait(end)
        lanes._held.clear()
