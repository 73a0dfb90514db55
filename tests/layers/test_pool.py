"""Pool: a buffer is handed out again only when nothing refers to it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pynlm.layers.pool import Pool


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.bool_])
def test_lease_is_aligned_contiguous_writeable(dtype: type) -> None:
    x = Pool().lease((3, 5, 7), dtype)
    assert x.shape == (3, 5, 7) and x.dtype == dtype
    assert x.ctypes.data % 64 == 0
    assert x.flags.c_contiguous and x.flags.writeable and x.flags.aligned


def test_memory_is_reused_once_dropped() -> None:
    pool = Pool()
    x = pool.lease((100,), np.float32)
    place = x.ctypes.data
    y = pool.lease((100,), np.float32)
    assert y.ctypes.data != place
    del x
    assert pool.lease((10, 10), np.float32).ctypes.data == place
    assert pool.allocations == 2


@pytest.mark.parametrize("view", [lambda x: x[3:5], lambda x: x.reshape(-1)[1:], memoryview])
def test_a_view_keeps_the_memory(view: object) -> None:
    pool = Pool()
    x = pool.lease((10, 10), np.float32)
    x.fill(1)
    kept = view(x)  # type: ignore[operator]
    del x
    pool.lease((10, 10), np.float32).fill(2)
    assert pool.allocations == 2 and pool.leased == 1
    assert float(np.asarray(kept).max()) == 1.0


def test_like_shapes_share_a_buffer() -> None:
    pool = Pool()
    for n in (1000, 900, 700, 600, 1010):
        pool.lease((n,), np.float64)
    assert pool.allocations == 1


def test_small_requests_do_not_take_large_buffers() -> None:
    pool = Pool()
    pool.lease((100_000,), np.float64)
    pool.lease((10,), np.float64)
    assert pool.allocations == 2


def test_varying_sizes_keep_memory_bounded() -> None:
    pool = Pool()
    rng = np.random.default_rng(1)
    for n in rng.integers(1, 100_000, 3000):
        a, b = pool.lease((int(n),), np.float32), pool.lease((int(n), 2), np.float32)
        del a, b
    assert pool.nbytes < 3 * 4 * (100_000 + 200_000)


def test_steady_pattern_stops_allocating() -> None:
    pool = Pool()
    rng = np.random.default_rng(1)
    sizes = [int(n) for n in rng.integers(1, 5000, 40)]

    def step() -> None:
        held = []
        for i, n in enumerate(sizes):
            held.append(pool.lease((n,), np.float32))
            if i % 3 == 2:
                held.pop(i % len(held))

    for _ in range(10):
        step()
    made = pool.allocations
    for _ in range(20):
        step()
    assert pool.allocations == made and pool.leased == 0


def test_empty_shapes() -> None:
    pool = Pool()
    assert pool.lease((0, 5), np.float32).shape == (0, 5)
    assert pool.lease((), np.float32).shape == ()


def test_trim_frees_only_what_is_free() -> None:
    pool = Pool()
    kept, dropped = pool.lease((1000,), np.float32), pool.lease((1000,), np.float32)
    del dropped
    pool.trim()
    assert pool.leased == 1 and pool.nbytes < 5000
    kept.fill(1)


def test_threads_never_share_a_lease() -> None:
    pool = Pool()
    wrong: list[int] = []

    def work(me: int) -> None:
        for _ in range(300):
            x = pool.lease((64,), np.int64)
            x.fill(me)
            y = pool.lease((64,), np.int64)
            y.fill(-me)
            if (x != me).any():
                wrong.append(me)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
