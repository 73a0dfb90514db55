"""As many threads for the kernels as for torch."""

from __future__ import annotations

import os

import torch

from pynlm.kernels import threads

_seen: int | None = None
"""torch's number when pynlm's was last set."""


def _see() -> None:
    global _seen
    _seen = torch.get_num_threads()


threads.listeners.append(_see)
if threads.chosen or "PYNLM_NUM_THREADS" in os.environ:
    _see()


def follow_threads() -> None:
    """Let the kernels use as many threads as torch, whenever torch's number has changed."""
    n = torch.get_num_threads()
    if n != _seen:
        threads.set_num_threads(n)
