"""Linear: hand example, optional outputs, messages."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import arguments, assert_same_bits, find_case

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    x, w = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
    y, dy = np.empty((2, 3)), np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    kernels.linear_forward(y=y, x=x, w=w, b=np.array([10.0, 20.0, 30.0]), backend=backend)
    assert y.tolist() == [[11.0, 22.0, 29.0], [13.0, 24.0, 29.0]]
    dx, dw, db = np.empty((2, 2)), np.empty((3, 2)), np.empty(3)
    kernels.linear_backward(dx=dx, dw=dw, db=db, dy=dy, x=x, w=w, backend=backend)
    assert dx.tolist() == [[3.0, -2.0], [0.0, 1.0]]
    assert dw.tolist() == [[1.0, 2.0], [3.0, 4.0], [2.0, 4.0]]
    assert db.tolist() == [1.0, 1.0, 2.0]


def test_optional_outputs_of_backward() -> None:
    case = find_case("linear", "primes")
    full, part = (arguments("linear_backward", case, "float64") for _ in range(2))
    part |= {"dx": None, "db": None}
    kernels.linear_backward(**full)
    kernels.linear_backward(**part)
    assert_same_bits(part["dw"], full["dw"], what="dw", case=case)


def test_error_message() -> None:
    given = arguments("linear_forward", find_case("linear", "primes"), "float32")
    with pytest.raises(ValueError, match=r"w must be float32 \[O=7, I=7\], got float32 \[7, 11\]$"):
        kernels.linear_forward(**(given | {"w": np.zeros((7, 11), np.float32)}))
