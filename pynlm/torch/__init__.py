"""Drop-in modules for PyTorch, on pynlm's kernels: one changed import, or `replace(model)`.

`LSTM`, `GRU`, `RNN` and their cells are subclasses of torch.nn's, with the same arguments, shapes,
names of parameters, first values, dropout masks and exceptions; keyword arguments besides
(`layer_norm=True`, `zoneout=0.1`, ...) are pynlm's variants. `Linear`, too, is torch's, and so are
`AdaptiveLogSoftmaxWithLoss`, `LinearCrossEntropyLoss` and the function `linear_cross_entropy`, on
the kernels of heads.

The kernels take float32 and float64 tensors on the CPU, in place. All else is left to torch's own
implementation, which every module still has: other dtypes and devices, empty tensors, torch.func,
forward-mode differentiation, tracing and scripting, and gradients of gradients. A variant, which
torch has not, raises NotImplementedError there (RuntimeError for gradients of gradients). Small
steps of plain cells, GRUs and RNNs and small products are torch's own, too, for the sake of speed.

Under autocast the modules compute in the dtype of their weights and return that. torch.compile puts
them into its graph as one operator each; for that, importing this package sets
`torch._dynamo.config.allow_rnn`. A call uses as many threads as the last of `torch.set_num_threads`
and `pynlm.set_num_threads` said; before this import, `pynlm.set_num_threads` and PYNLM_NUM_THREADS
count first. On Linux, where torch's threads are OpenMP's and the two numbers are the same, all
kernels of the process run on these very threads.
"""

from __future__ import annotations

from pynlm.torch.adaptive import AdaptiveLogSoftmaxWithLoss
from pynlm.torch.cells import GRUCell, LSTMCell, RNNCell
from pynlm.torch.cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy
from pynlm.torch.dynamo import allow_recurrent
from pynlm.torch.linear import Linear
from pynlm.torch.recurrent import GRU, LSTM, RNN
from pynlm.torch.replace import replace

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveLogSoftmaxWithLoss",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "LinearCrossEntropyLoss",
    "RNNCell",
    "linear_cross_entropy",
    "replace",
]

allow_recurrent()
