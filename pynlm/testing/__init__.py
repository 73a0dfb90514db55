"""What tests, gradient checks and benches share: cases, arguments, tolerances, comparisons.

`cases` names the shapes and options worth trying, one catalogue a kernel; `arguments` turns a case
into the keyword arguments of a kernel function; `checks` compares a backend with the oracle;
`gradcheck` compares gradients with finite differences; `with_torch` compares with torch;
`contracts` breaks every argument in turn and reads the error.
"""

from .arguments import FUNCTIONS, arguments
from .cases import CASES, DTYPES, Case, find_case
from .checks import (
    assert_close,
    assert_same_bits,
    check_against_reference,
    check_nan_shows,
    check_samples,
    check_threads,
)
from .contracts import check_contract
from .gradcheck import check_elementwise, check_vjp, gradient_cases
from .with_torch import check_against_torch

__all__ = [
    "CASES",
    "DTYPES",
    "FUNCTIONS",
    "Case",
    "arguments",
    "assert_close",
    "assert_same_bits",
    "check_against_reference",
    "check_against_torch",
    "check_contract",
    "check_elementwise",
    "check_nan_shows",
    "check_samples",
    "check_threads",
    "check_vjp",
    "find_case",
    "gradient_cases",
]
