"""Softmax cross-entropy: closed forms, finite differences, reference, torch, edges, errors."""

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

FUNCTIONS = [
    *("xent_forward", "xent_gradients", "xent_log_prob"),
    *("xent_top_k", "xent_sample", "xent_entropy"),
]
BACKENDS = ["reference", "cpu"]
TORCH_CASES = [case for case in CASES["xent"] if all(case.dims.values())]


@pytest.mark.parametrize("backend", BACKENDS)
def test_uniform_distribution(backend: str) -> None:
    """Equal logits: nll = log V, and the gradient of the bias is 1/V - [v = target]."""
    N, H, V = 3, 2, 7
    targets = np.array([0, 6, 6], np.int32)
    nll, dh, dw, db = np.empty(N), np.empty((N, H)), np.empty((V, H)), np.empty(V)
    kernels.xent_gradients(
        nll=nll,
        dh=dh,
        dw=dw,
        db=db,
        h=np.ones((N, H)),
        w=np.zeros((V, H)),
        b=np.full(V, 3.0),
        targets=targets,
        backend=backend,
    )
    counts = np.bincount(targets, minlength=V)
    assert_close(nll, np.full(N, math.log(V)), CLOSED_FORM, what="nll", backend=backend)
    assert_close(db, N / V - counts, CLOSED_FORM, what="db", backend=backend)
    assert_close(dw, np.repeat(db[:, None], H, 1), CLOSED_FORM, what="dw", backend=backend)
    assert not dh.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_words(backend: str) -> None:
    """nll = log(1 + exp(-difference of the logits))."""
    nll = np.empty(2)
    kernels.xent_forward(
        nll=nll,
        h=np.array([[1.0], [-2.0]]),
        w=np.array([[0.5], [2.0]]),
        targets=np.array([1, 1], np.int32),
        backend=backend,
    )
    expected = [math.log1p(math.exp(-1.5)), math.log1p(math.exp(3.0))]
    assert_close(nll, expected, CLOSED_FORM, what="nll", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", gradient_cases("xent"), ids=str)
def test_gradients_match_finite_differences(case, backend: str) -> None:
    check_vjp("xent", case, backend)
    if case.is_tiny:
        check_elementwise("xent", case, backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES["xent"], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cpu_agrees_with_reference(function: str, case, dtype: str) -> None:
    check_against_reference(function, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_agrees_with_torch(case, dtype: str) -> None:
    pytest.importorskip("torch")
    check_against_torch("xent", case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    ["threads", "threads-everything", "threads-tiles", "many-words", "many-rows", "primes"],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_bits_for_any_number_of_threads(function: str, name: str, dtype: str) -> None:
    check_threads(function, find_case("xent", name), dtype, threads=(1, 2, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES["xent"], ids=str)
def test_probabilities_sum_to_one(case, dtype: str) -> None:
    given = arguments("xent_log_prob", case, dtype)
    kernels.xent_log_prob(**given)
    total = np.exp(given["log_prob"].astype(np.float64)).sum(axis=1)
    tolerance = kernel_tolerance("xent", dtype)
    assert_close(
        total, np.ones(len(total)), tolerance, what="sum of p", case=case, terms=case.terms
    )


@pytest.mark.parametrize("case", CASES["xent"], ids=str)
def test_the_three_functions_agree(case) -> None:
    """One loss, whichever function computes it."""
    loss = arguments("xent_forward", case, "float32")
    both = arguments("xent_gradients", case, "float32")
    table = arguments("xent_log_prob", case, "float32")
    kernels.xent_forward(**loss)
    kernels.xent_gradients(**both)
    kernels.xent_log_prob(**table)
    tolerance = kernel_tolerance("xent", "float32", case.name)
    picked = -table["log_prob"][np.arange(case.dims["N"]), loss["targets"]]
    assert_close(both["nll"], loss["nll"], tolerance, what="nll", case=case, terms=case.terms)
    assert_close(picked, loss["nll"], tolerance, what="log_prob", case=case, terms=case.terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_certain_and_impossible_targets(backend: str, dtype: str) -> None:
    """Logits of +-1e4: losses 0 and 2e4 exactly, gradients finite."""
    nll, dh, dw, db = (np.full(shape, np.nan, dtype) for shape in [2, (2, 1), (3, 1), 3])
    kernels.xent_gradients(
        nll=nll,
        dh=dh,
        dw=dw,
        db=db,
        h=np.ones((2, 1), dtype),
        w=np.array([[1e4], [-1e4], [-1e4]], dtype),
        b=np.zeros(3, dtype),
        targets=np.array([0, 1], np.int32),
        backend=backend,
    )
    assert nll.tolist() == [0.0, 2e4]
    assert db.tolist() == [1.0, -1.0, 0.0]
    assert dw[:, 0].tolist() == [1.0, -1.0, 0.0]
    assert dh[:, 0].tolist() == [0.0, 2e4]


def test_weights_scale_gradients_not_losses() -> None:
    case = find_case("xent", "primes")
    plain, weighted, halves = (arguments("xent_gradients", case, "float64") for _ in range(3))
    halves["weights"] = np.full(case.dims["N"], 0.5)
    weighted["weights"] = np.ones(case.dims["N"])
    for given in (plain, weighted, halves):
        kernels.xent_gradients(**given)
    for name in ("nll", "dh", "dw", "db"):
        assert_same_bits(weighted[name], plain[name], what=name, case=case)
        factor = 1.0 if name == "nll" else 0.5
        assert_same_bits(halves[name], plain[name] * factor, what=name, case=case)


def test_without_db() -> None:
    case = find_case("xent", "primes")
    full, part = (arguments("xent_gradients", case, "float64") for _ in range(2))
    part["db"] = None
    kernels.xent_gradients(**full)
    kernels.xent_gradients(**part)
    for name in ("nll", "dh", "dw"):
        assert_same_bits(part[name], full[name], what=name, case=case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["primes", "many-rows", "one-word"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_shows(function: str, name: str, dtype: str) -> None:
    check_nan_shows(function, find_case("xent", name), dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_array_is_checked(function: str) -> None:
    check_contract(function, find_case("xent", "everything"))


@pytest.mark.parametrize("function", FUNCTIONS[:2])
@pytest.mark.parametrize("bad", [101, -1, 2**31 - 1, -(2**31)])
def test_targets_outside_the_vocabulary(function: str, bad: int) -> None:
    given = arguments(function, find_case("xent", "primes"), "float32")
    given["targets"][5] = bad
    with pytest.raises(IndexError) as caught:
        getattr(kernels, function)(**given)
    assert str(caught.value) == f"{function}: targets[5] must be in [0, V=101), got {bad}"
