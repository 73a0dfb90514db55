"""Any shape: hypothesis draws the dimensions, lengths and options; the compiled code must agree."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pynlm.testing import DTYPES, Case, check_against_reference, check_threads

# The same examples in every run, so that a failure can be repeated.
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@st.composite
def recurrent_cases(draw: st.DrawFn) -> Case:
    kernel = draw(st.sampled_from(["lstm", "gru", "rnn"]))
    T, B = draw(st.integers(0, 9)), draw(st.integers(0, 35))
    dims = {"T": T, "B": B, "I": draw(st.integers(1, 40)), "H": draw(st.integers(1, 70))}
    options: dict[str, Any] = {}
    if kernel == "rnn":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
        options["lengths"] = sorted(lengths, reverse=True)
    return Case(kernel, f"random {dims} {options}", dims, options)


@st.composite
def head_cases(draw: st.DrawFn) -> Case:
    dims = {"N": draw(st.integers(0, 80)), "H": draw(st.integers(1, 70))}
    dims["V"] = draw(st.integers(1, 900))
    options = {"bias": draw(st.booleans()), "weights": draw(st.booleans())}
    return Case("xent", f"random {dims} {options}", dims, options)


@st.composite
def linear_cases(draw: st.DrawFn) -> Case:
    dims = {"N": draw(st.integers(0, 80)), "I": draw(st.integers(1, 300))}
    dims["O"] = draw(st.integers(1, 150))
    options = {"bias": draw(st.booleans())}
    return Case("linear", f"random {dims} {options}", dims, options)


dtypes = st.sampled_from(DTYPES)


@quick
@given(recurrent_cases(), dtypes)
def test_recurrent(case: Case, dtype: str) -> None:
    for direction in ("forward", "backward"):
        check_against_reference(f"{case.kernel}_{direction}", case, dtype)
        check_threads(f"{case.kernel}_{direction}", case, dtype)


@quick
@given(head_cases(), dtypes)
def test_xent(case: Case, dtype: str) -> None:
    for function in ("xent_forward", "xent_gradients", "xent_log_prob"):
        check_against_reference(function, case, dtype)
        check_threads(function, case, dtype)


@quick
@given(linear_cases(), dtypes)
def test_linear(case: Case, dtype: str) -> None:
    for function in ("linear_forward", "linear_backward"):
        check_against_reference(function, case, dtype)
        check_threads(function, case, dtype)
