"""What all kernels must satisfy: finite differences, reference, torch, threads, NaN, contracts.

`-k lstm` runs one kernel's; its examples by hand, edges and messages stand in its own file.
"""

from __future__ import annotations

import pytest

from pynlm.testing import (
    CASES,
    DTYPES,
    FUNCTIONS,
    Case,
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
from pynlm.testing.gradcheck import MAPS

OBJECTIVES = ("softmax", "logistic")

# Cases of each kernel with work for several threads, or with a form of its own of sharing it.
THREADS = {
    "lstm": ["threads", "threads-ragged", "primes", "ragged-many-rows", "everything-threads"],
    "gru": ["threads", "threads-ragged", "primes", "ragged-many-rows", "everything-threads"],
    "rnn": ["threads-tanh", "threads-ragged-tanh", "threads-relu", "everything-threads-tanh"],
    "linear": [
        *("threads", "beyond-tiles", "deep"),
        *("threads-chunks-of-inputs", "threads-chunks-of-outputs", "threads-spans"),
    ],
    "xent": [
        *("threads", "threads-everything", "threads-tiles", "many-words", "many-rows", "primes")
    ],
    "candidates": [
        f"{name}-{objective}"
        for name in ("threads", "threads-blocks", "many-rows", "one-sample")
        for objective in OBJECTIVES
    ],
    "hsoftmax": [case.name for case in CASES["hsoftmax"] if "threads" in case.name],
    "embedding": ["threads", "primes", "same-id"],
    "dropout": ["threads", "primes", "locked"],
    "clip": ["size-100003", "size-4097"],
    "sgd": [f"{rows}threads-{rule}" for rows in ("", "rows-") for rule in ("plain", "nesterov")],
    "adam": [f"{rows}threads-{rule}" for rows in ("", "rows-") for rule in ("plain", "decoupled")],
    "adagrad": [f"{rows}threads-{rule}" for rows in ("", "rows-") for rule in ("plain", "decay")],
}

# Cases in which a NaN is put into each input; clip and dropout have their own tests.
NAN = {
    "lstm": ["primes", "one-row"],
    "gru": ["primes", "one-row"],
    "rnn": ["primes-tanh", "primes-relu"],
    "linear": ["primes", "beyond-tiles"],
    "xent": ["primes", "many-rows", "one-word"],
    "candidates": [
        f"{name}-{objective}"
        for name in ("primes", "hits-removed", "many-rows", "one-word")
        for objective in OBJECTIVES
    ],
    "hsoftmax": ["primes", "classes-plain", "ternary-plain", "flat-many-rows"],
    "embedding": ["primes"],
}

# Cases that have as many arguments as possible, each of which is broken in turn.
CONTRACTS = {
    "lstm": ["primes", "ragged"],
    "gru": ["primes", "ragged"],
    "rnn": ["primes-tanh", "ragged-relu"],
    "linear": ["primes"],
    "xent": ["everything"],
    "candidates": ["primes"],
    "hsoftmax": ["classes-plain"],
    "embedding": ["primes"],
    "dropout": ["primes"],
    "clip": ["size-13"],
    "sgd": ["primes-momentum", "rows-momentum"],
    "adam": ["primes-plain", "rows-plain"],
    "adagrad": ["primes-plain", "rows-plain"],
}

# torch's packed sequences refuse rows of length 0, and its layers empty inputs.
TORCH = [
    case
    for kernel in ("lstm", "gru", "rnn", "linear", "xent", "embedding")
    for case in CASES[kernel]
    if case.is_plain and all(case.dims.values()) and min(case.options.get("lengths", [1])) > 0
]
REFERENCE_TORCH = {
    "lstm": ["primes", "ragged-below-full"],
    "gru": ["primes", "ragged-below-full"],
    "rnn": ["primes-tanh", "primes-relu", "ragged-below-full-tanh"],
}


def marks_of(case: Case) -> list[pytest.MarkDecorator]:
    """Two variants at once are run at one level, and not under the sanitisers, in CI."""
    return [pytest.mark.pair] if case.is_pair else []


def functions_on(chosen: dict[str, list[Case]]) -> pytest.MarkDecorator:
    """Each function of each kernel, on those of the cases that are its own."""
    runs = [
        pytest.param(function, case, id=f"{function}-{case}", marks=marks_of(case))
        for function, known in FUNCTIONS.items()
        for case in chosen.get(known.kernel, [])
        if case in known.cases
    ]
    return pytest.mark.parametrize(("function", "case"), runs)


def kernels_on(cases: list[Case]) -> pytest.MarkDecorator:
    runs = [pytest.param(case, id=f"{case.kernel}-{case}", marks=marks_of(case)) for case in cases]
    return pytest.mark.parametrize("case", runs)


def named(names: dict[str, list[str]]) -> dict[str, list[Case]]:
    return {kernel: [find_case(kernel, name) for name in names[kernel]] for kernel in names}


every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.oracle), "cpu"])
@kernels_on([case for kernel in MAPS for case in gradient_cases(kernel)])
def test_gradients_match_finite_differences(case: Case, backend: str) -> None:
    check_vjp(case.kernel, case, backend)
    if case.is_tiny:
        check_elementwise(case.kernel, case, backend)


@every_dtype
@functions_on(CASES)
def test_cpu_agrees_with_reference(function: str, case: Case, dtype: str) -> None:
    check_against_reference(function, case, dtype)


@every_dtype
@kernels_on(TORCH)
def test_agrees_with_torch(case: Case, dtype: str) -> None:
    pytest.importorskip("torch")
    check_against_torch(case.kernel, case, dtype)


@pytest.mark.oracle
@kernels_on([case for cases in named(REFERENCE_TORCH).values() for case in cases])
def test_reference_agrees_with_torch(case: Case) -> None:
    pytest.importorskip("torch")
    check_against_torch(case.kernel, case, "float64", "reference")


@every_dtype
@functions_on(named(THREADS))
def test_same_bits_for_any_number_of_threads(function: str, case: Case, dtype: str) -> None:
    check_threads(function, case, dtype, threads=(1, 2, 3))


@every_dtype
@functions_on(named(NAN))
def test_nan_shows(function: str, case: Case, dtype: str) -> None:
    check_nan_shows(function, case, dtype)


@functions_on(named(CONTRACTS))
def test_every_array_is_checked(function: str, case: Case) -> None:
    check_contract(function, case)


def test_every_kernel_is_checked() -> None:
    """A new kernel has a line in each table; what has no gradient here is an optimiser's."""
    assert set(THREADS) == set(CONTRACTS) == set(CASES)
    updates = {"clip", "sgd", "adam", "adagrad"}
    assert set(MAPS) == set(CASES) - updates and set(NAN) == set(MAPS) - {"dropout"}
