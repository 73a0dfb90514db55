"""CUDA kernels on the CPU: a device whose launches run csrc/common/emulated.h.

For tests without a GPU. Kernels are the same .cu source, compiled by a C++ compiler; memory is
NumPy's, products are NumPy's.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pynlm.cuda import device as devices
from pynlm.cuda.device import Array, Device, columns_first
from pynlm.cuda.lanes import Lanes
from pynlm.cuda.source import Kernel, Source, root
from pynlm.testing import capture
from pynlm.testing.device_arrays import Cupy, DeviceArray, unwrap
from pynlm.testing.races import timeline

# PYNLM_EMULATION_FLAGS adds to them: -fsanitize=address,undefined
_FLAGS = [
    *(
        "-std=c++20",
        "-O1",
        "-g1",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wshadow",
        "-Werror",
    ),
    # of setcontext, which is not longjmp; of macros that kernels are compiled with or without
    *("-Wno-clobbered", "-Wno-unknown-pragmas", "-Wno-unused-function"),
]
_ERROR_SIZE = 500


class EmulatedDevice(Device):
    """A card of `processors` multiprocessors, by default so few that each has much to do.

    Parameters
    ----------
    processors
        Streaming multiprocessors.
    shared_limit
        Bytes of shared memory of a block.
    seed
        Of the order in which threads run.
    """

    def __init__(self, processors: int = 3, shared_limit: int = 227 << 10, seed: int = 0) -> None:
        self.xp = np
        self.processors = processors
        self.shared_limit = shared_limit
        self.seed = seed

    def _allocate(self, shape: tuple[int, ...], dtype: Any, *, zero: bool) -> Array:
        """Zeros, or NaN or -1, which shows what is read before it was written."""
        dtype = np.dtype(dtype)
        return np.full(shape, 0 if zero else np.nan if dtype.kind == "f" else -1).astype(dtype)

    def _start(
        self,
        source: Source,
        kernel: Kernel,
        grid: tuple[int, int, int],
        shared: int,
        cooperative: bool,
        macros: tuple[str, ...],
        arguments: list[Any],
    ) -> None:
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        self.seed += 1
        function = getattr(
            _library(source.path, source.text, macros), f"nlm_emulated_{kernel.name}"
        )
        failed = _machine().nlm_emulated_launch(
            function, (ctypes.c_uint * 3)(*grid), kernel.threads, ctypes.c_size_t(shared),
            int(cooperative), pointers, ctypes.c_uint64(self.seed), error,
            ctypes.c_size_t(_ERROR_SIZE),
        )  # fmt: skip
        if failed:
            raise RuntimeError(f"{kernel.name}: {error.value.decode()}")

    def matmul(self, out: Array, a: Array, b: Array, *, accumulate: bool = False) -> None:
        for x in (out, a, b):  # as cuBLAS would
            columns_first(x)
        product = a @ b
        out[...] = out + product if accumulate else product

    def memory(self) -> tuple[int, int]:
        return 0, 0

    def streams(self, count: int) -> Sequence[Any]:
        return [f"lane {i}" for i in range(count)]

    def on_lane(self, i: int, streams: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def record(self) -> Any:
        return None

    def wait(self, event: Any) -> None:
        pass


class StrictDevice(EmulatedDevice):
    """An emulated card whose arrays are no NumPy arrays; see `pynlm.testing.device_arrays`.

    What runs on its streams must be ordered; see `pynlm.testing.races`.

    Parameters
    ----------
    processors, shared_limit, seed
        As of an `EmulatedDevice`.
    memory_limit
        Bytes that one array may have.
    """

    def __init__(
        self,
        processors: int = 3,
        shared_limit: int = 227 << 10,
        seed: int = 0,
        *,
        memory_limit: int = 1 << 40,
    ) -> None:
        super().__init__(processors, shared_limit, seed)
        self.xp, self.memory_limit = Cupy(), memory_limit

    def _allocate(self, shape: tuple[int, ...], dtype: Any, *, zero: bool) -> Array:
        if math.prod(shape) * np.dtype(dtype).itemsize > self.memory_limit:
            raise MemoryError("out of memory")
        return self.xp.zeros(shape, dtype) if zero else self.xp.empty(shape, dtype)

    def recorder(self) -> capture.EmulatedRecorder:
        return capture.EmulatedRecorder()

    def memory(self) -> tuple[int, int]:
        return self.memory_limit, 2 * self.memory_limit

    def _start(
        self,
        source: Source,
        kernel: Kernel,
        grid: tuple[int, int, int],
        shared: int,
        cooperative: bool,
        macros: tuple[str, ...],
        arguments: list[Any],
    ) -> None:
        given = [
            (parameter.const, unwrap(argument))
            for parameter, argument in zip(kernel.parameters, arguments, strict=True)
            if isinstance(argument, DeviceArray)
        ]
        timeline.operation(
            kernel.name,
            reads=[array for _, array in given],
            writes=[array for const, array in given if not const],
        )
        own = [unwrap(x) for x in arguments]
        capture.queue(super()._start, source, kernel, grid, shared, cooperative, macros, own)

    def matmul(self, out: Array, a: Array, b: Array, *, accumulate: bool = False) -> None:
        own = unwrap((out, a, b))
        timeline.operation("matmul", reads=own[1:], writes=own[:1])
        capture.queue(super().matmul, *own, accumulate=accumulate)

    @contextlib.contextmanager
    def fork(self, count: int) -> Iterator[Lanes]:
        """As any device's; the stream that is forked must be left alone meanwhile."""
        with super().fork(count) as lanes:
            if len(lanes) == 1 or timeline.forked is not None:
                yield lanes
                return
            timeline.forked = timeline.current
            try:
                yield lanes
            finally:
                timeline.forked = None

    def on_lane(self, i: int, streams: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
        return timeline.on(streams[i])

    def record(self) -> Any:
        return timeline.record()

    def wait(self, event: Any) -> None:
        timeline.wait(event)


def has_card() -> bool:
    """Whether CuPy and a real card are there."""
    try:
        devices.import_cupy()
    except devices.DeviceUnavailable:
        return False
    return True


@contextlib.contextmanager
def emulation(device: Device | None = None) -> Iterator[Device]:
    """Make `device` (default: a new EmulatedDevice) the one that backend "cuda" runs on.

    Examples
    --------
    >>> from pynlm.kernels import clip_values
    >>> x = np.array([-3.0, 0.5, 2.0])
    >>> with emulation():
    ...     clip_values(x=x, limit=1.0, backend="cuda")
    >>> x
    array([-1. ,  0.5,  1. ])
    """
    before = devices._emulated
    devices._emulated = EmulatedDevice() if device is None else device
    try:
        yield devices._emulated
    finally:
        devices._emulated = before


def _value(argument: Any) -> Any:
    """The bytes of a kernel's argument."""
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, DeviceArray):
        argument = unwrap(argument)
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    raw = argument.tobytes()
    return (ctypes.c_char * len(raw)).from_buffer_copy(raw)


