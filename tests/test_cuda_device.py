"""The device of CuPy without one: what cuBLAS is told, by a cuBLAS of a few lines."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pynlm.cuda.device import CupyDevice
from pynlm.testing import DTYPES

COMPUTE = {"float32": 68, "tf32": 77, "bf16": 75, "fp16": 74}


class OnDevice:
    """What CupyDevice asks of an array."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape, self.size, self.strides = array.shape, array.size, array.strides
        self.dtype, self.flags, self.fill = array.dtype, array.flags, array.fill
        self.data = SimpleNamespace(ptr=array.ctypes.data)


def columns_of(address: int, rows: int, columns: int, stride: int, dtype: Any) -> Any:
    """A matrix as cuBLAS sees it: number (i, j) at i + j stride."""
    assert stride >= max(rows, 1)
    size = (columns - 1) * stride + rows
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(address)
    item = dtype.itemsize
    return np.ndarray((rows, columns), dtype, memory, strides=(item, stride * item))


class Cublas:
    """Products as the manual of cuBLAS has them; strict about types."""

    computed: int

    def gemmEx(self, *given: int) -> None:
        (handle, left, right, m, n, k, alpha, a, a_type, a_stride, b, b_type, b_stride, beta) = (
            given[:14]
        )
        c, c_type, c_stride, self.computed, algorithm = given[14:]
        assert (a_type, b_type, c_type, algorithm) == (0, 0, 0, -1)
        self._product(
            handle, left, right, m, n, k, alpha, a, a_stride, b, b_stride, beta, c, c_stride,
            dtype=np.dtype(np.float32),
        )  # fmt: skip

    def dgemm(self, *given: int) -> None:
        self._product(*given, dtype=np.dtype(np.float64))

    def _product(
        self, handle: int, left: int, right: int, m: int, n: int, k: int, alpha: int, a: int,
        a_stride: int, b: int, b_stride: int, beta: int, c: int, c_stride: int, *, dtype: Any,
    ) -> None:  # fmt: skip
        assert handle == 7
        first = columns_of(a, *((k, m) if left else (m, k)), a_stride, dtype)
        second = columns_of(b, *((n, k) if right else (k, n)), b_stride, dtype)
        out = columns_of(c, m, n, c_stride, dtype)
        factors = [columns_of(at, 1, 1, 1, dtype)[0, 0] for at in (alpha, beta)]
        product = factors[0] * ((first.T if left else first) @ (second.T if right else second))
        out[...] = product if factors[1] == 0 else product + factors[1] * out


@pytest.fixture
def device() -> CupyDevice:
    attributes = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448}
    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0, attributes=attributes),
        cublas=Cublas(),
        device=SimpleNamespace(get_cublas_handle=lambda: 7),
    )
    return CupyDevice(SimpleNamespace(cuda=cuda))


def matrix(rng: Any, rows: int, columns: int, dtype: str, kind: str) -> Any:
    """Whole, with more columns in memory, or the transpose of one of these."""
    if kind.endswith("T"):
        return matrix(rng, columns, rows, dtype, kind[:-1]).T
    room = rng.normal(size=(rows, columns + (3 if kind == "wider" else 0))).astype(dtype)
    return room[:, :columns]


KINDS = ["whole", "wider", "wholeT", "widerT"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b_kind", KINDS)
@pytest.mark.parametrize("a_kind", KINDS)
@pytest.mark.parametrize("out_kind", KINDS[:2])
def test_products_are_those_of_rows(
    device: CupyDevice, out_kind: str, a_kind: str, b_kind: str, dtype: str
) -> None:
    """Also of one row, one column, and nothing."""
    rng = np.random.default_rng(1)
    for M, K, N in np.ndindex(4, 4, 4):
        for accumulate in (False, True):
            a, b = matrix(rng, M, K, dtype, a_kind), matrix(rng, K, N, dtype, b_kind)
            out = matrix(rng, M, N, dtype, out_kind)
            want = a.astype("f8") @ b + (out if accumulate else 0)
            if not accumulate:
                out[...] = np.nan
            device.matmul(OnDevice(out), OnDevice(a), OnDevice(b), accumulate=accumulate)
            np.testing.assert_allclose(out, want, 1e-5, 1e-6, err_msg=str((M, K, N, accumulate)))


@pytest.mark.parametrize("math", COMPUTE)
def test_products_are_computed_in(device: CupyDevice, math: str) -> None:
    device.math = math
    out, x = (OnDevice(np.ones((2, 2), np.float32)) for _ in range(2))
    device.matmul(out, x, x)
    assert device.xp.cuda.cublas.computed == COMPUTE[math]
