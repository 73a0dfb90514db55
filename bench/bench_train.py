"""Whole training steps of language models: forward, backward, clipping, update."""

from __future__ import annotations

import pytest

from bench.cases import Case
from bench.catalogue import FAMILIES
from bench.conftest import Bench


@pytest.mark.parametrize("case", FAMILIES["train"])
def bench_train(bench: Bench, case: Case) -> None:
    bench(case)
