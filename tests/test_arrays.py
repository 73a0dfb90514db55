"""The contract checks: binding of dimensions, and the wording of every error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pynlm.arrays import (
    INT32,
    check,
    check_any_shape,
    check_ids,
    check_integer,
    check_lengths,
    check_number,
    check_rows,
    describe,
    on_device,
    to_host,
    xp_of,
)
from pynlm.testing.device_arrays import Cupy, DeviceArray


def error(function: Any, *given: Any, **named: Any) -> str:
    with pytest.raises((TypeError, ValueError, IndexError)) as caught:
        function(*given, **named)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_binds_dimensions_and_dtype() -> None:
    dims: dict[str, Any] = {}
    check(np.zeros((2, 3, 5), np.float32), "T B I", dims, func="f", name="x")
    check(np.zeros((28, 5), np.float32), "4H I", dims, func="f", name="w")
    check(np.zeros(3, np.int32), "B", dims, func="f", name="lengths", dtype=INT32)
    assert dims == {"T": 2, "B": 3, "I": 5, "H": 7, "dtype": np.float32}


def test_factor_must_divide() -> None:
    assert error(check, np.zeros((9, 5)), "4H I", {}, func="f", name="w") == (
        "ValueError: f: w must be float64 [4H, I], got float64 [9, 5]"
    )


@pytest.mark.parametrize("symbol", ["T", "B", "N", "R", "P"])
def test_batches_may_be_empty(symbol: str) -> None:
    dims: dict[str, Any] = {}
    check(np.zeros(0), symbol, dims, func="f", name="x")
    assert dims[symbol] == 0


@pytest.mark.parametrize("symbol", ["I", "H", "V", "D", "O"])
def test_features_may_not_be_empty(symbol: str) -> None:
    assert error(check, np.zeros(0), symbol, {}, func="f", name="x") == (
        f"ValueError: f: x must be float64 [{symbol}>0], got float64 [0]"
    )


@pytest.mark.parametrize(
    "bad", [np.zeros(3, np.float16), np.zeros(3, np.longdouble), np.zeros(3, bool), np.array("abc")]
)
def test_other_dtypes_are_refused(bad: np.ndarray) -> None:
    message = error(check, bad, "N", {}, func="f", name="x")
    assert message.startswith("TypeError: f: x must be float32 or float64 [N], got ")


def test_layout() -> None:
    x = np.zeros((4, 6), np.float32)
    assert error(check, x[:, ::2], "N I", {}, func="f", name="x") == (
        "ValueError: f: x must be C-contiguous (np.ascontiguousarray makes a copy that is), "
        "got float32 [4, 3] with strides [24, 8]"
    )
    x.flags.writeable = False
    check(x, "N I", {}, func="f", name="x")
    assert error(check, x, "N I", {}, func="f", name="x", out=True) == (
        "ValueError: f: x must be writeable, got a read-only float32 [4, 6]"
    )
    unaligned = np.zeros(17, np.uint8)[1:].view(np.float32)
    assert error(check, unaligned, "N", {}, func="f", name="x") == (
        "ValueError: f: x must be aligned to its items, got an unaligned float32 [4]"
    )


def test_any_shape_gives_a_flat_view() -> None:
    x = np.zeros((2, 3))
    flat = check_any_shape(x, {}, func="f", name="x")
    assert flat.shape == (6,) and np.shares_memory(flat, x)
    assert error(check_any_shape, x.T, {}, func="f", name="x").startswith(
        "ValueError: f: x must be C-contiguous"
    )


def test_lengths() -> None:
    dims = {"T": 4, "B": 3}
    check_lengths(None, dims, func="f")
    check_lengths(np.array([4, 4, 0], np.int32), dims, func="f")
    check_lengths(np.zeros(0, np.int32), {"T": 4, "B": 0}, func="f")
    assert error(check_lengths, [4, 4, 0], dims, func="f") == (
        "TypeError: f: lengths must be int32 [B=3], got list"
    )


def test_ids_and_rows() -> None:
    check_ids(np.zeros(0, np.int32), 1, func="f", name="ids")
    check_ids(np.array([0, 4], np.int32), 5, func="f", name="ids")
    assert error(check_ids, np.array([0, -1, 9], np.int32), 5, func="f", name="ids") == (
        "IndexError: f: ids[1] must be in [0, V=5), got -1"
    )
    check_rows(np.array([0, 4], np.int32), 5, func="f")
    assert error(check_rows, np.array([2, 1], np.int32), 5, func="f") == (
        "ValueError: f: rows must be strictly increasing, got rows[1]=1 after 2"
    )


def test_numbers() -> None:
    check_number(0.5, func="f", name="p", low=0.0, high=1.0, high_open=True)
    check_number(np.float32(0.5), func="f", name="p")
    check_integer(3, func="f", name="t", low=1, high=3)
    check_integer(np.int64(1), func="f", name="t", low=1, high=3)
    assert error(check_number, 1, func="f", name="p", high=1.0, high_open=True) == (
        "ValueError: f: p must be in (-inf, 1), got 1.0"
    )
    assert error(check_number, None, func="f", name="p") == (
        "TypeError: f: p must be a number, got NoneType"
    )
    assert error(check_integer, True, func="f", name="t", low=1, high=3) == (
        "TypeError: f: t must be an integer, got bool True"
    )


def test_describe() -> None:
    assert describe(np.zeros((2, 3), np.int32)) == "int32 [2, 3]"
    assert describe("a" * 100) == "str"
    assert describe(3) == "int 3"


def test_arrays_on_a_gpu_are_checked_without_waiting() -> None:
    xp, before = Cupy(), DeviceArray.waits
    dims: dict[str, Any] = {}
    x = xp.zeros((2, 3, 5), np.float32)
    check(x, "T B I", dims, func="f", name="x", out=True)
    assert dims == {"T": 2, "B": 3, "I": 5, "dtype": np.float32, "device": "x"}
    assert check_any_shape(x, {}, func="f", name="x").shape == (30,)
    wrong = xp.array(np.array([7, -1, 3], np.int32))
    check_ids(wrong, 5, func="f", name="ids")
    check_rows(wrong, 5, func="f")
    check_lengths(wrong, dims, func="f")
    assert error(check, xp.zeros((28, 4), np.float32), "4H I", dims, func="f", name="w") == (
        "ValueError: f: w must be float32 [4H=28, I=5], got float32 [28, 4] on a GPU"
    )
    assert error(check, xp.zeros(3, np.float64), "B", dims, func="f", name="h") == (
        "TypeError: f: h must be float32 [B=3], got float64 [3] on a GPU"
    )
    assert error(check, x.T, "I B T", {}, func="f", name="x").startswith(
        "ValueError: f: x must be C-contiguous"
    )
    assert error(check_any_shape, x.T, {}, func="f", name="x").startswith(
        "ValueError: f: x must be C-contiguous"
    )
    assert on_device(x) and xp_of(x) is xp_of(x.T) and xp_of(np.zeros(1)) is np
    assert DeviceArray.waits == before
    assert to_host(x).shape == (2, 3, 5) and DeviceArray.waits == before + 1
