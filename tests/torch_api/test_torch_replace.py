"""replace(model): what changes, and what must not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import pynlm.torch
from pynlm.testing.torch_modules import assert_same, outcome

KINDS = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


class Model(torch.nn.Module):
    """A language model as torch's users write it; one layer stands in two places."""

    def __init__(self, kind: str = "LSTM", dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.first = getattr(torch.nn, kind)(6, 6, dropout=dropout, num_layers=2)
        self.again = self.first
        self.rest = torch.nn.ModuleList([getattr(torch.nn, kind)(6, 6)])
        self.head = torch.nn.Linear(6, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.again(self.first(self.embedding(tokens))[0])[0]
        return self.head(self.rest[0](h)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_itself(kind: str) -> None:
    theirs = getattr(torch.nn, kind)(3, 4)
    module = copy.deepcopy(theirs)
    ours = pynlm.torch.replace(module, verbose=False)
    assert type(ours) is getattr(pynlm.torch, kind)
    x = torch.randn(2, 3, requires_grad=True)
    assert_same(outcome(ours, x), outcome(theirs, x))


def test_parameters_hooks_and_mode_stay(capsys: pytest.CaptureFixture[str]) -> None:
    model = Model().eval()
    model.rest[0].train()
    calls: list[Any] = []
    model.first.register_forward_hook(lambda *_: calls.append("forward"))
    model.first.weight_hh_l0.register_hook(lambda g: calls.append("gradient"))
    before = dict(model.named_parameters())
    held = model.first
    assert pynlm.torch.replace(model) is model
    after = dict(model.named_parameters())
    assert list(before) == list(after) and all(after[n] is p for n, p in before.items())
    assert type(model.first) is type(model.rest[0]) is pynlm.torch.LSTM
    assert model.first is model.again is held
    assert not model.first.training and model.rest[0].training
    model(torch.zeros(5, 2, dtype=torch.int64)).sum().backward()
    assert calls.count("forward") == 2 and "gradient" in calls
    said = capsys.readouterr().err
    assert said == (
        "pynlm.torch: first is now pynlm's LSTM(6, 6, num_layers=2)\n"
        "pynlm.torch: rest.0 is now pynlm's LSTM(6, 6)\n"
        "pynlm.torch: head is now pynlm's Linear(in_features=6, out_features=11, bias=True)\n"
    )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_goes_on(kind: str, dropout: float) -> None:
    """The same losses as without, the model replaced between two steps of one optimiser."""
    losses = []
    for replaces in (False, True):
        torch.manual_seed(0)
        model = Model(kind, dropout).double()
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        tokens = torch.randint(0, 11, (6, 3))
        found = []
        for step in range(6):
            if replaces and step == 2:
                pynlm.torch.replace(model, verbose=False)
            loss = torch.nn.functional.cross_entropy(
                model(tokens[:-1]).flatten(0, 1), tokens[1:].flatten()
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.detach())
        losses.append(torch.stack(found))
    assert losses[0][-1] < losses[0][0]
    torch.testing.assert_close(losses[1], losses[0])


def test_parts_of_what_is_replaced_stay() -> None:
    model = torch.nn.ModuleList([torch.nn.AdaptiveLogSoftmaxWithLoss(64, 20, [5, 10])])
    pynlm.torch.replace(model, verbose=False)
    assert isinstance(model[0], pynlm.torch.AdaptiveLogSoftmaxWithLoss)
    assert type(model[0].head) is torch.nn.Linear


def test_a_second_time_nothing_is_left() -> None:
    model = torch.nn.ModuleList(
        [pynlm.torch.AdaptiveLogSoftmaxWithLoss(64, 20, [5, 10]), torch.nn.Linear(2, 3)]
    )
    pynlm.torch.replace(model, verbose=False)
    with pytest.warns(UserWarning, match="the model has none of"):
        pynlm.torch.replace(model, verbose=False)
    assert type(model[0].head) is type(model[0].tail[0][1]) is torch.nn.Linear


def test_state_dicts_go_both_ways() -> None:
    model, other = Model(), Model()
    pynlm.torch.replace(model, verbose=False)
    other.load_state_dict(model.state_dict())
    model.load_state_dict(other.state_dict())
    tokens = torch.randint(0, 11, (5, 2))
    torch.testing.assert_close(model(tokens), other(tokens))


def test_subclasses_stay() -> None:
    """They may do something else; and so does a module whose weights are computed."""

    class Own(torch.nn.LSTM):
        pass

    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.LSTM(2, 3), "weight_hh_l0")
    model = torch.nn.ModuleList([Own(2, 3), normed, torch.nn.LSTM(2, 3)])
    pynlm.torch.replace(model, verbose=False)
    assert type(model[0]) is Own
    assert not isinstance(model[1], pynlm.torch.LSTM)
    assert isinstance(model[2], pynlm.torch.LSTM)


def test_nothing_to_replace() -> None:
    with pytest.warns(UserWarning, match="the model has none of LSTM, GRU, RNN"):
        pynlm.torch.replace(torch.nn.Dropout())
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        pynlm.torch.replace({})  # type: ignore[type-var]
