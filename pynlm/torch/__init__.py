"""Drop-in modules for PyTorch, on pynlm's kernels: one changed import, or `replace(model)`.

`LSTM`, `GRU`, `RNN` and their cells are subclasses of torch.nn's with the same arguments, shapes,
names of parameters and numbers; keyword arguments besides (`layer_norm=True`, `zoneout=0.1`, ...)
are pynlm's variants. So are `AdaptiveLogSoftmaxWithLoss` and `LinearCrossEntropyLoss`, without any.
"""

from __future__ import annotations

from pynlm.torch.adaptive import AdaptiveLogSoftmaxWithLoss
from pynlm.torch.cells import GRUCell, LSTMCell, RNNCell
from pynlm.torch.cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy
from pynlm.torch.recurrent import GRU, LSTM, RNN
from pynlm.torch.replace import replace

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveLogSoftmaxWithLoss",
    "GRUCell",
    "LSTMCell",
    "LinearCrossEntropyLoss",
    "RNNCell",
    "linear_cross_entropy",
    "replace",
]
