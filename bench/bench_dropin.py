"""Modules of `pynlm.torch` in place of torch's: tiny calls, and whole scripts."""

from __future__ import annotations

import pytest

from bench.cases import Case
from bench.catalogue import FAMILIES
from bench.conftest import Bench


@pytest.mark.parametrize("case", FAMILIES["dropin"])
def bench_dropin(bench: Bench, case: Case) -> None:
    bench(case)
