"""LSTM, GRU and RNN layers: forward with backward, and forward only."""

from __future__ import annotations

import pytest

from bench.cases import Case
from bench.catalogue import FAMILIES
from bench.conftest import Bench


@pytest.mark.parametrize("case", FAMILIES["recurrent"])
def bench_recurrent(bench: Bench, case: Case) -> None:
    bench(case)
