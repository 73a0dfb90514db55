"""LSTM: hand example, finite differences, compiled against reference, torch, edges, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pynlm import kernels
from pynlm.kernels import Variant
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
from pynlm.testing.arguments import beyond
from pynlm.testing.tolerances import CLOSED_FORM, kernel_tolerance

FUNCTIONS = ["lstm_forward", "lstm_backward"]
BACKENDS = ["reference", "cpu"]
# torch's packed sequences refuse rows of length 0, and its LSTM empty inputs.
TORCH_CASES = [
    case
    for case in CASES["lstm"]
    if case.is_plain and all(case.dims.values()) and min(case.options.get("lengths", [1])) > 0
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_unit_by_hand(backend: str) -> None:
    """Two steps of a single unit, written out with math.exp."""
    w_ih, w_hh, b = [0.5, -0.3, 0.8, 0.2], [0.1, 0.4, -0.6, 0.7], [0.05, 0.9, -0.1, 0.3]
    x, h, c = [1.5, -0.7], 0.25, -0.5

    def column(values: list[float]) -> np.ndarray:
        return np.array(values)[:, None]

    y, h_last, c_last = np.empty((2, 1, 1)), np.empty((1, 1)), np.empty((1, 1))
    kernels.lstm_forward(
        y=y,
        h_last=h_last,
        c_last=c_last,
        x=np.array(x).reshape(2, 1, 1),
        h0=np.array([[h]]),
        c0=np.array([[c]]),
        w_ih=column(w_ih),
        w_hh=column(w_hh),
        b=np.array(b),
        backend=backend,
    )
    for t in range(2):
        a = [w_ih[k] * x[t] + w_hh[k] * h + b[k] for k in range(4)]
        i, f, o = (1 / (1 + math.exp(-a[k])) for k in (0, 1, 3))
        c = f * c + i * math.tanh(a[2])
        h = o * math.tanh(c)
        assert_close(y[t, 0, 0], h, CLOSED_FORM, what=f"y[{t}]", kernel="lstm", backend=backend)
    assert_close(h_last[0, 0], h, CLOSED_FORM, what="h_last", kernel="lstm", backend=backend)
    assert_close(c_last[0, 0], c, CLOSED_FORM, what="c_last", kernel="lstm", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", gradient_cases("lstm"), ids=str)
def test_gradients_match_finite_differences(case, backend: str) -> None:
    check_vjp("lstm", case, backend)
    if case.is_tiny:
        check_elementwise("lstm", case, backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES["lstm"], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cpu_agrees_with_reference(function: str, case, dtype: str) -> None:
    check_against_reference(function, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_agrees_with_torch(case, dtype: str) -> None:
    pytest.importorskip("torch")
    check_against_torch("lstm", case, dtype)


def test_reference_agrees_with_torch() -> None:
    pytest.importorskip("torch")
    for name in ("primes", "ragged-below-full"):
        check_against_torch("lstm", find_case("lstm", name), "float64", "reference")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    ["threads", "threads-ragged", "primes", "ragged-many-rows", "everything-threads"],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_bits_for_any_number_of_threads(function: str, name: str, dtype: str) -> None:
    check_threads(function, find_case("lstm", name), dtype, threads=(1, 2, 3))


@pytest.mark.parametrize("name", ["primes", "ragged", "beyond-vector"])
def test_forward_only_agrees_with_training_forward(name: str) -> None:
    case = find_case("lstm", name)
    given = arguments("lstm_forward", case, "float32")
    kernels.lstm_forward(**given)
    alone = arguments("lstm_forward", case, "float32") | {"gates": None, "c": None}
    kernels.lstm_forward(**alone)
    tolerance = kernel_tolerance("lstm", "float32")
    for output in ("y", "h_last", "c_last"):
        assert_close(alone[output], given[output], tolerance, what=output, case=case)


@pytest.mark.parametrize("name", ["primes", "ragged"])
def test_optional_arguments_of_backward(name: str) -> None:
    """No dx asked for changes nothing else; no upstream state gradient means zero."""
    case = find_case("lstm", name)
    full, zero, none = (arguments("lstm_backward", case, "float64") for _ in range(3))
    zero["dh_last"][...], zero["dc_last"][...] = 0, 0
    none |= {"dh_last": None, "dc_last": None}
    without_dx = arguments("lstm_backward", case, "float64") | {"dx": None}
    for given in (full, zero, none, without_dx):
        kernels.lstm_backward(**given)
    for output in ("dh0", "dc0", "dw_ih", "dw_hh", "db", "gates"):
        assert_same_bits(without_dx[output], full[output], what=output, case=case)
        assert_same_bits(none[output], zero[output], what=output, case=case)
    assert_same_bits(none["dx"], zero["dx"], what="dx", case=case)


def test_rows_do_not_see_each_other() -> None:
    """A ragged batch gives each row what it gets alone."""
    case = find_case("lstm", "ragged")
    given = arguments("lstm_forward", case, "float64")
    kernels.lstm_forward(**given)
    for row, length in enumerate(given["lengths"]):
        one = slice(row, row + 1)
        alone = {k: given[k] for k in ("w_ih", "w_hh", "b")}
        alone |= {k: given[k][one].copy() for k in ("h0", "c0")}
        alone |= {k: np.empty((1, 13)) for k in ("h_last", "c_last")}
        alone |= {"x": given["x"][:length, one].copy(), "y": np.empty((length, 1, 13))}
        kernels.lstm_forward(**alone)
        tolerance = kernel_tolerance("lstm", "float64")
        for name in ("h_last", "c_last"):
            assert_close(given[name][one], alone[name], tolerance, what=name, case=f"row {row}")
        assert_close(given["y"][:length, one], alone["y"], tolerance, what="y", case=f"row {row}")
        assert not given["y"][length:, one].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["primes", "one-row"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_shows(function: str, name: str, dtype: str) -> None:
    check_nan_shows(function, find_case("lstm", name), dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["primes", "ragged"])
def test_every_array_is_checked(function: str, name: str) -> None:
    check_contract(function, find_case("lstm", name))


def test_error_messages() -> None:
    given = arguments("lstm_forward", find_case("lstm", "primes"), "float32")

    def message(**changed: object) -> str:
        with pytest.raises((TypeError, ValueError)) as caught:
            kernels.lstm_forward(**(given | changed))
        return f"{type(caught.value).__name__}: {caught.value}"

    assert message(w_hh=np.zeros((44, 5), np.float32)) == (
        "ValueError: lstm_forward: w_hh must be float32 [4H=44, H=11], got float32 [44, 5]"
    )
    assert message(b=np.zeros(44)) == (
        "TypeError: lstm_forward: b must be float32 [4H=44], got float64 [44]"
    )
    assert message(x=[1, 2]) == (
        "TypeError: lstm_forward: x must be float32 or float64 [T, B, I], got list"
    )
    assert message(c=None) == ("ValueError: lstm_forward: c must be an array, because gates is one")
    assert message(norm=np.zeros(3)) == (
        "ValueError: lstm_forward: norm must be None, because ln_gates is None or nothing is saved"
    )
    assert message(w_hr=np.ones((5, 11), np.float32)) == (
        "ValueError: lstm_forward: h0 must be float32 [B=3, P=5], got float32 [3, 11]"
    )
    assert message(variant=Variant(norm_state=True)) == (
        "ValueError: lstm_forward: variant.norm_state must be False without ln_cell"
    )
    assert message(variant=Variant(sample="no")) == (  # type: ignore[arg-type]
        "TypeError: lstm_forward: variant.sample must be True or False, got 'no'"
    )
    assert message(variant=Variant(coupled=True)) == (
        "ValueError: lstm_forward: w_ih must be float32 [3H=33, I=7], got float32 [44, 7]"
    )
    assert message(ln_gates=np.ones((2, 44), np.float32)) == (
        "ValueError: lstm_forward: ln_gates and ln_cell must be given together, got ln_cell=None"
    )
    assert message(x=np.zeros((5, 3, 0), np.float32)) == (
        "ValueError: lstm_forward: x must be float32 [T=5, B=3, I>0], got float32 [5, 3, 0]"
    )
    assert message(lengths=np.array([5, 6, 1], np.int32)) == (
        "ValueError: lstm_forward: lengths[1] must be in [0, T=5], got 6"
    )
    assert message(lengths=np.array([5, 2, -1], np.int32)) == (
        "ValueError: lstm_forward: lengths[2] must be in [0, T=5], got -1"
    )
    assert message(lengths=np.array([3, 5, 1], np.int32)) == (
        "ValueError: lstm_forward: lengths must be non-increasing, got lengths[1]=5 after 3"
    )
    assert message(lengths=np.array([3, 1], np.int32)) == (
        "ValueError: lstm_forward: lengths must be int32 [B=3], got int32 [2]"
    )
    assert message(lengths=np.array([3, 2, 1])) == (
        "TypeError: lstm_forward: lengths must be int32 [B=3], got int64 [3]"
    )
    assert message(backend="gpu") == (
        'ValueError: lstm_forward: backend must be "cpu" or "reference", got \'gpu\''
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["primes", "ragged", "everything-ragged"])
def test_cell_states_without_a_backward_pass(name: str, backend: str) -> None:
    given = arguments("lstm_forward", find_case("lstm", name), "float32")
    kernels.lstm_forward(**given, backend=backend)
    saved = given["c"].copy()
    for what in ("gates", "m", "norm", "norm_c", "rstd"):
        given[what] = None
    given["c"] = np.full_like(saved, np.nan)
    kernels.lstm_forward(**given, backend=backend)
    taking_part = ~beyond(find_case("lstm", name))
    assert_same_bits(given["c"][taking_part], saved[taking_part], what="c")
