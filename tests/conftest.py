"""Fixtures for all tests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

import pynlm
from pynlm.layers import Context
from pynlm.testing.tolerances import FINITE_DIFFERENCE_STEP

# A shell starts background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C
# need Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    """A test that changes the number of threads does not change it for the next one."""
    before = pynlm.get_num_threads()
    yield
    if pynlm.get_num_threads() != before:
        pynlm.set_num_threads(before)


def _numeric_gradient(loss: Callable[[], float], x: np.ndarray) -> np.ndarray:
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


@pytest.fixture(params=["reference", "cpu"])
def train(request: pytest.FixtureRequest) -> Context:
    """A training context, on every backend."""
    return Context(train=True, seed=3, step=5, backend=request.param)


@pytest.fixture
def score(train: Context) -> Context:
    """The same for evaluation."""
    return replace(train, train=False)
