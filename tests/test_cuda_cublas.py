"""cuBLAS without CuPy's functions: a library with its prototypes, which computes on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pynlm.cuda.cublas import CublasError
from pynlm.cuda.device import CupyDevice

COMPUTE = {"float32": 68, "tf32": 77, "bf16": 75, "fp16": 74}

# Prototypes of cublas_api.h, CUDA 12 and 13; enumerations are ints.
LIBRARY = r"""
#include <cstddef>
extern "C" {
long seen[8];  // handle, stream, workspace, its size, compute type, algorithm, types, calls
int failing;
int cublasSetStream_v2(void* handle, void* stream) {
  seen[0] = (long)handle, seen[1] = (long)stream, seen[2] = seen[3] = 0;
  return 0;
}
int cublasSetWorkspace_v2(void* handle, void* workspace, size_t size) {
  if (seen[0] != (long)handle || (long)workspace % 256) return 7;
  seen[2] = (long)workspace, seen[3] = (long)size;
  return 0;
}
const char* cublasGetStatusName(int status) {
  return status == 3 ? "CUBLAS_STATUS_ALLOC_FAILED" : "CUBLAS_STATUS_EXECUTION_FAILED";
}
}
template <class Real>
static int product(void* handle, int ta, int tb, int m, int n, int k, Real alpha, const Real* a,
                   int lda, const Real* b, int ldb, Real beta, Real* c, int ldc) {
  if (seen[0] != (long)handle || !seen[2]) return 13;
  ++seen[7];
  if (failing) return failing;
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < m; ++i) {
      Real sum = 0;
      for (int l = 0; l < k; ++l)
        sum += (ta ? a[l + (long)i * lda] : a[i + (long)l * lda]) *
               (tb ? b[j + (long)l * ldb] : b[l + (long)j * ldb]);
      Real& to = c[i + (long)j * ldc];
      to = alpha * sum + (beta ? beta * to : 0);
    }
  return 0;
}
extern "C" int cublasDgemm_v2(void* handle, int transa, int transb, int m, int n, int k,
                              const double* alpha, const double* A, int lda, const double* B,
                              int ldb, const double* beta, double* C, int ldc) {
  return product(handle, transa, transb, m, n, k, *alpha, A, lda, B, ldb, *beta, C, ldc);
}
extern "C" int cublasGemmEx(void* handle, int transa, int transb, int m, int n, int k,
                            const void* alpha, const void* A, int Atype, int lda, const void* B,
                            int Btype, int ldb, const void* beta, void* C, int Ctype, int ldc,
                            int computeType, int algo) {
  seen[4] = computeType, seen[5] = algo, seen[6] = Atype | Btype | Ctype;
  return product(handle, transa, transb, m, n, k, *(const float*)alpha, (const float*)A, lda,
                 (const float*)B, ldb, *(const float*)beta, (float*)C, ldc);
}
"""
# As an extension module of CuPy: it needs the library by its soname.
EXTENSION = """
extern "C" int cublasSetStream_v2(void*, void*);
extern "C" int extension() { return cublasSetStream_v2(nullptr, nullptr); }
"""


class OnDevice:
    """What CupyDevice asks of an array."""

    def __init__(self, array: Any) -> None:
        self.shape, self.size, self.strides = array.shape, array.size, array.strides
        self.dtype, self.flags = array.dtype, array.flags
        self.data = SimpleNamespace(ptr=array.ctypes.data)


class Memory:
    """Of which nothing is read."""

    made = 0

    def __init__(self, size: int) -> None:
        Memory.made += 1
        self.size, self.ptr = size, Memory.made << 40


class Stream:
    """A stream; products of CuPy's refuse where one is captured, as CuPy 14 does."""

    current: Stream | None = None

    def __init__(self, ptr: int = 77, non_blocking: bool = True) -> None:
        self.ptr, self.capturing = ptr, False

    def __enter__(self) -> None:
        self.before, Stream.current = Stream.current, self

    def __exit__(self, *_: Any) -> None:
        Stream.current = self.before

    def record(self) -> None:
        pass

    def wait_event(self, event: None) -> None:
        pass

    def begin_capture(self) -> None:
        self.capturing = True

    def end_capture(self) -> Any:
        self.capturing = False
        return SimpleNamespace(launch=lambda: None)


def refuse(*_: Any) -> None:
    assert Stream.current is not None
    if Stream.current.capturing:
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is currently unsupported"
        )


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for CuPy's extension module, beside the library."""
    folder = tmp_path_factory.mktemp("cublas")
    library = folder / "libcublas.so.99"
    for text, made, more in (
        (LIBRARY, library, ["-Wl,-soname,libcublas.so.99"]),
        (EXTENSION, folder / "cublas.so", [str(library), f"-Wl,-rpath,{folder}"]),
    ):
        source = folder / f"{made.name}.cpp"
        source.write_text(text, encoding="utf-8")
        compiler = os.environ.get("CXX", "c++")
        subprocess.run(
            [compiler, "-O1", "-fPIC", "-shared", "-o", str(made), str(source), *more], check=True
        )
    return folder / "cublas.so"


