"""Products of cuBLAS on the current stream, also while that is captured.

CuPy's own functions set the handle's stream first, and refuse (NotImplementedError) where the
stream is being captured: with them no step could become a graph. So its library is called directly.
"""

from __future__ import annotations

import ctypes
from typing import Any

from .graphs import device_memory

_STATUS = ctypes.c_int
_HANDLE = _POINTER = _STREAM = ctypes.c_void_p
_CHOICE = ctypes.c_int  # of an enumeration
_ALLOC_FAILED = 3

_HOPPER = 9
_WORKSPACE, _WORKSPACE_HOPPER = 4 << 20, 32 << 20


class _Int:
    """An argument of type int; OverflowError where ctypes would cut it."""

    @classmethod
    def from_param(cls, value: int) -> ctypes.c_int:
        if not -(1 << 31) <= value < 1 << 31:
            raise OverflowError(f"cuBLAS takes sizes below 2**31, got {value}")
        return ctypes.c_int(value)


_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cublasSetStream_v2": (_HANDLE, _STREAM),
    "cublasSetWorkspace_v2": (_HANDLE, _POINTER, ctypes.c_size_t),
    "cublasDgemm_v2": (
        *(_HANDLE, _CHOICE, _CHOICE, _Int, _Int, _Int, _POINTER),
        *(_POINTER, _Int),
        *(_POINTER, _Int, _POINTER),
        *(_POINTER, _Int),
    ),
    "cublasGemmEx": (
        *(_HANDLE, _CHOICE, _CHOICE, _Int, _Int, _Int, _POINTER),
        *(_POINTER, _CHOICE, _Int),
        *(_POINTER, _CHOICE, _Int, _POINTER),
        *(_POINTER, _CHOICE, _Int, _CHOICE, _CHOICE),
    ),
}


class CublasError(RuntimeError):
    """What a function of cuBLAS returned, by its name."""


class Cublas:
    """Its functions, with the names and arguments that CuPy gives them.

    Each (handle, stream) has working memory of its own. To set the stream takes a handle back to
    the working memory of cuBLAS, which in a graph would be allocated for each product; with memory
    of one size a captured product is the one that is queued otherwise. It is never freed, because
    graphs have its address.

    Parameters
    ----------
    cupy
        The module.
    library
        Where the functions are found.
    """

    def __init__(self, cupy: Any, library: ctypes.CDLL) -> None:
        self._cupy = cupy
        self._name = library.cublasGetStatusName
        self._name.argtypes, self._name.restype = (_STATUS,), ctypes.c_char_p
        self._functions = {name: getattr(library, name) for name in _FUNCTIONS}
        for name, types in _FUNCTIONS.items():
            self._functions[name].argtypes, self._functions[name].restype = types, _STATUS
        self._workspaces: dict[tuple[int, int], Any] = {}
        newer = int(cupy.cuda.Device().compute_capability[:-1]) >= _HOPPER
        self._size = _WORKSPACE_HOPPER if newer else _WORKSPACE

    def dgemm(self, handle: int, *given: int) -> None:
        """A product of float64 numbers."""
        self._prepare(handle)
        self._call("cublasDgemm_v2", handle, *given)

    def gemmEx(self, handle: int, *given: int) -> None:
        """A product of any type."""
        self._prepare(handle)
        self._call("cublasGemmEx", handle, *given)

    def _prepare(self, handle: int) -> None:
        stream = self._cupy.cuda.get_current_stream().ptr
        workspace = self._workspaces.get((handle, stream))
        if workspace is None:
            # Not of a pool, which might give it to a graph's arrays.
            workspace = self._workspaces[handle, stream] = device_memory(self._cupy, self._size).mem
        self._call("cublasSetStream_v2", handle, stream)
        self._call("cublasSetWorkspace_v2", handle, workspace.ptr, self._size)

    def _call(self, name: str, *given: int) -> None:
        status = self._functions[name](*given)
        if not status:
            return
        text = f"{name}: {self._name(status).decode()}"
        if status == _ALLOC_FAILED:
            raise MemoryError(text)
        raise CublasError(text)


def cublas_of(cupy: Any) -> Any:
    """The cuBLAS that CuPy's handles belong to.

    Through CuPy's extension module, which is linked with it: a symbol is looked for in a module and
    in what that depends on, so it is the same library wherever that was installed, even if the
    process has another one loaded, too.

    Where it is not found so (a CuPy that does not link it), these are CuPy's own functions: they
    multiply, but cannot be part of a graph, so that training warns once and goes on without.
    """
    own = cupy.cuda.cublas
    try:
        return Cublas(cupy, ctypes.CDLL(own.__file__))
    except (AttributeError, OSError):
        return own
