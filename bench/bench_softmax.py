"""Exact softmax cross-entropy over the vocabulary: loss with gradients, and loss only."""

from __future__ import annotations

import pytest

from bench.cases import Case
from bench.catalogue import FAMILIES
from bench.conftest import Bench


@pytest.mark.parametrize("case", FAMILIES["softmax"])
def bench_softmax(bench: Bench, case: Case) -> None:
    bench(case)
