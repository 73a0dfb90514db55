"""CUDA graphs through CuPy, without CuPy: what it is told, in which order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from pynlm.cuda.device import CupyDevice
from pynlm.cuda.graphs import CaptureError, device_memory


class Stream:
    """What CupyRecorder asks of a stream; tells `told`."""

    told: ClassVar[list[str]] = []

    def __init__(self, name: str = "own", non_blocking: bool = True) -> None:
        self.name, self.capturing = name, False

    def record(self) -> str:
        return f"event of {self.name}"

    def wait_event(self, event: str) -> None:
        self.told.append(f"{self.name} waits for {event}")

    def __enter__(self) -> None:
        self.told.append(f"on {self.name}")

    def __exit__(self, *_: Any) -> None:
        self.told.append(f"off {self.name}")

    def begin_capture(self) -> None:
        self.capturing = True

    def end_capture(self) -> Any:
        assert self.capturing
        self.capturing = False
        return SimpleNamespace(launch=lambda: self.told.append("launched"))

    def is_capturing(self) -> bool:
        return self.capturing


@pytest.fixture
def device() -> CupyDevice:
    """With what graphs need."""

    @contextlib.contextmanager
    def using_allocator(malloc: str) -> Iterator[None]:
        Stream.told.append(f"memory: {malloc}")
        yield
        Stream.told.append("memory as before")

    Stream.told.clear()
    here = Stream("here")
    attributes = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448}
    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0, attributes=attributes),
        Stream=Stream,
        using_allocator=using_allocator,
        MemoryPool=lambda _: SimpleNamespace(malloc="own"),
        get_current_stream=lambda: here,
    )
    return CupyDevice(SimpleNamespace(cuda=cuda, array=np.array))


ELSEWHERE = ["memory: own", "on own"], ["off own", "memory as before"]


def test_graphs_are_made_on_a_stream_of_their_own(device: CupyDevice) -> None:
    recorder, told = device.recorder(), Stream.told
    assert recorder.rehearse(lambda: told.append("work") or 3) == 3  # type: ignore[func-returns-value]
    begin, end = ELSEWHERE
    first, last = "own waits for event of here", "here waits for event of own"
    assert told == [first, *begin, "work", *end, last]
    told.clear()
    graph = recorder.record(lambda: told.append("work"))
    assert told == [*begin, "work", *end]
    graph.launch()
    assert told[-1] == "launched"


def test_a_capture_that_fails_ends(device: CupyDevice) -> None:
    """And what cannot be captured is told as such."""
    recorder = device.recorder()

    def work() -> None:
        device.xp.cuda.get_current_stream().capturing = True
        device.bring(np.ones(3))

    with pytest.raises(CaptureError, match="an array of the host cannot be brought while a graph"):
        recorder.record(work)
    device.xp.cuda.get_current_stream().capturing = False
    assert device.bring(np.ones(3)).size == 3
    recorder.record(lambda: None)  # begins anew


class Refused(RuntimeError):
    """CUDA's error, with its number."""

    def __init__(self, status: int) -> None:
        self.status = status


@pytest.mark.parametrize(("refused", "status"), [(0, 2), (1, 2), (2, 2), (1, 700)])
def test_memory_of_graphs_is_refused_as_no_error_of_cuda(refused: int, status: int) -> None:
    """At which CuPy's pool would free what graphs have by address; other pools give theirs."""
    told: list[str] = []

    def memory(size: int) -> int:
        told.append("asked")
        if told.count("asked") <= refused:
            raise Refused(status)
        return size

    runtime = SimpleNamespace(CUDARuntimeError=Refused, errorMemoryAllocation=2)
    cuda = SimpleNamespace(
        Memory=memory, MemoryPointer=lambda mem, offset: (mem, offset), runtime=runtime
    )
    default = SimpleNamespace(free_all_blocks=lambda: told.append("freed"))
    cupy = SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: default)
    if status == 700:
        with pytest.raises(Refused):
            device_memory(cupy, 512)
        assert told == ["asked"]
    elif refused == 2:
        with pytest.raises(MemoryError, match="no 512 bytes"):
            device_memory(cupy, 512)
        assert told == ["asked", "freed", "asked"]
    else:
        assert device_memory(cupy, 512) == (512, 0)
        assert told == ["asked", "freed", "asked"][: 1 + 2 * refused]


class CupyPool:
    """What CuPy's MemoryPool does when its allocator fails."""

    def __init__(self, allocator: Any) -> None:
        self.allocator, self.freed = allocator, 0

    def malloc(self, size: int) -> Any:
        try:
            return self.allocator(size)
        except Refused:
            self.freed += 1  # what graphs have by address, too
            return self.allocator(size)

    def free_bytes(self) -> int:
        return 4096


def test_a_graph_keeps_its_memory_when_there_is_no_more(device: CupyDevice) -> None:
    """The pool frees nothing; without a graph what it has free counts as free."""
    cupy = device.xp

    def full(size: int) -> None:
        raise Refused(2)

    cupy.cuda.runtime = SimpleNamespace(
        CUDARuntimeError=Refused, errorMemoryAllocation=2, memGetInfo=lambda: (100, 9000)
    )
    default = SimpleNamespace(free_all_blocks=lambda: None, free_bytes=lambda: 10)
    cupy.get_default_memory_pool = lambda: default
    cupy.cuda.MemoryPool, cupy.cuda.Memory = CupyPool, full
    cupy.cuda.MemoryPointer = lambda mem, offset: mem
    cupy.cuda.using_allocator = lambda malloc: contextlib.nullcontext()
    recorder: Any = device.recorder()
    assert device.memory() == (100 + 4096 + 10, 9000)
    graph = recorder.record(lambda: None)
    assert device.memory() == (110, 9000)
    with pytest.raises(MemoryError, match="no 512 bytes"):
        recorder._memory.malloc(512)
    assert not recorder._memory.freed
    del graph
    assert device.memory() == (100 + 4096 + 10, 9000)
    del recorder
    assert device.memory() == (110, 9000)
