"""CUDA graphs: work that is recorded once, with all its launches, and then started as one.

What a graph is made of are addresses and the numbers given by value: whatever changes between two
runs must stand in device memory that stays where it is, and no memory that the graph uses may go to
anybody else as long as the graph lives.
"""

from __future__ import annotations

import contextlib
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol


class CaptureError(RuntimeError):
    """Something that cannot be part of a graph; the message says what."""


class Graph(Protocol):
    """Recorded work."""

    def launch(self) -> None:
        """Start it on the current stream, behind what is there."""


class Recorder(ABC):
    """Makes graphs, of which never more than one runs at a time: they share their memory."""

    @abstractmethod
    def rehearse(self, work: Callable[[], Any]) -> Any:
        """Do the work where graphs do it, in their memory, and return what it returns.

        To be done before it is recorded: what is made when first used (kernels, libraries' working
        memory) cannot be made then, and memory is allocated now. Results in that memory are lost
        when a graph runs.
        """

    @abstractmethod
    def record(self, work: Callable[[], None]) -> Graph:
        """The graph of what `work` queues, which is not done now.

        Raises
        ------
        CaptureError
            Some of it cannot be part of a graph.
        """


def device_memory(cupy: Any, size: int) -> Any:
    """Memory of the device, a MemoryPointer; MemoryError if there is none.

    For a pool whose free blocks graphs have by address: at a CUDARuntimeError CuPy's pool would
    free them all and ask again. At a MemoryError it does not.
    """
    for last in (False, True):
        try:
            return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if error.status != cupy.cuda.runtime.errorMemoryAllocation:
                raise
            if last:
                raise MemoryError(f"no {size:,} bytes for CUDA graphs or cuBLAS") from None
        cupy.get_default_memory_pool().free_all_blocks()
    raise AssertionError


class CupyRecorder(Recorder):
    """By capture of a stream of its own.

    Cooperative launches become kernel nodes with an attribute for it, which CUDA has since 11, and
    cuBLAS may be captured, though not through CuPy's functions (`cublas.py`). CuPy's pool keeps
    free blocks by stream, so a rehearsal on another stream would leave the capture nothing to take.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._memory = cupy.cuda.MemoryPool(lambda size: device_memory(cupy, size))
        self._graphs: weakref.WeakSet[_CupyGraph] = weakref.WeakSet()

    def spare(self) -> int:
        """Bytes that are free here, and of no graph."""
        return 0 if self._graphs else int(self._memory.free_bytes())

    @contextlib.contextmanager
    def _elsewhere(self) -> Iterator[None]:
        with self._cupy.cuda.using_allocator(self._memory.malloc), self._stream:
            yield

    def rehearse(self, work: Callable[[], Any]) -> Any:
        here = self._cupy.cuda.get_current_stream()
        self._stream.wait_event(here.record())
        try:
            with self._elsewhere():
                return work()
        finally:
            here.wait_event(self._stream.record())

    def record(self, work: Callable[[], None]) -> Graph:
        with self._elsewhere():
            self._stream.begin_capture()
            try:
                work()
            except BaseException:
                # An invalidated capture ends with an error of its own.
                with contextlib.suppress(Exception):
                    self._stream.end_capture()
                raise
            graph = _CupyGraph(self._stream.end_capture(), self._memory)
            self._graphs.add(graph)
            return graph


class _CupyGraph:
    """A graph, and the memory whose addresses it has."""

    def __init__(self, graph: Any, memory: Any) -> None:
        self._graph, self._memory = graph, memory

    def launch(self) -> None:
        self._graph.launch()
