"""Simple RNN: hand example, finite differences, compiled against reference, torch, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import (
    CASES,
    DTYPES,
    arguments,
    assert_close,
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
from pynlm.testing.tolerances import CLOSED_FORM

FUNCTIONS = ["rnn_forward", "rnn_backward"]
BACKENDS = ["reference", "cpu"]
# torch's packed sequences refuse rows of length 0.
TORCH_CASES = [
    case
    for case in CASES["rnn"]
    if case.is_plain and all(case.dims.values()) and min(case.options.get("lengths", [1])) > 0
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_one_unit_by_hand(nonlinearity: str, backend: str) -> None:
    """Three steps of a single unit; the relu is off in one of them."""
    x, h = [1.5, -2.7, 0.4], 0.25
    y, h_last = np.empty((3, 1, 1)), np.empty((1, 1))
    kernels.rnn_forward(
        y=y,
        h_last=h_last,
        x=np.array(x).reshape(3, 1, 1),
        h0=np.array([[h]]),
        w_ih=np.array([[0.5]]),
        w_hh=np.array([[-0.6]]),
        b=np.array([0.3]),
        nonlinearity=nonlinearity,
        backend=backend,
    )
    for t in range(3):
        a = 0.5 * x[t] - 0.6 * h + 0.3
        h = math.tanh(a) if nonlinearity == "tanh" else max(a, 0.0)
        assert_close(y[t, 0, 0], h, CLOSED_FORM, what=f"y[{t}]", kernel="rnn", backend=backend)
    assert_close(h_last[0, 0], h, CLOSED_FORM, what="h_last", kernel="rnn", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", gradient_cases("rnn"), ids=str)
def test_gradients_match_finite_differences(case, backend: str) -> None:
    check_vjp("rnn", case, backend)
    if case.is_tiny:
        check_elementwise("rnn", case, backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES["rnn"], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cpu_agrees_with_reference(function: str, case, dtype: str) -> None:
    check_against_reference(function, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_agrees_with_torch(case, dtype: str) -> None:
    pytest.importorskip("torch")
    check_against_torch("rnn", case, dtype)


def test_reference_agrees_with_torch() -> None:
    pytest.importorskip("torch")
    for name in ("primes-tanh", "primes-relu", "ragged-below-full-tanh"):
        check_against_torch("rnn", find_case("rnn", name), "float64", "reference")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["threads-tanh", "threads-ragged-tanh", "threads-relu", "everything-threads-tanh"]
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_bits_for_any_number_of_threads(function: str, name: str, dtype: str) -> None:
    check_threads(function, find_case("rnn", name), dtype, threads=(1, 2, 3))


@pytest.mark.parametrize("name", ["primes-tanh", "ragged-relu"])
def test_optional_arguments_of_backward(name: str) -> None:
    """No dx asked for changes nothing else; no upstream state gradient means zero."""
    case = find_case("rnn", name)
    full, zero, none = (arguments("rnn_backward", case, "float64") for _ in range(3))
    zero["dh_last"][...] = 0
    none["dh_last"] = None
    without_dx = arguments("rnn_backward", case, "float64") | {"dx": None}
    for given in (full, zero, none, without_dx):
        kernels.rnn_backward(**given)
    for output in ("dh0", "dw_ih", "dw_hh", "db", "dpre"):
        assert_same_bits(without_dx[output], full[output], what=output, case=case)
        assert_same_bits(none[output], zero[output], what=output, case=case)
    assert_same_bits(none["dx"], zero["dx"], what="dx", case=case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["primes-tanh", "primes-relu"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_shows(function: str, name: str, dtype: str) -> None:
    check_nan_shows(function, find_case("rnn", name), dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["primes-tanh", "ragged-relu"])
def test_every_array_is_checked(function: str, name: str) -> None:
    check_contract(function, find_case("rnn", name))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unknown_nonlinearity(function: str) -> None:
    given = arguments(function, find_case("rnn", "primes-tanh"), "float32")
    expected = f'^{function}: nonlinearity must be "tanh" or "relu", got '
    with pytest.raises(ValueError, match=expected + "str 'sigmoid'$"):
        getattr(kernels, function)(**(given | {"nonlinearity": "sigmoid"}))
    with pytest.raises(TypeError, match=expected + "NoneType$"):
        getattr(kernels, function)(**(given | {"nonlinearity": None}))


def test_expected_zoneout_has_no_backward_pass() -> None:
    """The forward pass mixes old and new states by the probability; the backward pass says why not.

    With probability 0 it is the plain cell.
    """
    case = find_case("rnn", "primes-tanh")
    given, plain = (arguments("rnn_forward", case, "float64") for _ in range(2))
    kernels.rnn_forward(**plain)
    kernels.rnn_forward(**(given | {"variant": kernels.Variant(zoneout_h=0.25)}))
    expected = 0.25 * given["h0"] + 0.75 * plain["y"][0]
    assert_close(given["y"][0], expected, CLOSED_FORM, what="y[0]", kernel="rnn", case=case)
    oracle = arguments("rnn_forward", case, "float64") | {"backend": "reference"}
    kernels.rnn_forward(**(oracle | {"variant": kernels.Variant(zoneout_h=0.25)}))
    assert_close(given["y"], oracle["y"], CLOSED_FORM, what="y", kernel="rnn", case=case)
    with pytest.raises(ValueError, match=r"rnn_backward: variant\.sample must be True"):
        kernels.rnn_backward(
            **(
                arguments("rnn_backward", case, "float64")
                | {"variant": kernels.Variant(zoneout_h=0.25)}
            )
        )
