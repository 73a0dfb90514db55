"""Sum of squares and clipping by value: closed forms, torch, edges, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import DTYPES, arguments, assert_close, find_case
from pynlm.testing.tolerances import CLOSED_FORM, torch_tolerance

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    x = np.array([[3.0, -4.0], [0.5, 12.0]])
    assert kernels.sum_squares(x=x, backend=backend) == 169.25
    kernels.clip_values(x=x, limit=3.5, backend=backend)
    assert x.tolist() == [[3.0, -3.5], [0.5, 3.5]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sum_keeps_small_terms_beside_large_ones(backend: str, dtype: str) -> None:
    """In float32 the small squares would vanish; squares beyond float32's range are fine too."""
    x = np.full(100_001, 1e-3, dtype)
    x[0] = 1e3
    expected = math.fsum(float(v) ** 2 for v in x)
    assert_close(kernels.sum_squares(x=x, backend=backend), expected, CLOSED_FORM, what="sum")
    huge = np.full(3, 1e25, dtype)
    expected = math.fsum(float(v) ** 2 for v in huge)
    assert_close(kernels.sum_squares(x=huge, backend=backend), expected, CLOSED_FORM, what="sum")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [7, 5000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_shows(backend: str, size: int, dtype: str) -> None:
    """A NaN or an infinity anywhere reaches the norm, and clipping does not hide a NaN."""
    for at in (0, size // 2, size - 1):
        x = np.ones(size, dtype)
        x[at] = np.nan
        assert math.isnan(kernels.sum_squares(x=x, backend=backend))
        kernels.clip_values(x=x, limit=0.5, backend=backend)
        assert np.isnan(x[at]) and np.isnan(x).sum() == 1
        x[at] = -np.inf
        assert kernels.sum_squares(x=x, backend=backend) == math.inf
        kernels.clip_values(x=x, limit=0.5, backend=backend)
        assert x[at] == -0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x = arguments("clip_values", find_case("clip", "size-4097"), dtype)["x"]
    parameter = torch.zeros(x.size, requires_grad=True)
    parameter.grad = torch.tensor(x, dtype=torch.float32)
    norm = float(torch.nn.utils.clip_grad_norm_([parameter], 1e9))
    tolerance = torch_tolerance("float32")
    assert_close(math.sqrt(kernels.sum_squares(x=x)), norm, tolerance, what="norm", terms=x.size)
    torch.nn.utils.clip_grad_value_([parameter], 0.25)
    kernels.clip_values(x=x, limit=0.25)
    assert_close(x, parameter.grad.numpy(), tolerance, what="clipped")


def test_error_messages() -> None:
    with pytest.raises(ValueError, match=r"^clip_values: limit must be in \(0, inf\), got 0\.0$"):
        kernels.clip_values(x=np.ones(3), limit=0)
    with pytest.raises(TypeError, match=r"^sum_squares: x must be .*, got int64 \[3\]$"):
        kernels.sum_squares(x=np.arange(3))
