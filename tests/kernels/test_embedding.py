"""Embedding: hand example, finite differences, compiled against reference, torch, edges, errors."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import (
    CASES,
    DTYPES,
    arguments,
    assert_same_bits,
    check_against_reference,
    check_against_torch,
    check_contract,
    check_elementwise,
    check_nan_shows,
    check_threads,
    check_vjp,
    find_case,
    gradient_cases,
)

FUNCTIONS = ["embedding_forward", "embedding_backward"]
BACKENDS = ["reference", "cpu"]
TORCH_CASES = [case for case in CASES["embedding"] if all(case.dims.values())]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    ids, w = np.array([2, 0, 2, 3], np.int32), np.array([[0.0, 1], [2, 3], [4, 5], [6, 7]])
    y = np.empty((4, 2))
    kernels.embedding_forward(y=y, ids=ids, w=w, backend=backend)
    assert y.tolist() == [[4, 5], [0, 1], [4, 5], [6, 7]]
    rows, drows = np.full(4, -7, np.int32), np.empty((4, 2))
    dy = np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]])
    n = kernels.embedding_backward(rows=rows, drows=drows, ids=ids, dy=dy, backend=backend)
    assert (n, rows[:n].tolist()) == (3, [0, 2, 3])
    assert drows[:n].tolist() == [[3, 4], [6, 8], [7, 8]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", gradient_cases("embedding"), ids=str)
def test_gradients_match_finite_differences(case, backend: str) -> None:
    check_vjp("embedding", case, backend)
    if case.is_tiny:
        check_elementwise("embedding", case, backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES["embedding"], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cpu_agrees_with_reference(function: str, case, dtype: str) -> None:
    check_against_reference(function, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_agrees_with_torch(case, dtype: str) -> None:
    pytest.importorskip("torch")
    check_against_torch("embedding", case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["threads", "primes", "same-id"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_bits_for_any_number_of_threads(function: str, name: str, dtype: str) -> None:
    check_threads(function, find_case("embedding", name), dtype, threads=(1, 2, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_largest_id(backend: str) -> None:
    """The gradient does not know V: any id of 31 bits is a row."""
    ids, dy = np.array([2**31 - 1, 0, 2**31 - 1], np.int32), np.array([[1.0], [2.0], [4.0]])
    rows, drows = np.empty(3, np.int32), np.empty((3, 1))
    n = kernels.embedding_backward(rows=rows, drows=drows, ids=ids, dy=dy, backend=backend)
    assert (rows[:n].tolist(), drows[:n, 0].tolist()) == ([0, 2**31 - 1], [2.0, 5.0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["primes"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_shows(function: str, name: str, dtype: str) -> None:
    check_nan_shows(function, find_case("embedding", name), dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_array_is_checked(function: str) -> None:
    check_contract(function, find_case("embedding", "primes"))


@pytest.mark.parametrize("bad", [29, -1, 2**31 - 1, -(2**31)])
def test_ids_outside_the_vocabulary(bad: int) -> None:
    given = arguments("embedding_forward", find_case("embedding", "primes"), "float32")
    given["ids"][7] = bad
    with pytest.raises(IndexError) as caught:
        kernels.embedding_forward(**given)
    assert str(caught.value) == f"embedding_forward: ids[7] must be in [0, V=29), got {bad}"


def test_negative_id_in_the_gradient() -> None:
    given = arguments("embedding_backward", find_case("embedding", "primes"), "float32")
    given["ids"][7] = -3
    with pytest.raises(
        IndexError, match=r"^embedding_backward: ids\[7\] must be in \[0, .*got -3$"
    ):
        kernels.embedding_backward(**given)


@pytest.mark.parametrize("name", ["same-id", "threads"])
def test_sums_in_the_order_of_the_positions(name: str) -> None:
    """Both backends add one row after the other, so even float32 agrees to the last bit."""
    fast, plain = (
        arguments("embedding_backward", find_case("embedding", name), "float32") for _ in range(2)
    )
    n = kernels.embedding_backward(**fast)
    assert n == kernels.embedding_backward(**plain, backend="reference")
    assert_same_bits(fast["drows"][:n], plain["drows"][:n], what="drows")
