"""Drop-in modules for PyTorch, on pynlm's kernels: one changed import, or `replace(model)`."""

from __future__ import annotations

from pynlm.torch.adaptive import AdaptiveLogSoftmaxWithLoss
from pynlm.torch.cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy

__all__ = ["AdaptiveLogSoftmaxWithLoss", "LinearCrossEntropyLoss", "linear_cross_entropy"]
