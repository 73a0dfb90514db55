"""Bidirectional layers against torch's, packed sequences and stacks included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pynlm.layers import GRU, LSTM, RNN, Bidirectional, Context, Parameters, Recurrent
from pynlm.testing import assert_close
from pynlm.testing.tolerances import torch_tolerance

T, B, I, H = 7, 5, 3, 11
CELLS: dict[str, tuple[type[Recurrent], Any, dict[str, str]]] = {
    "lstm": (LSTM, torch.nn.LSTM, {}),
    "gru": (GRU, torch.nn.GRU, {}),
    "rnn_tanh": (RNN, torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (RNN, torch.nn.RNN, {"nonlinearity": "relu"}),
}
# torch's packed sequences refuse rows of length 0.
LENGTHS = {"full": None, "ragged": [3, 7, 1, 6, 7], "short": [2, 1, 1, 4, 2]}
SUFFIXES = ("", "_reverse")


class Pair:
    """A stack of bidirectional layers and the same stack in torch."""

    def __init__(self, cell: str, layers: int, merge: str, dtype: str) -> None:
        kind, module, settings = CELLS[cell]
        rng = np.random.default_rng(layers)
        width = 2 * H if merge == "concat" else H
        names = [(f"{k}{suffix}", k) for k in range(layers) for suffix in SUFFIXES]
        self.parameters = Parameters(
            [s for name, k in names for s in kind.specs(name, I if k == 0 else width, H)], dtype
        )
        for p in self.parameters.values():
            p.data[...] = rng.standard_normal(p.data.shape) / 4
        ways = [kind(self.parameters, name, **settings) for name, _ in names]
        self.stack = [
            Bidirectional(ways[2 * k], ways[2 * k + 1], merge=merge) for k in range(layers)
        ]
        self.merge, self.dtype, self.cell = merge, dtype, cell
        self.net = module(
            I, H, num_layers=layers, bidirectional=True, dtype=getattr(torch, dtype), **settings
        )
        with torch.no_grad():
            for name, p in self.parameters.items():
                place, part = self.place(name)
                if name.endswith(".b"):
                    getattr(self.net, place.replace("bias_ih", "bias_hh")).zero_()
                getattr(self.net, place)[part] = torch.from_numpy(p.data)

    def place(self, name: str) -> tuple[str, slice]:
        """Name of torch's parameter, and which part of it is ours."""
        prefix, what = name.split(".")
        layer, _, way = prefix.partition("_")
        kind = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b": "bias_ih", "b_hn": "bias_hh"}[what]
        part = slice(2 * H, None) if what == "b_hn" else slice(None)
        return f"{kind}_l{layer}{'_reverse' if way else ''}", part


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("merge", "layers"), [("concat", 1), ("concat", 2), ("sum", 1)])
@pytest.mark.parametrize("cell", CELLS)
def test_agrees_with_torch(
    cell: str, merge: str, layers: int, lengths: list[int] | None, dtype: str
) -> None:
    """torch has no sum: there its halves are added, which a stack of its layers cannot do."""
    pair = Pair(cell, layers, merge, dtype)
    rng = np.random.default_rng(1)
    width = 2 * H if merge == "concat" else H
    x = rng.standard_normal((T, B, I)).astype(dtype)
    dy = rng.standard_normal((T, B, width)).astype(dtype)
    states = pair.stack[0].states // 2
    # As torch has them: state, then layer and direction.
    start = rng.standard_normal((states, 2 * layers, B, H)).astype(dtype)
    dlast = rng.standard_normal((states, 2 * layers, B, H)).astype(dtype)

    ctx, y, last, backprops = Context(train=True), x, [], []
    for k, layer in enumerate(pair.stack):
        state = tuple(start[s, 2 * k + way] for way in range(2) for s in range(states))
        (y, end), backprop = layer(y, state, ctx, lengths)
        last.append(end)
        backprops.append(backprop)
    g, dstart = dy, []
    for k, backprop in reversed(list(enumerate(backprops))):
        assert backprop is not None
        g = backprop(g, tuple(dlast[s, 2 * k + way] for way in range(2) for s in range(states)))
        dstart.insert(0, backprop.dstart)

    x_, start_ = (torch.tensor(a, requires_grad=True) for a in (x, start))
    given: Any = x_
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(
            x_, torch.tensor(lengths), enforce_sorted=False
        )
    y_, last_ = pair.net(given, tuple(start_) if states == 2 else start_[0])
    if lengths is not None:
        y_ = torch.nn.utils.rnn.pad_packed_sequence(y_, total_length=T)[0]
    if merge == "sum":
        y_ = y_[..., :H] + y_[..., H:]
    last_ = torch.stack(last_ if states == 2 else (last_,))
    ((y_ * torch.tensor(dy)).sum() + (last_ * torch.tensor(dlast)).sum()).backward()

    def by_torch(entries: list[tuple[np.ndarray, ...]]) -> np.ndarray:
        """Our states, one entry a layer, in torch's order."""
        return np.stack([[e[way * states + s] for e in entries for way in range(2)]
                         for s in range(states)])  # fmt: skip

    compared = [
        ("y", y, y_),
        ("last state", by_torch(last), last_),
        ("dx", g, x_.grad),
        ("dstart", by_torch(dstart), start_.grad),
    ]
    for name, p in pair.parameters.items():
        place, part = pair.place(name)
        compared.append((f"d{name}", p.densify(), getattr(pair.net, place).grad[part]))
    for what, ours, theirs in compared:
        assert_close(
            ours, theirs.detach().numpy(), torch_tolerance(dtype), what=what, terms=T * B
        )  # fmt: skip
