"""Heads: from hidden states to the loss of the next token."""

from pynlm.heads.adaptive import Adaptive
from pynlm.heads.base import BaseHead, Head, HeadBackprop
from pynlm.heads.cutoffs import choose_cutoffs
from pynlm.heads.full import Full
from pynlm.heads.fused import FusedHead
from pynlm.heads.hierarchical import Hierarchical
from pynlm.heads.mixture import Mixture
from pynlm.heads.options import HeadOptions
from pynlm.heads.sampled import NCE, NegativeSampling, Sampled, SampledHead
from pynlm.heads.samplers import TokenSampler

__all__ = [
    "NCE",
    "Adaptive",
    "BaseHead",
    "Full",
    "FusedHead",
    "Head",
    "HeadBackprop",
    "HeadOptions",
    "Hierarchical",
    "Mixture",
    "NegativeSampling",
    "Sampled",
    "SampledHead",
    "TokenSampler",
    "choose_cutoffs",
]
