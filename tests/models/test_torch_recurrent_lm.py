"""RecurrentLM against the same model in torch: same weights, same losses and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pynlm.layers import Context
from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.testing import assert_close
from pynlm.testing.tolerances import torch_tolerance

T, B, V, E = 7, 5, 23, 11
LENGTHS = [3, 7, 1, 6, 7]
NETS = {
    "lstm": (torch.nn.LSTM, {}),
    "gru": (torch.nn.GRU, {}),
    "rnn_tanh": (torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
}


class TorchLM(torch.nn.Module):
    """Layers of their own widths; the weights come from a RecurrentLM."""

    def __init__(self, model: RecurrentLM) -> None:
        super().__init__()
        config, dtype = model.config, torch.from_numpy(np.empty(0, model.dtype)).dtype
        kind, options = NETS[config.cell]
        widths = (config.embedding_size, *config.hidden_sizes)
        self.embedding = torch.nn.Embedding(config.vocab_size, widths[0], dtype=dtype)
        self.nets = torch.nn.ModuleList(
            kind(widths[i], widths[i + 1], dtype=dtype, **options) for i in range(len(widths) - 1)
        )
        self.head = torch.nn.Linear(widths[-1], config.vocab_size, dtype=dtype)
        if config.tied:
            self.head.weight = self.embedding.weight
        w = {name: torch.from_numpy(p.data) for name, p in model.parameters.items()}
        with torch.no_grad():
            self.embedding.weight.copy_(w["embedding.weight"])
            self.head.weight.copy_(w["embedding.weight" if config.tied else "head.weight"])
            self.head.bias.copy_(w["head.bias"])
            for i, net in enumerate(self.nets):
                net.weight_ih_l0.copy_(w[f"recurrent.{i}.w_ih"])
                net.weight_hh_l0.copy_(w[f"recurrent.{i}.w_hh"])
                net.bias_ih_l0.copy_(w[f"recurrent.{i}.b"])
                net.bias_hh_l0.zero_()
                if config.cell == "gru":
                    net.bias_hh_l0[2 * net.hidden_size :] = w[f"recurrent.{i}.b_hn"]

    def forward(self, ids: Any, targets: Any, state: Any, lengths: Any) -> tuple[Any, list[Any]]:
        x, ends = self.embedding(ids), []
        for net, start in zip(self.nets, state, strict=True):
            start = tuple(s[None] for s in start)
            start = start if isinstance(net, torch.nn.LSTM) else start[0]
            if lengths is not None:
                x = torch.nn.utils.rnn.pack_padded_sequence(
                    x, torch.tensor(lengths), enforce_sorted=False
                )
            x, end = net(x, start)
            if lengths is not None:
                x = torch.nn.utils.rnn.pad_packed_sequence(x, total_length=T)[0]
            ends.append(end if isinstance(end, tuple) else (end,))
        logits = self.head(x).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none")
        return loss.reshape(T, B), ends

    def gradients(self, config: RecurrentLMConfig) -> dict[str, np.ndarray]:
        found = {"embedding.weight": self.embedding.weight, "head.bias": self.head.bias}
        if not config.tied:
            found["head.weight"] = self.head.weight
        for i, net in enumerate(self.nets):
            found[f"recurrent.{i}.w_ih"] = net.weight_ih_l0
            found[f"recurrent.{i}.w_hh"] = net.weight_hh_l0
            found[f"recurrent.{i}.b"] = net.bias_ih_l0
        grads = {name: w.grad.numpy() for name, w in found.items()}
        if config.cell == "gru":
            for i, net in enumerate(self.nets):
                grads[f"recurrent.{i}.b_hn"] = net.bias_hh_l0.grad.numpy()[2 * net.hidden_size :]
        return grads


@pytest.mark.parametrize("cell", NETS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_state_and_gradients(
    train: Context, cell: str, tied: bool, lengths: list[int] | None, dtype: Any
) -> None:
    config = RecurrentLMConfig(
        V, E, (13, E), cell=cell, tied=tied, init="torch", init_scale=0.3, init_bias="uniform"
    )
    model = RecurrentLM(config, dtype)
    model.initialise(1)
    other = TorchLM(model)
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, V, (2, T, B))
    state = tuple(
        tuple(rng.standard_normal(s.shape).astype(dtype) for s in entry)
        for entry in model.initial_state(B)
    )
    mask = np.ones((T, B), dtype)
    if lengths is not None:
        mask = (np.arange(T)[:, None] < np.array(lengths)).astype(dtype)

    nll, new, backprop = model(ids, targets, state, train, lengths)
    assert backprop is not None
    backprop(1 / B)
    tensors = tuple(tuple(torch.from_numpy(s) for s in entry) for entry in state)
    loss, ends = other(torch.from_numpy(ids), torch.from_numpy(targets), tensors, lengths)
    ((loss * torch.from_numpy(mask)).sum() / B).backward()

    def same(got: np.ndarray, want: Any, what: str) -> None:
        assert_close(got, want, torch_tolerance(dtype), what=what, terms=T * B)

    same(nll, loss.detach().numpy() * mask, "nll")
    for entry, end in zip(new, ends, strict=True):
        for s, e in zip(entry, end, strict=True):
            same(s, e.detach().numpy()[0], "state")
    grads = other.gradients(config)
    assert set(grads) == set(model.parameters)
    for name, p in model.parameters.items():
        same(p.densify(), grads[name], name)