@functools.cache
def _machine() -> ctypes.CDLL:
    """What runs the fibres; kernels' libraries find its symbols."""
    made = _compile("common/emulated.cpp", (root() / "common/emulated.cpp").read_text(), ())
    return ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)


@functools.cache
def _library(path: str, text: str, macros: tuple[str, ...]) -> ctypes.CDLL:
    """The library of a .cu file's kernels."""
    _machine()
    return ctypes.CDLL(str(_compile(path, text, macros)))


def _compile(path: str, text: str, macros: tuple[str, ...]) -> Path:
    """Compile a file for the emulation, unless that was done before; `text` is all of it."""
    flags = [*_FLAGS, *os.environ.get("PYNLM_EMULATION_FLAGS", "").split()]
    header = (root() / "common/emulated.h").read_text()
    key = hashlib.sha256("\0".join([text, header, *macros, *flags]).encode()).hexdigest()[:20]
    folder = Path(
        os.environ.get(
            "PYNLM_EMULATION_CACHE", f"{tempfile.gettempdir()}/pynlm-emulated-{os.getuid()}"
        )
    )
    library = folder / f"{Path(path).stem}-{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f"{library.name}.{os.getpid()}"
        command = [
            *(os.environ.get("CXX", "c++"), "-x", "c++", *flags, "-DNLM_EMULATED"),
            *(f"-D{macro}" for macro in macros),
            *("-I", str(root()), "-o", str(made), str(root() / path)),
        ]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{ran.stderr}")
        made.replace(library)
    return library
