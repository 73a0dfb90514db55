"""The checks themselves: each must fail on the fault that it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pynlm import kernels, reference
from pynlm.kernels import _backend
from pynlm.testing import (
    CASES,
    FUNCTIONS,
    assert_close,
    assert_same_bits,
    check_against_reference,
    check_contract,
    check_elementwise,
    check_nan_shows,
    check_samples,
    check_threads,
    check_vjp,
    find_case,
)
from pynlm.testing.tolerances import Tolerance

LOOSE = Tolerance(relative=0.125)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., None]], None]:
    """Let a function of the cpu backend do its work, then spoil the result."""

    def spoil(function: str, after: Callable[..., None]) -> None:
        def faulty(**given: Any) -> Any:
            value = getattr(reference, function)(**given)
            after(given)
            return value

        monkeypatch.setitem(_backend._found, (function, "cpu"), faulty)

    return spoil


def test_assert_close_reports_everything() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_close(
            [[1.0, 2.0], [3.5, 4.0]],
            [[1.0, 2.0], [3.0, 4.0]],
            LOOSE,
            what="dw",
            kernel="lstm",
            case="primes",
            backend="reference",
        )
    assert str(caught.value) == (
        "lstm: dw (case primes, backend reference, ISA -): 1 of 4 elements differ; "
        "worst at [1, 0]: got 3.5, expected 3.0, difference 0.5, allowed 0.375"
    )


@pytest.mark.parametrize(
    ("got", "want"),
    [
        ([np.nan], [1.0]),
        ([1.0], [np.nan]),
        ([np.inf], [1.0]),
        ([1.0], [np.inf]),
        ([np.inf], [-np.inf]),
        ([1.0, 2.0], [1.0]),
        ([1.2], [1.0]),
        ([1e-30], [0.0]),
    ],
)
def test_assert_close_refuses(got: list[float], want: list[float]) -> None:
    with pytest.raises(AssertionError, match="x"):
        assert_close(got, want, LOOSE, what="x", backend="reference")


def test_assert_close_accepts() -> None:
    same = [np.nan, np.inf, -np.inf, 1.1, 0.0]
    assert_close(same, [np.nan, np.inf, -np.inf, 1.0, 0.0], LOOSE, what="x")
    assert_close([], [], LOOSE, what="x")


def test_same_bits_means_same_dtype() -> None:
    with pytest.raises(AssertionError, match="dtype float64, expected float32"):
        assert_same_bits(np.ones(1), np.ones(1, np.float32), what="x")


@pytest.mark.parametrize(
    ("function", "output"),
    [("lstm_backward", "dw_hh"), ("gru_backward", "db_hn"), ("xent_gradients", "dw")],
)
def test_wrong_gradient_is_found(broken: Any, function: str, output: str) -> None:
    """One part in ten thousand off, in the largest element."""

    def after(given: dict[str, Any]) -> None:
        flat = given[output].reshape(-1)
        flat[np.argmax(np.abs(flat))] *= 1.0001

    broken(function, after)
    kernel = FUNCTIONS[function].kernel
    case = find_case(kernel, "tiny")
    for check in (check_vjp, check_elementwise):
        with pytest.raises(AssertionError, match=f"backward .expected. for {output[1:]}"):
            check(kernel, case, "cpu")
    with pytest.raises(AssertionError, match=f"{function} {output} float32"):
        check_against_reference(function, case, "float32")


def test_write_beyond_a_length_is_found(broken: Any) -> None:
    broken("lstm_forward", lambda given: given["y"].__setitem__((-1, -1), 1.0))
    with pytest.raises(AssertionError, match=r"lstm_forward y .* worst at \[6, 5, "):
        check_against_reference("lstm_forward", find_case("lstm", "ragged"), "float32")


def test_forgotten_element_is_found(broken: Any) -> None:
    broken("linear_forward", lambda given: given["y"].__setitem__((0, 0), np.nan))
    with pytest.raises(AssertionError, match="got nan"):
        check_against_reference("linear_forward", find_case("linear", "primes"), "float64")


def test_hidden_nan_is_found(broken: Any) -> None:
    broken("xent_forward", lambda given: np.nan_to_num(given["nll"], copy=False))
    with pytest.raises(AssertionError, match=r"isnan\(nll\)"):
        check_nan_shows("xent_forward", find_case("xent", "primes"), "float32")


def test_bits_that_depend_on_threads_are_found(broken: Any) -> None:
    def after(given: dict[str, Any]) -> None:
        given["y"] += np.finfo(np.float32).eps * kernels.get_num_threads()

    broken("linear_forward", after)
    with pytest.raises(AssertionError, match="2 threads against 1"):
        check_threads("linear_forward", find_case("linear", "primes"), "float32")


def test_missing_check_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "linear_forward", lambda **given: None)
    with pytest.raises(AssertionError, match="linear_forward with y a list: None"):
        check_contract("linear_forward", find_case("linear", "primes"))


def test_samples_of_another_distribution_are_found() -> None:
    p = np.array([0.5, 0.25, 0.2, 0.05, 0.0])
    drawn = np.random.default_rng(0).choice(5, 20_000, p=p)
    check_samples(drawn, p)
    for wrong in (p[[1, 0, 2, 3, 4]], [0.52, 0.23, 0.2, 0.05, 0.0]):
        with pytest.raises(AssertionError, match="chi-square"):
            check_samples(drawn, wrong)
    with pytest.raises(AssertionError, match="no probability was drawn"):
        check_samples([*drawn, 4], p)
    with pytest.raises(AssertionError, match="samples: token 3 drawn, V=3"):
        check_samples(drawn, p[:3])


@pytest.mark.parametrize("kernel", CASES)
def test_case_names_are_unique(kernel: str) -> None:
    names = [case.name for case in CASES[kernel]]
    assert len(set(names)) == len(names)
    with pytest.raises(KeyError, match="has no case 'no such'"):
        find_case(kernel, "no such")


@pytest.mark.parametrize("kernel", ["lstm", "gru", "rnn", "linear", "xent", "embedding", "dropout"])
def test_cases_cover_the_edges(kernel: str) -> None:
    """Distinct primes, one and none of everything that may be one or none."""
    dims = [case.dims for case in CASES[kernel]]
    assert any(len(set(d.values())) == len(d) and all(_prime(n) for n in d.values()) for d in dims)
    for symbol in dims[0]:
        assert any(d[symbol] == 1 for d in dims), symbol
        if symbol in "TBN":
            assert any(d[symbol] == 0 for d in dims), symbol


def _prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, n))


def test_cases_by_units_are_what_they_are_named_for() -> None:
    """Two members share the units: few rows for each to have some, work enough for a barrier."""
    for kernel, gates in (("lstm", 4), ("gru", 3), ("rnn", 1)):
        cases = [case for case in CASES[kernel] if "by-units" in case.name]
        assert len(cases) > 10
        for case in cases:
            T, B, H = (case.dims[name] for name in "TBH")
            assert B < 2 * 8 and B > 4 and T > 4  # csrc/recurrent/sequence-inl.h: split_of, dots
            blocks = 3 if case.options.get("coupled") else gates
            step = 2 * B * case.options.get("projection", H) * blocks * H
            assert step >= 2 * 100e3, case
