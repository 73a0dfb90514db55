"""JAX as a peer: `lax.scan` does what pynlm does."""

from __future__ import annotations

import pytest

from bench import ours
from bench.cases import GATES, Recurrent, Softmax
from bench.measure import check_agreement, contenders
from bench.peers import JAX, available, with_jax
from bench.timing import settle, threads


@pytest.mark.parametrize("train", [True, False], ids=["training", "forward"])
@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", GATES)
def test_agrees(cell: str, layers: int, ragged: bool, train: bool) -> None:
    case = Recurrent(cell, 9, 5, 6, 7, layers=layers, train=train, ragged=ragged)
    works = contenders(case, available())
    assert JAX in works
    check_agreement(case, works)
    # What is timed leaves results as they are.
    for work in works.values():
        work.run()
    check_agreement(case, works)


def test_each_number_of_threads_has_a_client() -> None:
    case = Recurrent("gru", 9, 5, 6, 7)
    peers = available()
    for count in (1, 2, 1):
        with threads(count, peers):
            works = contenders(case, peers)
            assert with_jax._made_for == count
            check_agreement(case, works)


def test_its_threads_rest_between_turns() -> None:
    case = Recurrent("lstm", 20, 16, 64, 64)
    with threads(2, [with_jax]):  # type: ignore[list-item]
        work = with_jax.make(case, ours.make_inputs(case))[JAX]
        for _ in range(3):
            work.run()
            assert settle()


def test_nothing_that_it_is_not_made_for() -> None:
    for case in (Recurrent("gru", 9, 5, 6, 7, variant="zoneout", p=0.1), Softmax(2, 3, 5)):
        assert not with_jax.make(case, ours.make_inputs(case))
