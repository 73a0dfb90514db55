"""Embedding: hand example, largest id, order of the sums, messages."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import arguments, assert_same_bits, find_case

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    ids, w = np.array([2, 0, 2, 3], np.int32), np.array([[0.0, 1], [2, 3], [4, 5], [6, 7]])
    y = np.empty((4, 2))
    kernels.embedding_forward(y=y, ids=ids, w=w, backend=backend)
    assert y.tolist() == [[4, 5], [0, 1], [4, 5], [6, 7]]
    rows, drows = np.full(4, -7, np.int32), np.empty((4, 2))
    dy = np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]])
    n = kernels.embedding_backward(rows=rows, drows=drows, ids=ids, dy=dy, backend=backend)
    assert (n, rows[:n].tolist()) == (3, [0, 2, 3])
    assert drows[:n].tolist() == [[3, 4], [6, 8], [7, 8]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_largest_id(backend: str) -> None:
    """The gradient does not know V: any id of 31 bits is a row."""
    ids, dy = np.array([2**31 - 1, 0, 2**31 - 1], np.int32), np.array([[1.0], [2.0], [4.0]])
    rows, drows = np.empty(3, np.int32), np.empty((3, 1))
    n = kernels.embedding_backward(rows=rows, drows=drows, ids=ids, dy=dy, backend=backend)
    assert (rows[:n].tolist(), drows[:n, 0].tolist()) == ([0, 2**31 - 1], [2.0, 5.0])


@pytest.mark.parametrize("bad", [29, -1, 2**31 - 1, -(2**31)])
def test_ids_outside_the_vocabulary(bad: int) -> None:
    given = arguments("embedding_forward", find_case("embedding", "primes"), "float32")
    given["ids"][7] = bad
    with pytest.raises(IndexError) as caught:
        kernels.embedding_forward(**given)
    assert str(caught.value) == f"embedding_forward: ids[7] must be in [0, V=29), got {bad}"


def test_negative_id_in_the_gradient() -> None:
    given = arguments("embedding_backward", find_case("embedding", "primes"), "float32")
    given["ids"][7] = -3
    with pytest.raises(
        IndexError, match=r"^embedding_backward: ids\[7\] must be in \[0, .*got -3$"
    ):
        kernels.embedding_backward(**given)


@pytest.mark.parametrize("name", ["same-id", "threads"])
def test_sums_in_the_order_of_the_positions(name: str) -> None:
    """Both backends add one row after the other, so even float32 agrees to the last bit."""
    fast, plain = (
        arguments("embedding_backward", find_case("embedding", name), "float32") for _ in range(2)
    )
    n = kernels.embedding_backward(**fast)
    assert n == kernels.embedding_backward(**plain, backend="reference")
    assert_same_bits(fast["drows"][:n], plain["drows"][:n], what="drows")
