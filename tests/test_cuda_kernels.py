"""CUDA kernels without a GPU: their source on the CPU, threads as fibres, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pynlm import cuda
from pynlm.testing import DTYPES, FUNCTIONS, Case, check_against_reference
from pynlm.testing.emulated import StrictDevice, emulation


def dtypes_of(case: Case) -> list[str]:
    """Pairs of variants in the dtype whose tolerance is tighter, large cases in the faster one."""
    if case.is_pair:
        return ["float64"]
    return ["float32"] if "threads" in case.name else DTYPES


CASES = [
    pytest.param(function, case, dtype, id=f"{function}-{case}-{dtype}")
    for function in cuda.__all__
    for case in FUNCTIONS[function].cases
    for dtype in dtypes_of(case)
]


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with emulation(StrictDevice()):
        yield


@pytest.mark.parametrize(("function", "case", "dtype"), CASES)
def test_cuda_agrees_with_reference(function: str, case: Case, dtype: str) -> None:
    check_against_reference(function, case, dtype, "cuda")
