"""Swap torch's modules in a model for pynlm's."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch

from pynlm.torch.recurrent import GRU, LSTM, RNN


def _as(kind: type[torch.nn.Module]) -> Callable[[torch.nn.Module], torch.nn.Module]:
    """A converter that makes the module itself one of another class, and changes nothing else."""

    def convert(module: torch.nn.Module) -> torch.nn.Module:
        module.__class__ = kind
        return module

    return convert


CONVERTERS: dict[type[torch.nn.Module], Callable[[torch.nn.Module], torch.nn.Module]] = {
    torch.nn.LSTM: _as(LSTM),
    torch.nn.GRU: _as(GRU),
    torch.nn.RNN: _as(RNN),
}
"""What makes pynlm's module of torch's, by torch's class.

A converter returns the module that takes the place of its argument (which may be the same object):
with its very parameters, hooks and mode of training.
"""
