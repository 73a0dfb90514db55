"""What a training step on a GPU has besides the public functions, in the emulation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pynlm import cuda, kernels
from pynlm.cuda._sorted import sort_ids
from pynlm.cuda.clip import clip_scale, clip_scale_scaled, sum_squares_on_device
from pynlm.cuda.embedding import embedding_backward_dense
from pynlm.reference import philox
from pynlm.testing import DTYPES, assert_close, assert_same_bits
from pynlm.testing.device_arrays import Cupy
from pynlm.testing.emulated import EmulatedDevice, emulation
from pynlm.testing.tolerances import kernel_tolerance

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with emulation(EmulatedDevice()):
        yield


@pytest.mark.parametrize(
    ("n", "largest"), [(1, 0), (255, 3), (256, 255), (257, 256), (2500, 40), (5000, 70_000)]
)
def test_sort_is_stable(n: int, largest: int) -> None:
    """At sizes of one and of several blocks, of one to three digits."""
    ids = np.random.default_rng(n).integers(0, largest + 1, n).astype(np.int32)
    found = sort_ids(ids, largest + 1)
    places = np.argsort(ids, kind="stable")
    distinct, begins = np.unique(ids[places], return_index=True)
    np.testing.assert_array_equal(found.places, places)
    np.testing.assert_array_equal(found.keys, ids[places])
    assert found.count[0] == len(distinct)
    np.testing.assert_array_equal(found.begins[: len(distinct) + 1], [*begins, n])


def test_more_ids_than_can_be_sorted_are_refused() -> None:
    with pytest.raises(ValueError, match="sort_ids: 2147483648 ids are too many"):
        sort_ids(np.broadcast_to(np.int32(0), 1 << 31))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "V", "D"), [(0, 5, 3), (40, 11, 6), (1500, 300, 5), (33, 1, 1)])
def test_dense_gradient_of_a_table(N: int, V: int, D: int, dtype: str) -> None:
    """Every row of the table, the same bits on cards of another size."""
    rng = np.random.default_rng(1)
    ids, dy = (V * rng.random(N) ** 2).astype(np.int32), rng.normal(size=(N, D)).astype(dtype)
    want = np.zeros((V, D))
    np.add.at(want, ids, dy.astype(np.float64))
    got = []
    for processors in (1, 3):
        dw = np.full((V, D), np.nan, dtype)
        with emulation(EmulatedDevice(processors)):
            embedding_backward_dense(dw=dw, ids=ids, dy=dy)
        got.append(dw)
    tolerance = kernel_tolerance("embedding", dtype)
    assert_close(got[0], want, tolerance, what="dw", terms=max(1, N))
    assert_same_bits(got[1], got[0], what="dw")


@pytest.mark.parametrize("D", [3, 8])
def test_rows_of_unknown_ids_are_nan(D: int) -> None:
    ids, w = np.array([2, -1, 5, 0, 2**31 - 1], np.int32), np.ones((5, D), np.float32)
    y = np.empty((5, D), np.float32)
    cuda.embedding_forward(y=y, ids=ids, w=w)
    np.testing.assert_array_equal(np.isnan(y).all(axis=1), [0, 1, 1, 0, 1])
    assert (y[[0, 3]] == 1).all()


UPDATES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "sgd_update": (("momentum_buffer",), {"momentum": 0.9, "weight_decay": 0.01}),
    "adagrad_update": (("v",), {"eps": 1e-8, "weight_decay": 0.01}),
    "adam_update": (
        ("m", "v"),
        {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01, "decoupled": True, "t": 3},
    ),
}


def _updated(function: str, module: Any, arrays: dict[str, Array], **given: Any) -> dict[str, Any]:
    copies = {name: value.copy() for name, value in arrays.items()}
    # a copy begins where memory is aligned; a view behind some numbers does not
    shift = given.pop("shift", {})
    for name, by in shift.items():
        room = np.empty(arrays[name].size + by, arrays[name].dtype)
        copies[name] = room[by:]
        copies[name][...] = arrays[name]
    getattr(module, function)(**copies, **UPDATES[function][1], lr=0.1, **given)
    return copies


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 1003])
@pytest.mark.parametrize("alike", [True, False], ids=["alike", "apart"])
@pytest.mark.parametrize("function", UPDATES)
def test_updates_of_arrays_not_aligned(function: str, alike: bool, size: int, dtype: str) -> None:
    """Views that all begin between two multiples of 16 bytes, and views of which one does."""
    rng = np.random.default_rng(2)
    names = ("w", "g", *UPDATES[function][0])
    arrays = {name: (rng.normal(size=size) ** 2).astype(dtype) for name in names}
    aligned = _updated(function, cuda, arrays, scale=0.5)
    shift = dict.fromkeys(names, 1) if alike else {"w": 1}
    shifted = _updated(function, cuda, arrays, scale=0.5, shift=shift)
    for name in names:
        assert_same_bits(shifted[name], aligned[name], what=f"{function} {name}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [3, 6, 8])
@pytest.mark.parametrize("function", UPDATES)
def test_updates_by_a_scale_on_the_device(function: str, D: int, dtype: str) -> None:
    """The same bits as by the number, of flat arrays and of tables with rows of any alignment."""
    rng = np.random.default_rng(3)
    names = ("w", "g", *UPDATES[function][0])
    arrays = {name: (rng.normal(size=(9, D)) ** 2).astype(dtype) for name in names}
    rows = np.array([1, 4, 8], np.int32)
    arrays["g"][[i for i in range(9) if i not in rows]] = 0
    total = np.empty(2)
    for part, at in ((arrays["g"][:4], slice(0, 1)), (arrays["g"][4:], slice(1, 2))):
        sum_squares_on_device(part.reshape(-1), total[at])
    scale = clip_scale(total, 0.25)
    flat = {name: value.reshape(-1) for name, value in arrays.items()}
    want = _updated(function, cuda, flat, scale=float(scale[0]))
    got = _updated(function, cuda, flat, scale=scale)
    given = {**arrays, "rows": rows, "drows": arrays["g"][rows]}
    del given["g"]
    by_rows = _updated(f"{function}", _Rows, given, scale=scale)
    for name in ("w", *UPDATES[function][0]):
        assert_same_bits(got[name], want[name], what=f"{function} {name}")
        assert_same_bits(by_rows[name].reshape(-1), want[name], what=f"{function}_rows {name}")
    assert not np.array_equal(want["w"], flat["w"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", UPDATES)
def test_updates_by_rates_on_the_device(function: str, dtype: str) -> None:
    """What a CUDA graph reads anew each time: the same bits as by value."""
    rng = np.random.default_rng(4)
    names = ("w", "g", *UPDATES[function][0])
    arrays = {name: (rng.normal(size=37) ** 2).astype(dtype) for name in names}
    rule = dict(UPDATES[function][1])
    late = {"lr": 0.037, "scale": 1 / 3} | ({"t": rule.pop("t")} if "t" in rule else {})
    found = []
    for numbers in (late, {name: np.array([value], np.float64) for name, value in late.items()}):
        copies = {name: value.copy() for name, value in arrays.items()}
        getattr(cuda, function)(**copies, **rule, **numbers)
        found.append(copies)
    for name in names:
        assert_same_bits(found[1][name], found[0][name], what=f"{function} {name}")


def test_numbers_on_a_gpu_are_checked() -> None:
    def there(*values: float, dtype: Any = np.float64) -> Any:
        return Cupy().asarray(np.array(values, dtype))

    x, w = np.ones((1, 1, 4), np.float32), np.ones(4, np.float32)
    with pytest.raises(TypeError, match="dropout: y must be on the GPU as step is, got NumPy's"):
        kernels.dropout(y=x, x=x, p=0.5, seed=1, step=there(1), site=1, layer=0)
    with pytest.raises(
        TypeError, match=r"sgd_update: lr must be float64 \[1\], got float32 \[1\] o"
    ):
        kernels.sgd_update(w=w, g=w, scale=1.0, lr=there(1, dtype=np.float32))
    with pytest.raises(
        ValueError, match=r"adam_update: t must be float64 \[1\], got float64 \[2\]"
    ):
        kernels.adam_update(
            w=w, g=w, m=w, v=w, scale=1.0, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8,
            weight_decay=0.0, decoupled=False, t=there(1, 2),
        )  # fmt: skip


def test_masks_by_a_step_on_the_device() -> None:
    x, found = np.ones((3, 5, 103), np.float32), []
    for step in (2**32 - 1, np.array([2.0**32 - 1])):
        y = np.empty_like(x)
        cuda.dropout(y=y, x=x, p=0.5, seed=7, step=step, site=philox.OUTPUT, layer=2)
        found.append(y)
    assert_same_bits(found[1], found[0], what="y")


class _Rows:
    """The updates of tables under the names of those of flat arrays."""

    sgd_update = staticmethod(cuda.sgd_update_rows)
    adagrad_update = staticmethod(cuda.adagrad_update_rows)
    adam_update = staticmethod(cuda.adam_update_rows)


@pytest.mark.parametrize(
    ("totals", "scale"),
    [
        ([9.0, 16.0], 0.4),
        ([1.0], 1.0),
        ([4.0], 1.0),
        ([0.0], 1.0),
        ([np.inf], 0.0),
        ([np.nan], 1.0),
    ],
)
def test_clip_scale(totals: list[float], scale: float) -> None:
    assert clip_scale(np.array(totals), 2.0)[0] == scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", UPDATES)
def test_no_update_by_a_scale_that_is_none(function: str, dtype: str) -> None:
    arrays = {name: np.ones((9, 3), dtype) for name in ("w", "g", *UPDATES[function][0])}
    flat = {name: value.reshape(-1) for name, value in arrays.items()}
    rows = {**arrays, "rows": np.array([1, 4], np.int32), "drows": arrays.pop("g")[:2]}
    del rows["g"]
    for module, given in ((cuda, flat), (_Rows, rows)):
        got = _updated(function, module, given, scale=np.array([np.nan]))
        for name, value in given.items():
            assert_same_bits(got[name], value, what=f"{function} {name}")


@pytest.mark.parametrize(
    ("totals", "limit", "scaling", "scale", "after"),
    [
        ([9.0 * 64, 16.0 * 64], 2.0, [8.0, 3.0], 0.4 / 8, [8.0, 4.0]),
        ([64.0], np.inf, [8.0, 1999.0], 1 / 8, [16.0, 0.0]),
        ([64.0], 2.0, [2.0**24, 1999.0], 2.0**-24, [2.0**24, 0.0]),
        ([np.inf], 2.0, [8.0, 7.0], np.nan, [4.0, 0.0]),
        ([1.0, np.nan], np.inf, [1.0, 7.0], np.nan, [1.0, 0.0]),
    ],
)
def test_clip_scale_scaled(
    totals: list[float], limit: float, scaling: list[float], scale: float, after: list[float]
) -> None:
    given, own = np.array(totals), np.array(scaling)
    np.testing.assert_array_equal(clip_scale_scaled(given, limit, own), [scale])
    np.testing.assert_array_equal(own, after)
    np.testing.assert_array_equal(given, np.array(totals) / scaling[0] ** 2)


def test_words_are_the_oracles() -> None:
    """Whether word < round(p 2^32), asked at 33 thresholds: a wrong word cannot hide."""
    x = np.ones((3, 5, 103), np.float32)
    grid = philox.words(
        np.arange(40, 43), np.arange(5), 103, site=philox.OUTPUT, layer=2, seed=7, step=11
    )
    where = {"seed": 7, "step": 11, "site": philox.OUTPUT, "layer": 2, "time0": 40}
    for p in [*np.arange(1, 32) / 32, 2.0**-32, 1 - 2.0**-32]:
        y = np.empty_like(x)
        cuda.dropout(y=y, x=x, p=float(p), **where)
        np.testing.assert_array_equal(y == 0, grid < np.uint32(round(p * 2**32)))
