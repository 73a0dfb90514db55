"""Contexts on every backend, and finite differences for whole layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pynlm.layers import Context
from pynlm.testing.tolerances import FINITE_DIFFERENCE_STEP

Loss = Callable[[], float]


@pytest.fixture(params=["reference", "cpu"])
def train(request: pytest.FixtureRequest) -> Context:
    """A training context."""
    return Context(train=True, seed=3, step=5, backend=request.param)


@pytest.fixture
def score(train: Context) -> Context:
    """The same for evaluation."""
    return replace(train, train=False)


def _numeric_gradient(loss: Loss, x: np.ndarray) -> np.ndarray:
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        old = x[i]
        x[i] = old + FINITE_DIFFERENCE_STEP
        up = loss()
        x[i] = old - FINITE_DIFFERENCE_STEP
        down = loss()
        x[i] = old
        gradient[i] = (up - down) / (2 * FINITE_DIFFERENCE_STEP)
    return gradient


@pytest.fixture
def numeric_gradient() -> Callable[..., np.ndarray]:
    """Central differences of a scalar function of the elements of `x`, changed in place."""
    return _numeric_gradient
