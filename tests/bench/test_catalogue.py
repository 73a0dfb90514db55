"""Cases: names, work and sizes."""

from __future__ import annotations

import pytest

from bench.cases import (
    Adaptive,
    Case,
    Mixture,
    Recurrent,
    Script,
    Softmax,
    TinyCall,
    Train,
    zipf_law,
)
from bench.catalogue import FAMILIES, GOALS, STEP_GOALS, identifier

CASES = [case for family in FAMILIES.values() for case in family]


def test_names_are_unique_and_without_spaces() -> None:
    names = [identifier(case) for case in CASES]
    assert len(set(names)) == len(names)
    assert not any(" " in name for name in names)


def test_goals_name_groups_and_recipes() -> None:
    assert GOALS.keys() <= {case.group for case in CASES}
    assert STEP_GOALS.keys() <= {c.name for f in ("train", "dropin") for c in FAMILIES[f]}


@pytest.mark.parametrize(
    ("case", "flops"),
    [
        # one multiplication and one addition a weight, row and step; three times with gradients
        (Recurrent("lstm", 50, 32, 128, 256, train=False), 2 * 50 * 32 * 4 * 256 * (128 + 256)),
        (Recurrent("gru", 5, 2, 3, 7), 3 * 2 * 5 * 2 * 3 * 7 * (3 + 7)),
        (
            Recurrent("rnn", 5, 2, 3, 7, layers=2, train=False),
            2 * 5 * 2 * (7 * (3 + 7) + 7 * (7 + 7)),
        ),
        # rows of 8, 5 and 2 steps
        (Recurrent("lstm", 8, 3, 5, 7, ragged=True), 3 * 2 * (8 + 5 + 2) * 4 * 7 * (5 + 7)),
        (Recurrent("gru", 5, 2, 3, 7, variant="zoneout", p=0.1), 3 * 2 * 10 * 3 * 7 * (3 + 7)),
        (Softmax(7, 5, 11), 3 * 2 * 7 * 5 * 11),
        # five words and a cluster's entry; for a token of the cluster a projection and one word
        (Adaptive(7, 8, 6, (5,)), 3 * 2 * 7 * (6 * 8 + zipf_law(6)[5] * 2 * (8 + 1))),
        (Mixture(7, 5, 11, 2), 3 * 2 * 7 * 2 * 5 * (5 + 11 + 1)),
        (TinyCall("GRUCell", train=False), 2 * 100 * 3 * 16 * (16 + 16)),
        (TinyCall("LinearCrossEntropyLoss"), 3 * 2 * 100 * 16 * 100),
        (Script("GRU", T=5, B=2, H=3, V=7), 3 * 2 * 10 * (2 * 3 * 3 * (3 + 3) + 3 * 7)),
        (Train("zaremba-small"), 3 * 2 * 400 * (2 * 4 * 200 * 400 + 200 * 10_000)),
    ],
)
def test_work_counts_the_matrix_products(case: Case, flops: float) -> None:
    assert case.flops == pytest.approx(flops, rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_smoke_is_no_larger(case: Case) -> None:
    assert case.smoke().flops <= case.flops
    assert case.smoke().bytes <= case.bytes
    assert case.smoke().group == case.group


def test_lengths_fall_evenly_to_a_quarter() -> None:
    case = Recurrent("gru", 100, 16, 2, 3, ragged=True)
    assert case.lengths == [100 - 5 * b for b in range(16)]
    assert case.smoke().lengths[::15] == [3, 1]
    assert Recurrent("gru", 100, 1, 2, 3, ragged=True).lengths == [100]
    assert Recurrent("gru", 7, 3, 2, 3).lengths == [7, 7, 7]
