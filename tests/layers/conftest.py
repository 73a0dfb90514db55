"""Contexts on every backend."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pynlm.layers import Context


@pytest.fixture(params=["reference", "cpu"])
def train(request: pytest.FixtureRequest) -> Context:
    """A training context."""
    return Context(train=True, seed=3, step=5, backend=request.param)


@pytest.fixture
def score(train: Context) -> Context:
    """The same for evaluation."""
    return replace(train, train=False)
