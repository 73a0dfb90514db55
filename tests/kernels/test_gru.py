"""GRU: hand example, finite differences, compiled against reference, torch, edges, errors."""

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
from pynlm.testing.tolerances import CLOSED_FORM, kernel_tolerance

FUNCTIONS = ["gru_forward", "gru_backward"]
BACKENDS = ["reference", "cpu"]
# torch's packed sequences refuse rows of length 0.
TORCH_CASES = [
    case
    for case in CASES["gru"]
    if case.is_plain and all(case.dims.values()) and min(case.options.get("lengths", [1])) > 0
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_unit_by_hand(backend: str) -> None:
    """Two steps of a single unit, written out with math.exp."""
    w_ih, w_hh, b, b_hn = [0.5, -0.3, 0.8], [0.1, 0.4, -0.6], [0.05, 0.9, -0.1], 0.7
    x, h = [1.5, -0.7], 0.25
    y, h_last = np.empty((2, 1, 1)), np.empty((1, 1))
    kernels.gru_forward(
        y=y,
        h_last=h_last,
        x=np.array(x).reshape(2, 1, 1),
        h0=np.array([[h]]),
        w_ih=np.array(w_ih)[:, None],
        w_hh=np.array(w_hh)[:, None],
        b=np.array(b),
        b_hn=np.array([b_hn]),
        backend=backend,
    )
    for t in range(2):
        r = 1 / (1 + math.exp(-(w_ih[0] * x[t] + w_hh[0] * h + b[0])))
        z = 1 / (1 + math.exp(-(w_ih[1] * x[t] + w_hh[1] * h + b[1])))
        n = math.tanh(w_ih[2] * x[t] + b[2] + r * (w_hh[2] * h + b_hn))
        h = (1 - z) * n + z * h
        assert_close(y[t, 0, 0], h, CLOSED_FORM, what=f"y[{t}]", kernel="gru", backend=backend)
    assert_close(h_last[0, 0], h, CLOSED_FORM, what="h_last", kernel="gru", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", gradient_cases("gru"), ids=str)
def test_gradients_match_finite_differences(case, backend: str) -> None:
    check_vjp("gru", case, backend)
    if case.is_tiny:
        check_elementwise("gru", case, backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES["gru"], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cpu_agrees_with_reference(function: str, case, dtype: str) -> None:
    check_against_reference(function, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_agrees_with_torch(case, dtype: str) -> None:
    pytest.importorskip("torch")
    check_against_torch("gru", case, dtype)


def test_reference_agrees_with_torch() -> None:
    pytest.importorskip("torch")
    for name in ("primes", "ragged-below-full"):
        check_against_torch("gru", find_case("gru", name), "float64", "reference")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    ["threads", "threads-ragged", "primes", "ragged-many-rows", "everything-threads"],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_bits_for_any_number_of_threads(function: str, name: str, dtype: str) -> None:
    check_threads(function, find_case("gru", name), dtype, threads=(1, 2, 3))


@pytest.mark.parametrize("name", ["primes", "ragged", "beyond-vector"])
def test_forward_only_agrees_with_training_forward(name: str) -> None:
    case = find_case("gru", name)
    given = arguments("gru_forward", case, "float32")
    kernels.gru_forward(**given)
    alone = arguments("gru_forward", case, "float32") | {"gates": None, "hn": None}
    kernels.gru_forward(**alone)
    tolerance = kernel_tolerance("gru", "float32")
    for output in ("y", "h_last"):
        assert_close(alone[output], given[output], tolerance, what=output, case=case)


@pytest.mark.parametrize("name", ["primes", "ragged"])
def test_optional_arguments_of_backward(name: str) -> None:
    """No dx asked for changes nothing else; no upstream state gradient means zero."""
    case = find_case("gru", name)
    full, zero, none = (arguments("gru_backward", case, "float64") for _ in range(3))
    zero["dh_last"][...] = 0
    none["dh_last"] = None
    without_dx = arguments("gru_backward", case, "float64") | {"dx": None}
    for given in (full, zero, none, without_dx):
        kernels.gru_backward(**given)
    for output in ("dh0", "dw_ih", "dw_hh", "db", "db_hn", "gates", "hn"):
        assert_same_bits(without_dx[output], full[output], what=output, case=case)
        assert_same_bits(none[output], zero[output], what=output, case=case)
    assert_same_bits(none["dx"], zero["dx"], what="dx", case=case)


def test_rows_do_not_see_each_other() -> None:
    """A ragged batch gives each row what it gets alone."""
    case = find_case("gru", "ragged")
    given = arguments("gru_forward", case, "float64")
    kernels.gru_forward(**given)
    for row, length in enumerate(given["lengths"]):
        one = slice(row, row + 1)
        alone = {k: given[k] for k in ("w_ih", "w_hh", "b", "b_hn")}
        alone |= {"h0": given["h0"][one].copy(), "h_last": np.empty((1, 13))}
        alone |= {"x": given["x"][:length, one].copy(), "y": np.empty((length, 1, 13))}
        kernels.gru_forward(**alone)
        tolerance = kernel_tolerance("gru", "float64")
        where = f"row {row}"
        assert_close(given["h_last"][one], alone["h_last"], tolerance, what="h_last", case=where)
        assert_close(given["y"][:length, one], alone["y"], tolerance, what="y", case=where)
        assert not given["y"][length:, one].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["primes", "one-row"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_shows(function: str, name: str, dtype: str) -> None:
    check_nan_shows(function, find_case("gru", name), dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["primes", "ragged"])
def test_every_array_is_checked(function: str, name: str) -> None:
    check_contract(function, find_case("gru", name))


def test_error_messages() -> None:
    given = arguments("gru_forward", find_case("gru", "primes"), "float64")

    def message(**changed: object) -> str:
        with pytest.raises((TypeError, ValueError)) as caught:
            kernels.gru_forward(**(given | changed))
        return f"{type(caught.value).__name__}: {caught.value}"

    assert message(w_ih=np.zeros((44, 7))) == (
        "ValueError: gru_forward: w_ih must be float64 [3H=33, I=7], got float64 [44, 7]"
    )
    assert message(b_hn=0.5) == "TypeError: gru_forward: b_hn must be float64 [H=11], got float 0.5"
    ln = np.ones((2, 33))
    assert message(ln_gates=ln) == (
        "ValueError: gru_forward: norm must be an array, because ln_gates is one"
    )
    assert message(ln_gates=ln, b_hn=None) == (
        "ValueError: gru_forward: ln_gates must be None without b_hn: layer norm is not defined "
        "for the GRU that resets before the product"
    )
    assert message(gates=None) == (
        "ValueError: gru_forward: gates and hn must be given together, got gates=None"
    )
    assert message(hn=None) == (
        "ValueError: gru_forward: gates and hn must be given together, got hn=None"
    )
    assert message(lengths=np.array([1, 2, 3], np.int32)) == (
        "ValueError: gru_forward: lengths must be non-increasing, got lengths[1]=2 after 1"
    )
