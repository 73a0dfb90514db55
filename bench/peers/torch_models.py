"""Language models in PyTorch as its users write them, with the weights of a `RecurrentLM`."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.peers.torch_variants import MODULES
from pynlm.heads import HeadOptions
from pynlm.layers import RecurrentOptions

if TYPE_CHECKING:
    from pynlm.models import RecurrentLMConfig

Array = NDArray[Any]
State = tuple[tuple[Tensor, Tensor], ...]
# Weights by pynlm's and by torch's names, which in both end so in a second direction.
WEIGHTS = (("w_ih", "weight_ih"), ("w_hh", "weight_hh"), ("b", "bias_ih"))
SUFFIXES = ("", "_reverse")


def model_for(config: RecurrentLMConfig) -> Model:
    """The model of that configuration; ValueError if none here is."""
    of_awd = config.recurrent == RecurrentOptions(weight_drop=config.weight_drop)
    plain = config.cell == "lstm" and config.head == HeadOptions()
    if config.weight_drop and config.locked and of_awd and plain:
        return AWDLanguageModel(config)
    return LanguageModel(config)


class LanguageModel(nn.Module):
    """Embedding, dropout, recurrent layers with dropout between, dropout, linear layer."""

    def __init__(self, config: RecurrentLMConfig) -> None:
        super().__init__()
        size, layers = config.hidden_sizes[0], len(config.hidden_sizes)
        dropped = config.dropout_input or config.dropout_between or config.dropout_output
        variants = config.recurrent != RecurrentOptions() or (config.locked and dropped)
        if set(config.hidden_sizes) != {size} or variants or config.head != HeadOptions():
            raise ValueError(f"LanguageModel: {config} is no stack of one torch module")
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout_input = nn.Dropout(config.dropout_input)
        between = config.dropout_between if layers > 1 else 0.0
        cell, _, nonlinearity = config.cell.partition("_")
        kind = {"nonlinearity": nonlinearity} if nonlinearity else {}
        self.recurrent = MODULES[cell](config.embedding_size, size, layers, dropout=between, **kind)
        self.dropout_output = nn.Dropout(config.dropout_output)
        self.head = nn.Linear(size, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.embedding.weight

    def load(self, weights: dict[str, Array]) -> None:
        """Take over the weights of a `pynlm.models.RecurrentLM` with the same configuration."""
        _load_ends(self, weights)
        for layer in range(self.recurrent.num_layers):
            prefix = f"recurrent.{layer}."
            own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
            load_layer(self.recurrent, layer, own)

    def arrays(self, *, gradients: bool = False) -> dict[str, Array]:
        """The inverse of `load`: weights, or gradients, by pynlm's names, as views."""

        def view(tensor: Tensor) -> Array:
            return gradient(tensor) if gradients else tensor.detach().numpy()

        found = {"embedding.weight": view(self.embedding.weight)}
        if self.head.weight is not self.embedding.weight:
            found["head.weight"] = view(self.head.weight)
        if self.head.bias is not None:
            found["head.bias"] = view(self.head.bias)
        for layer in range(self.recurrent.num_layers):
            prefix = f"recurrent.{layer}."
            for name, theirs in WEIGHTS:
                found[prefix + name] = view(getattr(self.recurrent, f"{theirs}_l{layer}"))
            if self.recurrent.mode == "GRU":
                second = view(getattr(self.recurrent, f"bias_hh_l{layer}"))
                found[prefix + "b_hn"] = second[-self.recurrent.hidden_size :]
        return found

    def forward(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Hidden states [T·B, H] before the linear layer, and the new state."""
        y, state = self.recurrent(self.dropout_input(self.embedding(ids)), state)
        return self.dropout_output(y).flatten(0, 1), state


class AWDLanguageModel(nn.Module):
    """Embedding, LSTM layers with weight drop, linear layer; locked dropout around each layer.

    Merity et al., arXiv:1708.02182. One module a layer, called with a dropped copy of its recurrent
    weights, so that torch's fused layer does the work.
    """

    def __init__(self, config: RecurrentLMConfig) -> None:
        super().__init__()
        self.weight_drop = config.weight_drop
        between = [config.dropout_between] * (len(config.hidden_sizes) - 1)
        self.dropped = [config.dropout_input, *between, config.dropout_output]
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        widths = pairwise((config.embedding_size, *config.hidden_sizes))
        self.layers = nn.ModuleList(nn.LSTM(I, H) for I, H in widths)
        self.head = nn.Linear(config.hidden_sizes[-1], config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.embedding.weight

    def load(self, weights: dict[str, NDArray[Any]]) -> None:
        """Take over the weights of a `pynlm.models.RecurrentLM` with the same configuration."""
        _load_ends(self, weights)
        for i, layer in enumerate(self.layers):
            names = ("w_ih", "w_hh", "b")
            load_layer(layer, 0, {name: weights[f"recurrent.{i}.{name}"] for name in names})

    def forward(self, ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Hidden states [T·B, H] before the linear layer, and the new state."""
        x, new = self._locked(self.embedding(ids), self.dropped[0]), []
        for i, layer in enumerate(self.layers):
            w_hh = F.dropout(layer.weight_hh_l0, self.weight_drop, self.training)
            given = (x, None if state is None else state[i])
            x, last = functional_call(layer, {"weight_hh_l0": w_hh}, given)
            x = self._locked(x, self.dropped[i + 1])
            new.append(last)
        return x.flatten(0, 1), tuple(new)

    def _locked(self, x: Tensor, p: float) -> Tensor:
        return x * F.dropout(torch.ones_like(x[:1]), p) if self.training and p else x


Model = LanguageModel | AWDLanguageModel


def _load_ends(model: Model, weights: dict[str, Array]) -> None:
    """Embedding and linear layer."""
    with torch.no_grad():
        model.embedding.weight.copy_(torch.tensor(weights["embedding.weight"]))
        if model.head.weight is not model.embedding.weight:
            model.head.weight.copy_(torch.tensor(weights["head.weight"]))
        if model.head.bias is not None:
            model.head.bias.copy_(torch.tensor(weights["head.bias"]))


def load_layer(module: nn.RNNBase, layer: int, weights: dict[str, Array]) -> None:
    """Ours has one bias where torch has two: it becomes the first, and the second is 0."""
    with torch.no_grad():
        for suffix in SUFFIXES[: 1 + module.bidirectional]:
            for name, theirs in WEIGHTS:
                given = torch.tensor(weights[name + suffix])
                getattr(module, f"{theirs}_l{layer}{suffix}").copy_(given)
            second = getattr(module, f"bias_hh_l{layer}{suffix}")
            second.zero_()
            if "b_hn" in weights:
                b_hn = torch.tensor(weights[f"b_hn{suffix}"])
                second[-len(b_hn) :] = b_hn


def gradient(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad.numpy()
