"""Heads: from hidden states to the loss of the next token."""

from pynlm.heads.base import BaseHead, Head, HeadBackprop
from pynlm.heads.full import Full
from pynlm.heads.fused import FusedHead
from pynlm.heads.hierarchical import Hierarchical
from pynlm.heads.mixture import Mixture
from pynlm.heads.options import HeadOptions

__all__ = [
    "BaseHead",
    "Full",
    "FusedHead",
    "Head",
    "HeadBackprop",
    "HeadOptions",
    "Hierarchical",
    "Mixture",
]
