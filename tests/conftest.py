"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pynlm


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    """A test that changes the number of threads does not change it for the next one."""
    before = pynlm.get_num_threads()
    yield
    if pynlm.get_num_threads() != before:
        pynlm.set_num_threads(before)
