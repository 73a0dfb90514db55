"""Kernels on a GPU: the functions of `pynlm.reference`, by the .cu files of csrc/ through CuPy.

Nothing is compiled at install time: a kernel's source is compiled by NVRTC when it is first called
and kept in CuPy's cache. Arrays are CuPy's, on the current device; work goes to CuPy's current
stream. Needs the extra `cuda` and a driver.
"""

from __future__ import annotations

from .clip import clip_values, sum_squares
from .dropout import dropout
from .lstm import lstm_backward, lstm_forward

__all__ = [
    "clip_values",
    "dropout",
    "lstm_backward",
    "lstm_forward",
    "sum_squares",
]
