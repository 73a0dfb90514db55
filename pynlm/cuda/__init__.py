"""Kernels on a GPU: the functions of `pynlm.reference`, by the .cu files of csrc/ through CuPy.

Nothing is compiled at install time: a kernel's source is compiled by NVRTC when it is first called
and kept in CuPy's cache. Arrays are CuPy's, on the current device; work goes to CuPy's current
stream. Needs the extra `cuda` and a driver.
"""

from __future__ import annotations

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
from .rnn import rnn_backward, rnn_forward
from .sgd import sgd_update, sgd_update_rows
from .xent import (
    xent_entropy,
    xent_forward,
    xent_gradients,
    xent_log_prob,
    xent_sample,
    xent_top_k,
)

__all__ = [
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
    "rnn_backward",
    "rnn_forward",
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
