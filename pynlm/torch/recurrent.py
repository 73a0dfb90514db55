"""torch.nn.LSTM, GRU and RNN on pynlm's kernels."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pynlm.layers import RecurrentOptions
from pynlm.torch.autograd import Call, RecurrentStack, dense
from pynlm.torch.module import Variants, as_torch, follow_threads, new_parameters, reset_extras
from pynlm.torch.operators import context, recurrent
from pynlm.torch.stack import Stack, extra_weights, stack_of
from pynlm.torch.tensors import NUMPY, readable, watched

_PLAIN = {train: {} for train in (False, True)}


class _Recurrent(Variants):
    """What the three share; stands before torch's class among the bases."""

    torch_class: ClassVar[type[torch.nn.RNNBase]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = self._take_options(kwargs)
        super().__init__(*args, **kwargs)
        if options is not None:
            self._add(options)

    def _add(self, options: RecurrentOptions) -> None:
        """Make the plain module one with options."""
        self._set_options(options)
        like = self._flat_weights[0]
        if options.coupled_gates:
            for name in self._flat_weights_names:
                if not name.startswith("weight_hr"):
                    _, *rest = getattr(self, name).shape
                    shape = (3 * self.hidden_size, *rest)
                    setattr(self, name, torch.nn.Parameter(like.new_empty(shape)))
            self._init_flat_weights()
            self.reset_parameters()
        shapes = extra_weights(self.cell, self.hidden_size, options)
        own = {name: shapes[kind] for kind, name in self._extra_names()}
        new_parameters(self, own, like)
        reset_extras(self, list(own), 1 / math.sqrt(self.hidden_size), draw=True)

    def _extra_names(self) -> list[tuple[str, str]]:
        """Kinds and names of a variant's own parameters, by layer and direction."""
        kinds = extra_weights(self.cell, self.hidden_size, self.options)
        ways = ("", "_reverse") if self.bidirectional else ("",)
        return [
            (kind, f"{kind}_l{layer}{way}")
            for layer in range(self.num_layers)
            for way in ways
            for kind in kinds
        ]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.options is not None:
            names = [name for _, name in self._extra_names() if hasattr(self, name)]
            reset_extras(self, names, 0.0, draw=False)
