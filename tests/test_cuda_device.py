"""CuPy's device without CuPy: what it is told, and cuBLAS by one of a few lines."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from pynlm.cuda.device import CupyDevice
from pynlm.testing import DTYPES

COMPUTE = {"float32": 68, "tf32": 77, "bf16": 75, "fp16": 74}


class OnDevice:
    """What CupyDevice asks of an array."""

    def __init__(self, array: Any, device: int = 0) -> None:
        self.array = array
        self.shape, self.size, self.strides = array.shape, array.size, array.strides
        self.dtype, self.flags, self.fill = array.dtype, array.flags, array.fill
        self.data = SimpleNamespace(ptr=array.ctypes.data, device_id=device)


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
    handles: ClassVar[list[int]] = []

    def create(self) -> int:
        self.handles.append(8 + len(self.handles))
        return self.handles[-1]

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
        assert handle == 7 + Stream.made.index(Stream.current[-1])
        first = columns_of(a, *((k, m) if left else (m, k)), a_stride, dtype)
        second = columns_of(b, *((n, k) if right else (k, n)), b_stride, dtype)
        out = columns_of(c, m, n, c_stride, dtype)
        factors = [columns_of(at, 1, 1, 1, dtype)[0, 0] for at in (alpha, beta)]
        product = factors[0] * ((first.T if left else first) @ (second.T if right else second))
        out[...] = product if factors[1] == 0 else product + factors[1] * out


class Stream:
    """A stream, and what it was told."""

    current: ClassVar[list[Stream]] = []
    made: ClassVar[list[Stream]] = []

    def __init__(self, non_blocking: bool = False) -> None:
        self.non_blocking, self.told = non_blocking, []
        self.made.append(self)

    def __enter__(self) -> None:
        self.current.append(self)

    def __exit__(self, *_: Any) -> None:
        assert self.current.pop() is self

    def wait_event(self, event: Event) -> None:
        self.told.append(("wait", self.made.index(event.of)))


class Event:
    """An event, of a stream."""

    of: Stream

    def __init__(self, disable_timing: bool = False) -> None:
        assert disable_timing

    def record(self, stream: Stream) -> None:
        self.of = stream
        stream.told.append("record")


class Function:
    """A kernel, and how it was started."""

    def __init__(self, name: str) -> None:
        self.name, self.max_dynamic_shared_size_bytes = name, 48 << 10
        self.started: list[Any] = []

    def kernel(self, *given: Any, **options: Any) -> None:
        self.started.append((given, options))


class Module:
    """What a source was compiled to."""

    made: ClassVar[list[Module]] = []

    def __init__(self, code: str, options: tuple[str, ...], backend: str) -> None:
        assert "#include" not in code and backend == "nvrtc"
        self.options, self.functions = options, {}
        self.made.append(self)

    def get_function(self, name: str) -> Function:
        return self.functions.setdefault(name, Function(name))


@pytest.fixture
def device() -> CupyDevice:
    attributes = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448}
    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0, attributes=attributes),
        cublas=Cublas(),
        device=SimpleNamespace(get_cublas_handle=lambda: 7),
        Stream=Stream,
        Event=Event,
        get_current_stream=lambda: Stream.current[-1],
    )
    for known in (Module.made, Stream.made, Stream.current, Cublas.handles):
        known.clear()
    Stream.current.append(Stream())
    return CupyDevice(SimpleNamespace(cuda=cuda, ndarray=OnDevice, RawModule=Module))


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


def test_kernels_are_started(device: CupyDevice) -> None:
    """Compiled once for each dtype; shared memory beyond 48 KB is asked for; None is null."""
    x = OnDevice(np.ones((2, 3), np.float32))
    y = OnDevice(np.ones(3, np.float32))
    given: dict[str, Any] = {"sums": y, "x": x, "by": None, "lengths": None, "B": 1, "R": 2, "C": 3}
    for shared in (1024, 100 << 10, 60 << 10):
        device.launch(
            "common/columns.cu", "column_sum_blocks", (1, 2), shared=shared, cooperative=True,
            accumulate=True, **given,
        )  # fmt: skip
    (module,) = Module.made
    assert "-DREAL=float" in module.options
    function = module.functions["column_sum_blocks"]
    assert function.max_dynamic_shared_size_bytes == 100 << 10
    (grid, block, arguments), options = function.started[0]
    assert (grid, block) == ((1, 2, 1), (256, 1, 1))
    assert options == {"shared_mem": 1024, "enable_cooperative_groups": True}
    assert arguments[:4] == (y, x, 0, 0)
    assert [type(value) for value in arguments[2:]] == [
        np.uint64, np.uint64, np.int64, np.int64, np.int64, np.int32
    ]  # fmt: skip


def test_numbers_on_the_device(device: CupyDevice) -> None:
    """Of x and x_at the kernel gets one."""
    at = OnDevice(np.ones(1))
    x = OnDevice(np.ones(3, np.float32))
    for lr in (0.5, at):
        device.launch(
            "optim/sgd.cu", "sgd_update", 1, w=x, g=x, momentum_buffer=None, n=3, scale=at, lr=lr,
            momentum=0.0, weight_decay=0.0, nesterov=False,
        )  # fmt: skip
    function = Module.made[0].functions["sgd_update"]
    by_value, late = (started[0][2][4:8] for started in function.started)
    assert by_value == (0, at, 0.5, 0) and late == (0, at, 0, at)


def test_arrays_of_another_card_are_refused(device: CupyDevice) -> None:
    x = OnDevice(np.ones(3, np.float32), device=1)
    with pytest.raises(ValueError, match="clip_values: an array of GPU 1, where the current one i"):
        device.launch("optim/clip.cu", "clip_values", 1, x=x, n=3, limit=1.0)


def test_lanes_are_streams(device: CupyDevice) -> None:
    """Forked and joined by events; each with its own handle of cuBLAS; made once."""
    x = OnDevice(np.ones((2, 2), np.float32))
    out = OnDevice(np.zeros((2, 2), np.float32))
    for _ in range(2):
        with device.fork(2) as lanes:
            for i in range(2):
                with lanes[i]:
                    assert Stream.current[-1] is Stream.made[1 + i]
                    device.matmul(out, x, x)
                    if i == 0:
                        made = lanes.mark()
                    else:
                        lanes.wait(made, x)
                        assert lanes._held == [x]
            assert device.share == 66
        assert len(Stream.current) == 1
        device.matmul(out, x, x)
    main, first, second = Stream.made
    assert Cublas.handles == [8, 9]
    assert first.non_blocking and second.non_blocking
    assert main.told == ["record", ("wait", 1), ("wait", 2)] * 2
    assert first.told == [("wait", 0), "record", "record"] * 2
    assert second.told == [("wait", 0), ("wait", 1), "record"] * 2