def device_of(file: str, capability: str = "90") -> CupyDevice:
    """Of a CuPy whose extension module is `file`."""
    Stream.current, Memory.made = Stream(5), 0
    attributes = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448}
    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0, attributes=attributes, compute_capability=capability),
        cublas=SimpleNamespace(__file__=file, gemmEx=refuse, dgemm=refuse),
        device=SimpleNamespace(get_cublas_handle=lambda: 7 << 40),
        get_current_stream=lambda: Stream.current,
        Stream=Stream,
        Memory=Memory,
        MemoryPointer=lambda memory, _: SimpleNamespace(mem=memory),
        runtime=SimpleNamespace(CUDARuntimeError=RuntimeError),
        MemoryPool=lambda *_: SimpleNamespace(malloc=None),
        using_allocator=lambda _: contextlib.nullcontext(),
    )
    return CupyDevice(SimpleNamespace(cuda=cuda))


@pytest.fixture
def library(extension: Path) -> ctypes.CDLL:
    """The library, found by what it is called, as the process has it."""
    found = ctypes.CDLL(str(extension.parent / "libcublas.so.99"))
    ctypes.c_int.in_dll(found, "failing").value = 0
    seen_by(found)[:] = [0] * 8
    return found


def seen_by(library: ctypes.CDLL) -> Any:
    return (ctypes.c_long * 8).in_dll(library, "seen")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
def test_products(extension: Path, library: ctypes.CDLL, turned: Any, dtype: str) -> None:
    """Every argument arrives where the prototypes have it; pointers are 64 bits wide."""
    device = device_of(str(extension))
    rng = np.random.default_rng(1)
    a = rng.normal(size=(3, 4)[:: 1 - 2 * turned[0]]).astype(dtype)
    b = rng.normal(size=(4, 5)[:: 1 - 2 * turned[1]]).astype(dtype)
    room = np.full((3, 9), 2.0, dtype)
    out = room[:, :5]
    given = [x.T if t else x for x, t in zip((a, b), turned, strict=True)]
    for accumulate in (False, True):
        want = given[0] @ given[1] + (out if accumulate else 0)
        device.matmul(OnDevice(out), *map(OnDevice, given), accumulate=accumulate)
        np.testing.assert_allclose(out, want, 1e-5)
    assert (room[:, 5:] == 2).all()
    assert list(seen_by(library)[:4]) == [7 << 40, 5, 1 << 40, 32 << 20]


@pytest.mark.parametrize("math", COMPUTE)
def test_numbers_are_computed_in(extension: Path, library: ctypes.CDLL, math: str) -> None:
    device, x = device_of(str(extension)), np.ones((2, 2), "f4")
    device.math = math
    device.matmul(OnDevice(np.ones((2, 2), "f4")), OnDevice(x), OnDevice(x))
    assert list(seen_by(library)[4:7]) == [COMPUTE[math], -1, 0]


def multiply(device: CupyDevice, size: int = 2) -> None:
    x = OnDevice(np.ones((size, size), "f4"))
    device.matmul(x, x, x)


def test_products_are_part_of_a_graph(extension: Path, library: ctypes.CDLL) -> None:
    """On the stream that is captured, with working memory of its own that was there before."""
    device = device_of(str(extension))
    recorder, seen = device.recorder(), seen_by(library)
    multiply(device)
    recorder.rehearse(lambda: multiply(device))
    assert Memory.made == 2
    recorder.record(lambda: multiply(device))
    assert list(seen[1:4]) == [77, 2 << 40, 32 << 20] and seen[7] == 3
    multiply(device)
    assert list(seen[1:4]) == [5, 1 << 40, 32 << 20] and Memory.made == 2


@pytest.mark.parametrize("file", ["nowhere/cublas.so", "libm.so.6"])
def test_without_the_library(file: str) -> None:
    """CuPy's functions multiply, and what they cannot do is said."""
    device = device_of(file)
    multiply(device)
    with pytest.raises(NotImplementedError, match="during stream capture"):
        device.recorder().record(lambda: multiply(device))


def test_older_cards_have_less(extension: Path, library: ctypes.CDLL) -> None:
    multiply(device_of(str(extension), "89"))
    assert seen_by(library)[3] == 4 << 20
    multiply(device_of(str(extension), "120"))
    assert seen_by(library)[3] == 32 << 20


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (13, CublasError, "cublasGemmEx: CUBLAS_STATUS_EXECUTION_FAILED"),
        (3, MemoryError, "cublasGemmEx: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_errors_have_names(
    extension: Path, library: ctypes.CDLL, status: int, error: type[Exception], message: str
) -> None:
    device = device_of(str(extension))
    ctypes.c_int.in_dll(library, "failing").value = status
    with pytest.raises(error, match=message):
        multiply(device)


def test_sizes_that_are_no_ints(extension: Path, library: ctypes.CDLL) -> None:
    door: Callable[..., None] = device_of(str(extension))._cublas.gemmEx
    with pytest.raises(ctypes.ArgumentError, match=r"sizes below 2\*\*31, got 2147483648"):
        door(7 << 40, 0, 0, 1 << 31, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 68, -1)
    assert not seen_by(library)[7]
