"""The examples in the docstrings run, and every kernel function is documented in full."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

from pynlm import kernels
from pynlm.testing import FUNCTIONS

MODULES = [
    *(f"pynlm.kernels.{name}" for name in sorted({f.kernel for f in FUNCTIONS.values()})),
    "pynlm.kernels.threads",
    "pynlm.arrays",
    "pynlm.reference.philox",
]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("function", FUNCTIONS)
def test_documentation_is_complete(function: str) -> None:
    """Every section is there, and every parameter is named in it."""
    document = inspect.getdoc(getattr(kernels, function))
    for section in ("Parameters", "Raises", "Notes", "Examples"):
        assert f"\n{section}\n{'-' * len(section)}\n" in document, section
    assert "Source: " in document
    parameters = document.split("\nParameters\n")[1].split("\nRaises\n")[0]
    for name in inspect.signature(getattr(kernels, function)).parameters:
        assert name in parameters.replace(",", " ").split(), name
