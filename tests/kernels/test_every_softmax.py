"""What the exact softmax and the one down a tree must both satisfy: they are distributions."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import CASES, DTYPES, Case, arguments, assert_close, assert_same_bits, find_case
from pynlm.testing.tolerances import kernel_tolerance

KERNELS = ["xent", "hsoftmax"]
BOTH = [case for kernel in KERNELS for case in CASES[kernel]]
every_case = pytest.mark.parametrize("case", BOTH, ids=[f"{case.kernel}-{case}" for case in BOTH])


@pytest.mark.parametrize("dtype", DTYPES)
@every_case
def test_probabilities_sum_to_one(case: Case, dtype: str) -> None:
    function = f"{case.kernel}_log_prob"
    given = arguments(function, case, dtype)
    getattr(kernels, function)(**given)
    total = np.exp(given["log_prob"].astype(np.float64)).sum(axis=1)
    tolerance = kernel_tolerance(case.kernel, dtype)
    assert_close(
        total, np.ones(len(total)), tolerance, what="sum of p", case=case, terms=case.terms
    )


@every_case
def test_the_functions_agree(case: Case) -> None:
    """One loss, whichever function computes it."""
    found = {}
    for what in ("forward", "gradients", "log_prob"):
        found[what] = arguments(f"{case.kernel}_{what}", case, "float32")
        getattr(kernels, f"{case.kernel}_{what}")(**found[what])
    nll, targets = found["forward"]["nll"], found["forward"]["targets"]
    tolerance = kernel_tolerance(case.kernel, "float32", case.name)
    picked = -found["log_prob"]["log_prob"][np.arange(case.dims["N"]), targets]
    for what, other in (("nll", found["gradients"]["nll"]), ("log_prob", picked)):
        assert_close(other, nll, tolerance, what=what, case=case, terms=case.terms)


@pytest.mark.parametrize(("kernel", "name"), [("xent", "primes"), ("hsoftmax", "classes-plain")])
def test_without_db(kernel: str, name: str) -> None:
    case, function = find_case(kernel, name), f"{kernel}_gradients"
    full, part = (arguments(function, case, "float64") for _ in range(2))
    part["db"] = None
    rows = [getattr(kernels, function)(**given) for given in (full, part)]
    assert rows[0] == rows[1]
    dw = "dw" if kernel == "xent" else "drows"
    for output in ("nll", "dh", dw):
        count = rows[0] if output == "drows" else None
        assert_same_bits(part[output][:count], full[output][:count], what=output, case=case)


@pytest.mark.parametrize("what", ["forward", "gradients"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [101, -1, 2**31 - 1, -(2**31)])
def test_targets_outside_the_vocabulary(kernel: str, what: str, bad: int) -> None:
    function = f"{kernel}_{what}"
    given = arguments(function, find_case(kernel, "primes"), "float32")
    given["targets"][5] = bad
    with pytest.raises(IndexError) as caught:
        getattr(kernels, function)(**given)
    assert str(caught.value) == f"{function}: targets[5] must be in [0, V=101), got {bad}"
