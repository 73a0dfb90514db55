"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["cells", "linear", "recurrent", "replace", "rows"])
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"pynlm.torch.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
