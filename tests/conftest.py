"""Fixtures for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

import pynlm

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
