"""Swap torch's modules in a model for pynlm's."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from pynlm.torch.adaptive import AdaptiveLogSoftmaxWithLoss
from pynlm.torch.cells import GRUCell, LSTMCell, RNNCell
from pynlm.torch.cross_entropy import LinearCrossEntropyLoss
from pynlm.torch.linear import Linear
from pynlm.torch.recurrent import GRU, LSTM, RNN

Model = TypeVar("Model", bound=torch.nn.Module)
Converter = Callable[[torch.nn.Module], torch.nn.Module]


def becomes(kind: type[torch.nn.Module]) -> Converter:
    """A converter that gives the module itself another class, and changes nothing else."""

    def convert(module: torch.nn.Module) -> torch.nn.Module:
        module.__class__ = kind
        return module

    return convert


CONVERTERS: dict[type[torch.nn.Module], Converter] = {
    torch.nn.LSTM: becomes(LSTM),
    torch.nn.GRU: becomes(GRU),
    torch.nn.RNN: becomes(RNN),
    torch.nn.LSTMCell: becomes(LSTMCell),
    torch.nn.GRUCell: becomes(GRUCell),
    torch.nn.RNNCell: becomes(RNNCell),
    torch.nn.Linear: becomes(Linear),
    torch.nn.AdaptiveLogSoftmaxWithLoss: becomes(AdaptiveLogSoftmaxWithLoss),
    torch.nn.LinearCrossEntropyLoss: becomes(LinearCrossEntropyLoss),
}
"""By torch's class, what makes pynlm's module of one.

A converter returns what takes its argument's place (maybe the same object): a module with its very
parameters, buffers, hooks and mode of training.
"""


OURS = (
    LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell, Linear, AdaptiveLogSoftmaxWithLoss,
    LinearCrossEntropyLoss,
)  # fmt: skip
"""What is replaced already, and keeps its parts."""


def replace(model: Model, *, verbose: bool = True) -> Model:
    """Let pynlm's modules take the place of torch's in `model`, which is changed.

    Parameters, buffers, hooks and modes of training are the very same objects as before, so
    optimisers go on, and a module that stands in several places still is one. Only modules whose
    class is torch's own are replaced, for a subclass may do something else; and of what is replaced
    or pynlm's already no parts are.

    Parameters
    ----------
    model
        Any module; itself one of those that are replaced, if you like.
    verbose
        Say on standard error what was replaced, a line a module.

    Returns
    -------
    Module
        `model`, or what took its place if it is itself one of those.

    Raises
    ------
    TypeError
        `model` is no module.

    Warns
    -----
    UserWarning
        There is nothing to replace.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LSTM(4, 5))
    >>> replace(model, verbose=False)
    Sequential(
      (0): Linear(in_features=3, out_features=4, bias=True)
      (1): LSTM(4, 5)
    )
    >>> type(model[1]).__module__
    'pynlm.torch.recurrent'
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"replace: model must be a torch.nn.Module, got {type(model).__name__}")
    done: dict[torch.nn.Module, torch.nn.Module] = {}
    names: dict[torch.nn.Module, str] = {}
    found = [m for m in model.modules() if type(m) in CONVERTERS or isinstance(m, OURS)]
    parts = {part for module in found for part in module.modules() if part is not module}
    for name, module in model.named_modules():
        convert = CONVERTERS.get(type(module))
        if convert is not None and module not in parts:
            done[module], names[module] = convert(module), name or "model"
    if not done:
        kinds = ", ".join(kind.__name__ for kind in CONVERTERS)
        warnings.warn(f"pynlm.torch.replace: the model has none of {kinds}", stacklevel=2)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in done:
                parent._modules[name] = done[child]
    if verbose:
        for old, new in done.items():
            print(f"pynlm.torch: {names[old]} is now pynlm's {new}", file=sys.stderr)
    return done.get(model, model)  # type: ignore[return-value]
