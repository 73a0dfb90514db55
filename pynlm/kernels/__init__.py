"""Kernels: stateless functions on NumPy or CuPy arrays, forward and backward.

Every function takes keyword arguments only, writes into arrays that the caller allocated
(overwriting them), checks its contract, and runs on a backend: "cpu" (compiled) for NumPy arrays,
"cuda" for CuPy arrays, or, if asked for, "reference" (plain NumPy). Order of the arguments:
outputs, saved, inputs, weights, scalars. Outputs must not overlap other arguments unless the
function says so.

Dimensions: T time, B batch, N rows, I input, H hidden, O output, D embedding, V vocabulary. Arrays
are C-contiguous; floats are all float32 or all float64; ids, targets and lengths are int32.

With CuPy arrays a call returns as soon as its work is queued on the current stream. All arrays are
then CuPy's; `lengths` and `Variant.rows` may be NumPy's, which are checked and copied. What ids,
rows and lengths on a GPU hold is not checked, because that would wait: nothing outside an array is
read or written for one out of range, and results that depend on it are NaN or unspecified.
"""

from .adagrad import adagrad_update, adagrad_update_rows
from .adam import adam_update, adam_update_rows
from .candidates import candidates_forward, candidates_gradients
from .clip import clip_values, sum_squares
from .dropout import dropout
from .embedding import embedding_backward, embedding_forward
from .gru import gru_backward, gru_forward
from .hsoftmax import (
    hsoftmax_forward,
    hsoftmax_gradients,
    hsoftmax_log_prob,
    hsoftmax_sample,
    hsoftmax_top_k,
)
from .linear import linear_backward, linear_forward
from .lstm import lstm_backward, lstm_forward
from .pack import Packed, pack
from .rnn import rnn_backward, rnn_forward
from .sgd import sgd_update, sgd_update_rows
from .threads import get_num_threads, set_num_threads
from .variant import Variant
from .xent import (
    xent_entropy,
    xent_forward,
    xent_gradients,
    xent_log_prob,
    xent_sample,
    xent_top_k,
)

__all__ = [
    "Packed",
    "Variant",
    "adagrad_update",
    "adagrad_update_rows",
    "adam_update",
    "adam_update_rows",
    "candidates_forward",
    "candidates_gradients",
    "clip_values",
    "dropout",
    "embedding_backward",
    "embedding_forward",
    "get_num_threads",
    "gru_backward",
    "gru_forward",
    "hsoftmax_forward",
    "hsoftmax_gradients",
    "hsoftmax_log_prob",
    "hsoftmax_sample",
    "hsoftmax_top_k",
    "linear_backward",
    "linear_forward",
    "lstm_backward",
    "lstm_forward",
    "pack",
    "rnn_backward",
    "rnn_forward",
    "set_num_threads",
    "sgd_update",
    "sgd_update_rows",
    "sum_squares",
    "xent_entropy",
    "xent_forward",
    "xent_gradients",
    "xent_log_prob",
    "xent_sample",
    "xent_top_k",
]
