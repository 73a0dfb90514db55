"""Where kernels run: memory, launches and matrix products of the current GPU."""

from __future__ import annotations

import functools
import math
import weakref
from abc import abstractmethod
from typing import Any

import numpy as np

from .cublas import cublas_of
from .graphs import CaptureError, CupyRecorder, Recorder
from .lanes import CupyStreams, Forks
from .source import Kernel, Source, read

Array = Any
"""A CuPy array; in tests without a GPU a NumPy array."""
Late = float | Array
"""A number, or where it stands on the device as float64 [1]: such a number a CUDA graph reads anew
each time it runs."""

_TYPES = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "int32_t": np.int32,
    "uint32_t": np.uint32,
    "int64_t": np.int64,
    "uint64_t": np.uint64,
}
_REALS = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}

# What float32 matrix products are computed in; sums are float32.
MATH = ("float32", "tf32", "bf16", "fp16")


class Device(Forks):
    """One GPU, or what stands for it in tests.

    Attributes
    ----------
    xp
        The array module: cupy, or numpy in tests.
    processors
        Streaming multiprocessors.
    shared_limit
        Bytes of shared memory that a block may have.
    math
        One of MATH: what products of float32 numbers are computed in, in this thread.
    """

    xp: Any
    processors: int
    shared_limit: int

    @property
    def math(self) -> str:
        return getattr(self._of_thread, "math", "float32")

    @math.setter
    def math(self, value: str) -> None:
        self._of_thread.math = value

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Device memory as it lies; DeviceMemoryError if there is not so much."""
        try:
            return self._allocate(shape, dtype, zero=False)
        except MemoryError:
            raise self._out_of_memory(shape, dtype) from None

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Device memory of zeros; DeviceMemoryError if there is not so much."""
        try:
            return self._allocate(shape, dtype, zero=True)
        except MemoryError:
            raise self._out_of_memory(shape, dtype) from None

    def bring(self, x: np.ndarray) -> Array:
        """A copy of a NumPy array, not to be changed until the next wait; does not wait itself."""
        return self.xp.array(x)

    def recorder(self) -> Recorder | None:
        """What makes CUDA graphs here; None where nothing does."""
        return None

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and bytes in all."""

    def _allocate(self, shape: tuple[int, ...], dtype: Any, *, zero: bool) -> Array:
        return self.xp.zeros(shape, dtype) if zero else self.xp.empty(shape, dtype)

    def explained(self, error: MemoryError) -> MemoryError:
        """An error of CuPy's own, with what is free."""
        if isinstance(error, DeviceMemoryError):
            return error
        free, total = map(_mebibytes, self.memory())
        return DeviceMemoryError(f"out of memory on the GPU: {error}; {free} free of {total}")

    def _out_of_memory(self, shape: tuple[int, ...], dtype: Any) -> DeviceMemoryError:
        free, total = self.memory()
        asked = math.prod(shape) * np.dtype(dtype).itemsize
        sizes = ", ".join(map(str, shape))
        return DeviceMemoryError(
            f"out of memory on the GPU: {_mebibytes(asked)} asked for ({np.dtype(dtype)} "
            f"[{sizes}]), {_mebibytes(free)} free of {_mebibytes(total)}"
        )

    def blocks_for(self, threads_wanted: int, threads: int = 256) -> int:
        """Blocks of a grid whose threads walk over so many items."""
        return max(1, min(-(-threads_wanted // threads), 8 * self.processors))

    def launch(
        self,
        source: str,
        kernel: str,
        blocks: int | tuple[int, int],
        *,
        real: Any = np.float32,
        shared: int = 0,
        cooperative: bool = False,
        defines: tuple[str, ...] = (),
        **given: Any,
    ) -> None:
        """Start a kernel of a .cu file on the current stream.

        Parameters
        ----------
        source, kernel
            "dropout/dropout.cu", "dropout".
        blocks
            The grid's size. A block has as many threads as the source says.
        real
            dtype of REAL: float32 or float64.
        shared
            Bytes of shared memory of a block.
        cooperative
            All blocks are on the card together, so they may wait for each other.
        defines
            Further macros, "NAME=value".
        **given
            The kernel's parameters by name: arrays (or None) for pointers, numbers; in the place
            of a number x for which there is an x_at also float64 [1] on the device.

        Raises
        ------
        TypeError
            A parameter is missing or unknown, or an array is not of the type that the source
            says, or not contiguous.
        ValueError
            More blocks or shared memory than there are; an array of another GPU.
        """
        found = read(source)
        entry = found.kernels[kernel]
        real = np.dtype(real)
        for late in entry.late:
            there = getattr(given.get(late), "shape", ())
            given[f"{late}_at"] = given[late] if there else None
            if there:
                given[late] = 0
        arguments = [
            self._argument(entry, p.name, p.type, p.pointer, real, given) for p in entry.parameters
        ]
        if given:
            raise TypeError(f"{kernel}: no parameters {sorted(given)}")
        grid = (blocks, 1) if isinstance(blocks, int) else blocks
        if cooperative and grid[0] * grid[1] > self.share:
            raise ValueError(f"{kernel}: {grid} blocks cannot be on {self.share} processors")
        if shared > self.shared_limit:
            raise ValueError(
                f"{kernel}: {shared} bytes of shared memory, limit {self.shared_limit}"
            )
        macros = (f"REAL={_REALS[real]}", *defines)
        self._start(found, entry, (*grid, 1), shared, cooperative, macros, arguments)

    def _argument(
        self, kernel: Kernel, name: str, type_: str, pointer: bool, real: Any, given: dict[str, Any]
    ) -> Any:
        try:
            value = given.pop(name)
        except KeyError:
            raise TypeError(f"{kernel.name}: parameter {name} is missing") from None
        dtype = real if type_ == "REAL" else np.dtype(_TYPES[type_])
        if not pointer:
            return dtype.type(value)
        if value is None:
            return None
        if isinstance(value, np.ndarray) and self.xp is not np:
            raise TypeError(f"{kernel.name}: {name} must be on the GPU, got a NumPy array")
        if value.dtype != dtype or not value.flags.c_contiguous:
            raise TypeError(
                f"{kernel.name}: {name} must be contiguous {dtype}, got {value.dtype}, "
                f"strides {value.strides}"
            )
        return value

    @abstractmethod
    def _start(
        self,
        source: Source,
        kernel: Kernel,
        grid: tuple[int, int, int],
        shared: int,
        cooperative: bool,
        macros: tuple[str, ...],
        arguments: list[Any],
    ) -> None: ...

    @abstractmethod
    def matmul(self, out: Array, a: Array, b: Array, *, accumulate: bool = False) -> None:
        """out = a @ b, or out += a @ b.

        Parameters
        ----------
        out : [M, N]
            Its rows contiguous, at any distance from each other.
        a : [M, K], b : [K, N]
            Likewise, or the transpose of such a matrix. One dtype for all three.
        """


class DeviceUnavailable(RuntimeError):
    """There is no GPU that can be used, or no CuPy; the message says which."""


class DeviceMemoryError(MemoryError):
    """An array does not fit into the GPU's memory; the message says what was asked for."""


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


class CupyDevice(CupyStreams, Device):
    """The current CUDA device of CuPy."""

    def __init__(self, cupy: Any) -> None:
        self.xp = cupy
        self.number = cupy.cuda.Device().id
        attributes = cupy.cuda.Device().attributes
        self.processors = attributes["MultiProcessorCount"]
        self.shared_limit = attributes["MaxSharedMemoryPerBlockOptin"]
        self._recorders: weakref.WeakSet[CupyRecorder] = weakref.WeakSet()
        self._kernels: dict[Any, Any] = {}
        self._modules: dict[Any, Any] = {}
        self._one = {t: np.ones((), t) for t in _REALS}
        self._zero = {t: np.zeros((), t) for t in _REALS}

    @functools.cached_property
    def _cublas(self) -> Any:
        return cublas_of(self.xp)

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
        for value in arguments:
            if isinstance(value, self.xp.ndarray) and value.data.device_id != self.number:
                raise ValueError(
                    f"{kernel.name}: an array of GPU {value.data.device_id}, "
                    f"where the current one is {self.number}"
                )
        key = (source.path, kernel.name, macros)
        entry = self._kernels.get(key)
        if entry is None:
            entry = self._kernels[key] = self._module(source, macros).get_function(kernel.name)
        if shared > _SHARED_UNASKED and entry.max_dynamic_shared_size_bytes < shared:
            entry.max_dynamic_shared_size_bytes = shared
        given = tuple(_NULL if value is None else value for value in arguments)
        # A module made with enable_cooperative_groups would be linked with libraries of a CUDA
        # installation, which only cooperative_groups.h needs.
        entry.kernel(
            grid,
            (kernel.threads, 1, 1),
            given,
            shared_mem=shared,
            enable_cooperative_groups=cooperative,
        )

    def _module(self, source: Source, macros: tuple[str, ...]) -> Any:
        key = (source.path, macros)
        if key not in self._modules:
            self._modules[key] = self.xp.RawModule(
                code=source.text,
                options=(*COMPILER_OPTIONS, *(f"-D{macro}" for macro in macros)),
                backend="nvrtc",
            )
        return self._modules[key]

    def bring(self, x: np.ndarray) -> Array:
        # A copy in a graph would read again what by then stands at that place of the host.
        if self.xp.cuda.get_current_stream().is_capturing():
            raise CaptureError("an array of the host cannot be brought while a graph is made")
        return super().bring(x)

    def recorder(self) -> Recorder:
        made = CupyRecorder(self.xp)
        self._recorders.add(made)
        return made

    def _allocate(self, shape: tuple[int, ...], dtype: Any, *, zero: bool) -> Array:
        try:
            return super()._allocate(shape, dtype, zero=zero)
        except MemoryError:
            # Graphs have a pool of their own, and what is free in this one is not free there.
            self.xp.get_default_memory_pool().free_all_blocks()
            return super()._allocate(shape, dtype, zero=zero)

    def memory(self) -> tuple[int, int]:
        free, total = self.xp.cuda.runtime.memGetInfo()
        # What CuPy keeps for the next array is free, too.
        kept = sum(recorder.spare() for recorder in self._recorders)
        return free + kept + self.xp.get_default_memory_pool().free_bytes(), total

    def matmul(self, out: Array, a: Array, b: Array, *, accumulate: bool = False) -> None:
        if not out.size:
            return
        if not a.shape[1]:
            if not accumulate:
                out.fill(0)
            return
        # cuBLAS counts columns first: it computes out.T = b.T @ a.T.
        left, left_stride = columns_first(b)
        right, right_stride = columns_first(a)
        out_transposed, out_stride = columns_first(out)
        if out_transposed:
            raise ValueError("matmul: out must have contiguous rows")
        handle = self.cublas_handle()
        beta = (self._one if accumulate else self._zero)[out.dtype]
        (rows, columns), depth = out.shape, a.shape[1]
        sizes = (handle, left, right, columns, rows, depth, self._one[out.dtype].ctypes.data)
        if out.dtype == np.float64:
            self._cublas.dgemm(
                *sizes, b.data.ptr, left_stride, a.data.ptr, right_stride, beta.ctypes.data,
                out.data.ptr, out_stride,
            )  # fmt: skip
            return
        real = _CUDA_R_32F
        self._cublas.gemmEx(
            *sizes, b.data.ptr, real, left_stride, a.data.ptr, real, right_stride,
            beta.ctypes.data, out.data.ptr, real, out_stride, _COMPUTE[self.math],
            _DEFAULT_ALGORITHM,
        )  # fmt: skip


_NULL = np.uint64(0)
# A block may have so much shared memory without asking for it.
_SHARED_UNASKED = 48 << 10

COMPILER_OPTIONS = ("-std=c++17", "-default-device")
"""What NVRTC is told besides the architecture and macros."""

# Values of cublasComputeType_t, cudaDataType_t and cublasGemmAlgo_t.
_COMPUTE = {"float32": 68, "tf32": 77, "bf16": 75, "fp16": 74}
_CUDA_R_32F = 0
_DEFAULT_ALGORITHM = -1


def columns_first(x: Array) -> tuple[int, int]:
    """Whether cuBLAS, which counts columns first, must transpose x.T, and the leading dimension.

    Raises
    ------
    ValueError
        Neither rows nor columns of x are contiguous.
    """
    if x.flags.c_contiguous:  # strides of dimensions of size 1 say nothing
        return 0, max(x.shape[1], 1)
    if x.flags.f_contiguous:
        return 1, max(x.shape[0], 1)
    rows, columns = (stride // x.dtype.itemsize for stride in x.strides)
    if columns == 1 and rows >= x.shape[1]:
        return 0, rows
    if rows == 1 and columns >= x.shape[0]:
        return 1, columns
    raise ValueError(
        f"matmul: rows or columns of an operand must be contiguous, got strides {[rows, columns]}"
    )


_emulated: Device | None = None


def current() -> Device:
    """The device that arrays of the current CUDA device live on.

    Raises
    ------
    DeviceUnavailable
        CuPy is not installed, or there is no driver or no GPU; the message says which.
    """
    if _emulated is not None:
        return _emulated
    cupy = import_cupy()
    return _of_number(cupy.cuda.runtime.getDevice())


@functools.cache
def _of_number(number: int) -> CupyDevice:
    cupy = import_cupy()
    with cupy.cuda.Device(number):
        return CupyDevice(cupy)


@functools.cache
def import_cupy() -> Any:
    """Import CuPy and see that there is a GPU.

    Raises
    ------
    DeviceUnavailable
        Naming what is missing, and the extra to install.
    """
    try:
        import cupy
    except ImportError as error:
        raise DeviceUnavailable(
            "a GPU needs CuPy, which is not installed: "
            "pip install 'pynlm[cuda]' (for CUDA 13; 'pynlm[cuda12]' for CUDA 12)"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise DeviceUnavailable(
            f"CuPy is installed, but finds no usable NVIDIA driver: {error}"
        ) from error
    if count == 0:
        raise DeviceUnavailable("CuPy is installed, but there is no NVIDIA GPU")
    return cupy
