"""Torch's threads for the kernels, as many as torch uses."""

from __future__ import annotations

import os

import torch

from pynlm import _kernels
from pynlm.kernels import threads

_seen: int | None = None
"""torch's number when pynlm's was last set."""


def _see() -> None:
    global _seen
    _seen = torch.get_num_threads()


# Torch's threads spin for milliseconds after each of its operations, on the CPUs that others would
# need. So the kernels run on them, where they are OpenMP's and Linux's, else on their own.
_kernels.borrow_threads(torch._C.__file__)
threads.listeners.append(_see)
if threads.chosen or "PYNLM_NUM_THREADS" in os.environ:
    _see()


def follow_threads() -> None:
    """Let the kernels use as many threads as torch, whenever torch's number has changed."""
    n = torch.get_num_threads()
    if n != _seen:
        threads.set_num_threads(n)
