"""Drop-in modules for PyTorch, on pynlm's kernels: one changed import, or `replace(model)`.

`LSTM`, `GRU`, `RNN` and their cells are subclasses of torch.nn's with the same arguments, shapes,
names of parameters and numbers; keyword arguments besides (`layer_norm=True`, `zoneout=0.1`, ...)
are pynlm's variants.
"""

from __future__ import annotations

from pynlm.torch.cells import GRUCell, LSTMCell, RNNCell
from pynlm.torch.dynamo import allow_recurrent
from pynlm.torch.recurrent import GRU, LSTM, RNN
from pynlm.torch.replace import replace

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "replace"]

allow_recurrent()
