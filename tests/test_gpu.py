"""The catalogue of cases on a real card (`make gpu`)."""

from __future__ import annotations

import pytest

from pynlm import cuda
from pynlm.layers.pool import Pool
from pynlm.testing import DTYPES, FUNCTIONS, Case, check_against_reference
from pynlm.testing.arguments import arguments
from pynlm.testing.checks import assert_close, assert_same_bits, run, run_oracle, specified
from pynlm.testing.emulated import has_card
from pynlm.testing.tolerances import narrow_tolerance

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_card(), reason="no GPU")]

CASES = [
    pytest.param(function, case, id=f"{function}-{case}")
    for function in cuda.__all__
    for case in FUNCTIONS[function].cases
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("function", "case"), CASES)
def test_card_agrees_with_reference(function: str, case: Case, dtype: str) -> None:
    check_against_reference(function, case, dtype, "cuda")


@pytest.mark.parametrize(("function", "case"), CASES)
def test_same_bits_from_run_to_run(function: str, case: Case) -> None:
    given = arguments(function, case, "float32")
    first, second = (run(function, given, "cuda") for _ in range(2))
    for name, value in first.items():
        if value is not None:
            assert_same_bits(second[name], value, what=f"{function} {name}", case=case)


NARROW = [
    pytest.param(function, case, id=f"{function}-{case}")
    for function in ("lstm_forward", "lstm_backward", "gru_forward", "gru_backward")
    for case in FUNCTIONS[function].cases
    if case.name in ("primes", "one-unit", "threads", "threads-ragged", "many-rows")
]


@pytest.mark.parametrize("math", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize(("function", "case"), NARROW)
def test_tensor_cores_agree_with_reference(function: str, case: Case, math: str) -> None:
    """Of recurrent kernels and cuBLAS; the emulation only says what fragments should hold."""
    given = arguments(function, case, "float32")
    with Pool(cuda.device.current()).computing_in(math):
        got, again = (run(function, given, "cuda") for _ in range(2))
    for name, want in run_oracle(function, given).items():
        if want is None:
            continue
        what = f"{function} {name} {math}"
        assert_same_bits(again[name], got[name], what=what, case=case)
        assert_close(
            specified(function, name, got[name], got, case),
            specified(function, name, want, got, case),
            narrow_tolerance(math), what=what, case=case, backend="cuda", terms=case.terms,
        )  # fmt: skip
