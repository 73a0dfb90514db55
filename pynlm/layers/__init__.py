"""Layers: own parameters, return their own backprop, name no backend.

`y, backprop = layer(x, ctx)`; recurrent layers `(y, state), backprop = layer(x, state, ctx,
lengths=None)`. `dx = backprop(dy)` adds into the gradients and may be called once.
"""

from pynlm.layers.adaptive_embedding import AdaptiveEmbedding
from pynlm.layers.bidirectional import Bidirectional, Reversed
from pynlm.layers.context import SCORING, Context, Site
from pynlm.layers.dropout import Dropout
from pynlm.layers.embedding import Embedding
from pynlm.layers.gru import GRU
from pynlm.layers.linear import Linear
from pynlm.layers.lstm import LSTM
from pynlm.layers.parameters import Block, Claim, Group, Parameter, Parameters, Spec
from pynlm.layers.pool import Pool
from pynlm.layers.recurrent import Recurrent, State
from pynlm.layers.rnn import RNN
from pynlm.layers.variant import RecurrentOptions

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SCORING",
    "AdaptiveEmbedding",
    "Bidirectional",
    "Block",
    "Claim",
    "Context",
    "Dropout",
    "Embedding",
    "Group",
    "Linear",
    "Parameter",
    "Parameters",
    "Pool",
    "Recurrent",
    "RecurrentOptions",
    "Reversed",
    "Site",
    "Spec",
    "State",
]
