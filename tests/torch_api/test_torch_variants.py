"""Variants among the keyword arguments: beside pynlm's own layers, and by finite differences."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import pynlm.torch
from pynlm.layers import GRU, LSTM, RNN, Context, Parameters, RecurrentOptions
from pynlm.testing.torch_modules import H, I, packed, tensors

T, B = 5, 4
LAYERS = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"recurrent_dropout": 0.4}) for kind in LAYERS),
    *((kind, {"weight_drop": 0.4}) for kind in LAYERS),
    *((kind, {"zoneout": 0.3}) for kind in LAYERS),
    *((kind, {"layer_norm": True}) for kind in LAYERS),
    *((kind, {"state_clip": 0.3}) for kind in LAYERS),
    ("LSTM", {"zoneout_cell": 0.2, "peephole": True, "layer_norm": True, "cell_clip": 0.5}),
    ("LSTM", {"layer_norm": True, "layer_norm_state": True}),
    ("LSTM", {"coupled_gates": True, "peephole": True}),
    ("LSTM", {"peephole": True, "proj_size": 2, "recurrent_dropout": 0.3}),
    ("GRU", {"reset_before": True, "weight_drop": 0.2}),
]


def ids(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(value)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=ids)
def test_agrees_with_pynlms_layer(kind: str, options: dict[str, Any], train: bool) -> None:
    """One layer, with the seed that torch's generator gives."""
    torch.manual_seed(4)
    module = getattr(pynlm.torch, kind)(I, H, dtype=torch.float64, **options).train(train)
    for name, p in module.named_parameters():
        if not name.startswith("weight"):
            torch.nn.init.normal_(p, std=0.5)
    own = {("projection" if k == "proj_size" else k): v for k, v in options.items()}
    settings = RecurrentOptions(**own)
    parameters = Parameters(LAYERS[kind].specs("r", I, H, options=settings), "float64")
    for name, p in parameters.items():
        what = name.removeprefix("r.")
        given = dict(module.named_parameters())
        if what in ("w_ih", "w_hh", "w_hr"):
            p.data[...] = given[f"weight_{what[2:]}_l0"].detach()
        elif what == "b":
            p.data[...] = given["bias_ih_l0"].detach()
            both = 2 * H if "r.b_hn" in parameters else None
            p.data[:both] += given["bias_hh_l0"].detach().numpy()[:both]
        elif what == "b_hn":
            p.data[...] = given["bias_hh_l0"].detach()[2 * H :]
        else:
            p.data[...] = given[f"{what}_l0"].detach()
    layer = LAYERS[kind](parameters, "r", options=settings)

    x = torch.randn(T, B, I, dtype=torch.float64)
    draws = any(options.get(n) for n in ("recurrent_dropout", "weight_drop", "zoneout"))
    torch.manual_seed(9)
    seed = int(torch.randint(0, 1 << 32, (1,))) if draws or "zoneout_cell" in options else 0
    torch.manual_seed(9)
    y, last = module(x)
    (want, end), _ = layer(x.numpy(), layer.initial_state(B), Context(train=train, seed=seed))
    np.testing.assert_array_equal(y.detach(), want)
    for got, state in zip(tensors(last), end, strict=True):
        np.testing.assert_array_equal(got[0].detach(), state)


@pytest.mark.parametrize("lengths", [None, [2, 5, 1, 5]], ids=["full", "ragged"])
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=ids)
def test_gradcheck(kind: str, options: dict[str, Any], lengths: list[int] | None) -> None:
    """Two layers, both directions, dropout between; masks of one seed in every call."""
    torch.manual_seed(4)
    module = getattr(pynlm.torch, kind)(
        I, 3, 2, bidirectional=True, dropout=0.3, dtype=torch.float64, **options
    )
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(6)
        return tuple(tensors(module(x if lengths is None else packed(x, lengths))))

    assert torch.autograd.gradcheck(run, (x, *module.parameters()), fast_mode=True)


# torch's cells have no projection
@pytest.mark.parametrize(
    ("kind", "options"), [v for v in VARIANTS if "proj_size" not in v[1]], ids=ids
)
def test_cell_is_a_step(kind: str, options: dict[str, Any]) -> None:
    """A cell beside the first step of a layer with the same weights."""
    torch.manual_seed(1)
    module = getattr(pynlm.torch, kind)(I, H, **options)
    cell = getattr(pynlm.torch, f"{kind}Cell")(I, H, **options)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in module.state_dict().items()})
    x = torch.randn(1, B, I)
    torch.manual_seed(2)
    y = module(x)[0][0]
    torch.manual_seed(2)
    out = next(tensors(cell(x[0])))
    assert torch.equal(out, y)
    out.sum().backward()
    y.sum().backward()
    for (name, p), q in zip(module.named_parameters(), cell.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_own_parameters() -> None:
    """Names, first values, copies, words."""
    torch.manual_seed(3)
    plain = torch.nn.LSTM(I, H, 2, bidirectional=True)
    torch.manual_seed(3)
    module = pynlm.torch.LSTM(I, H, 2, bidirectional=True, layer_norm=True, peephole=True)
    names = set(module.state_dict()) - set(plain.state_dict())
    kinds = ("peephole", "ln_gates", "ln_cell")
    ways = ("l0", "l0_reverse", "l1", "l1_reverse")
    assert names == {f"{kind}_{way}" for kind in kinds for way in ways}
    for name, p in plain.state_dict().items():
        assert torch.equal(module.state_dict()[name], p)
    assert (module.ln_gates_l1 == 1).all()
    assert (module.ln_cell_l0[0] == 1).all() and (module.ln_cell_l0[1] == 0).all()
    assert 0 < module.peephole_l0.abs().max() <= H**-0.5
    assert (
        repr(module)
        == "LSTM(3, 5, num_layers=2, bidirectional=True, layer_norm=True, peephole=True)"
    )
    module.reset_parameters()
    assert (module.ln_gates_l1 == 1).all()
    x = torch.randn(T, B, I)
    other = pynlm.torch.LSTM(I, H, 2, bidirectional=True, layer_norm=True, peephole=True)
    for twin in (copy.deepcopy(module), other):
        twin.load_state_dict(module.state_dict())
        assert torch.equal(twin(x)[0], module(x)[0])


def test_coupled_gates_have_three() -> None:
    module = pynlm.torch.LSTM(I, H, coupled_gates=True, proj_size=2)
    assert module.weight_ih_l0.shape == (3 * H, I) and module.weight_hh_l0.shape == (3 * H, 2)
    assert module.bias_ih_l0.shape == (3 * H,) and module.weight_hr_l0.shape == (2, H)


def test_gradients_of_gradients_are_refused_by_name() -> None:
    for module, shape in (
        (pynlm.torch.LSTM(I, H, layer_norm=True), (T, B, I)),
        (pynlm.torch.LSTMCell(I, H, layer_norm=True), (B, I)),
    ):
        x = torch.randn(shape, requires_grad=True)
        with pytest.raises(
            RuntimeError, match=r"pynlm\.torch\.LSTM.*create_graph.*layer_norm=True"
        ):
            torch.autograd.grad(next(tensors(module(x))).sum(), x, create_graph=True)


def test_scripting_is_refused_by_name() -> None:
    with (
        pytest.warns(DeprecationWarning, match="torch.jit.script"),
        pytest.raises(NotImplementedError, match=r"LSTM: torch.jit.script cannot .* zoneout=0.1"),
    ):
        torch.jit.script(pynlm.torch.LSTM(I, H, zoneout=0.1))
