"""Variants and ragged batches: pynlm and torch do the same work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench import ours
from bench.cases import GATES, VARIANTS, Recurrent, cells_of
from bench.measure import check_agreement, compare, contenders
from bench.peers import available
from bench.timing import Budget

pytest.importorskip("torch")

import torch

from bench.peers import torch_variants

CASES = [
    Recurrent(cell, 9, 5, 6, 7, variant=variant, p=p)
    for variant, p in VARIANTS.items()
    for cell in cells_of(variant)
]
CHANCE = [case for case in CASES if case.p]


def name(case: Recurrent) -> str:
    return case.group


@pytest.mark.parametrize("case", CASES, ids=name)
def test_variants_agree_without_chance(case: Recurrent) -> None:
    works = contenders(case, available())
    assert list(works)[:3] == [ours.NAME, ours.PLAIN, "torch"]
    assert ("torch (functional_call)" in works) == (case.variant == "weight drop")
    check_agreement(case, works)
    # What is timed runs before and after the comparison alike.
    for work in works.values():
        work.run()
    check_agreement(case, works)


@pytest.mark.parametrize("cell", GATES)
def test_ragged_batches_agree(cell: str) -> None:
    case = Recurrent(cell, 12, 5, 6, 7, ragged=True)
    works = contenders(case, available())
    check_agreement(case, works)
    found = works[ours.NAME].results()
    for b, length in enumerate(case.lengths):
        assert np.all(found["y"][:length, b])
        assert not found["y"][length:, b].any()
        assert not found["dx"][length:, b].any()


@pytest.mark.parametrize("case", CHANCE, ids=name)
def test_each_step_draws_masks_of_its_own(case: Recurrent) -> None:
    work = ours.make(case, ours.make_inputs(case))[ours.NAME]
    first, second = work.run(), work.run()
    assert isinstance(first, dict) and isinstance(second, dict)
    certain = work.results()
    for found in (first, second):
        assert found.keys() == certain.keys()
        assert (found["y"] != certain["y"]).any()
    assert (first["y"] != second["y"]).any()


@pytest.mark.parametrize("case", CHANCE, ids=name)
def test_torch_draws_masks(case: Recurrent) -> None:
    inputs = ours.make_inputs(case)
    for work in torch_variants.variants(case, inputs).values():
        y, certain = work.run(), work.results()["y"]
        assert isinstance(y, torch.Tensor)
        assert (y.detach().numpy() != certain).any()


@pytest.mark.parametrize("cell", GATES)
def test_zoneout_keeps_the_same_part_of_the_units(cell: str) -> None:
    case = Recurrent(cell, 40, 8, 3, 64, variant="zoneout", p=0.1)
    inputs = ours.make_inputs(case)
    own = ours.make(case, inputs)[ours.NAME].run()
    theirs = torch_variants.variants(case, inputs)["torch"].run()
    assert isinstance(own, dict) and isinstance(theirs, torch.Tensor)
    for y in (own["y"], theirs.detach().numpy()):
        kept = np.mean(y[1:] == y[:-1])
        # some 20,000 draws: the standard deviation is 0.002
        assert kept == pytest.approx(0.1, abs=0.01)


def test_result_of_a_variant() -> None:
    case = replace(CASES[0], T=3)
    result = compare(case, 1, available(), Budget(seconds=0.01, least=3))
    assert result.peer == "torch"
    assert result.over_plain is not None and result.over_plain > 0.0
    assert type(result).from_dict(result.to_dict()) == result
