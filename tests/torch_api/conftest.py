"""Small modules, for which torch's and pynlm's threads have nothing to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import pynlm
from pynlm.torch import adaptive, cross_entropy, linear, module


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of torch's and of pynlm's."""
    before = torch.get_num_threads(), pynlm.get_num_threads()
    torch.set_num_threads(1)
    pynlm.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    pynlm.set_num_threads(before[1])


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """These calls would be torch's."""
    monkeypatch.setattr(module, "SMALL_STEP", 0)
    monkeypatch.setattr(linear, "SMALL_PRODUCT", 0)
    for losses in (adaptive, cross_entropy):
        monkeypatch.setattr(losses, "FEWEST", 0)


@pytest.fixture
def two_threads(one_thread: None) -> None:
    """For what is about threads."""
    torch.set_num_threads(2)
    pynlm.set_num_threads(2)
