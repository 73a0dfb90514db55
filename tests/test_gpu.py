"""The catalogue of cases on a real card (`make gpu`)."""

from __future__ import annotations

import pytest

from pynlm import cuda
from pynlm.testing import DTYPES, FUNCTIONS, Case, check_against_reference
from pynlm.testing.arguments import arguments
from pynlm.testing.checks import assert_same_bits, run
from pynlm.testing.emulated import has_card

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
