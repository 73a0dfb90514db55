"""Linear: hand example, finite differences, compiled against reference, torch, edges, errors."""

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

FUNCTIONS = ["linear_forward", "linear_backward"]
BACKENDS = ["reference", "cpu"]
TORCH_CASES = [case for case in CASES["linear"] if all(case.dims.values())]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    x, w = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
    y, dy = np.empty((2, 3)), np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    kernels.linear_forward(y=y, x=x, w=w, b=np.array([10.0, 20.0, 30.0]), backend=backend)
    assert y.tolist() == [[11.0, 22.0, 29.0], [13.0, 24.0, 29.0]]
    dx, dw, db = np.empty((2, 2)), np.empty((3, 2)), np.empty(3)
    kernels.linear_backward(dx=dx, dw=dw, db=db, dy=dy, x=x, w=w, backend=backend)
    assert dx.tolist() == [[3.0, -2.0], [0.0, 1.0]]
    assert dw.tolist() == [[1.0, 2.0], [3.0, 4.0], [2.0, 4.0]]
    assert db.tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", gradient_cases("linear"), ids=str)
def test_gradients_match_finite_differences(case, backend: str) -> None:
    check_vjp("linear", case, backend)
    if case.is_tiny:
        check_elementwise("linear", case, backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES["linear"], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cpu_agrees_with_reference(function: str, case, dtype: str) -> None:
    check_against_reference(function, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_agrees_with_torch(case, dtype: str) -> None:
    pytest.importorskip("torch")
    check_against_torch("linear", case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    [
        "threads",
        "beyond-tiles",
        "deep",
        "threads-chunks-of-inputs",
        "threads-chunks-of-outputs",
        "threads-spans",
    ],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_bits_for_any_number_of_threads(function: str, name: str, dtype: str) -> None:
    check_threads(function, find_case("linear", name), dtype, threads=(1, 2, 3))


def test_optional_outputs_of_backward() -> None:
    case = find_case("linear", "primes")
    full, part = (arguments("linear_backward", case, "float64") for _ in range(2))
    part |= {"dx": None, "db": None}
    kernels.linear_backward(**full)
    kernels.linear_backward(**part)
    assert_same_bits(part["dw"], full["dw"], what="dw", case=case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["primes", "beyond-tiles"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_shows(function: str, name: str, dtype: str) -> None:
    check_nan_shows(function, find_case("linear", name), dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_array_is_checked(function: str) -> None:
    check_contract(function, find_case("linear", "primes"))


def test_error_message() -> None:
    given = arguments("linear_forward", find_case("linear", "primes"), "float32")
    with pytest.raises(ValueError, match=r"w must be float32 \[O=7, I=7\], got float32 \[7, 11\]$"):
        kernels.linear_forward(**(given | {"w": np.zeros((7, 11), np.float32)}))
