"""Rare uses, in which a module is to do what torch's does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pynlm.torch
from pynlm.testing.torch_modules import H, I, assert_same, pair, tensors
from pynlm.torch import adaptive, cells, cross_entropy, linear

T, B = 6, 4
KINDS = ("LSTM", "GRU", "RNN")


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """These would be torch's."""
    monkeypatch.setattr(cells, "SMALL_STEP", 0)
    monkeypatch.setattr(linear, "SMALL_PRODUCT", 0)
    for module in (adaptive, cross_entropy):
        monkeypatch.setattr(module, "FEWEST", 0)


def both(theirs: Any, ours: Any, *given: Any) -> None:
    """Equal results, or exceptions of one class."""
    try:
        want = list(tensors(theirs(*given)))
    except Exception as error:
        with pytest.raises(type(error)):
            ours(*given)
        return
    torch.testing.assert_close(list(tensors(ours(*given))), want)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "RNNCell"])
def test_biases_have_gradients_of_their_own(kind: str, compiled: bool) -> None:
    """A hook may change one in place."""
    x, found = torch.randn(T, I), []
    for module in pair(kind, I, H):
        for p in module.parameters():
            p.register_hook(lambda g: g.mul_(0.5))
        run = module
        if compiled and type(module).__module__.startswith("pynlm"):
            torch._dynamo.reset()
            run = torch.compile(module, fullgraph=True, backend="aot_eager")
        sum(out.square().sum() for out in tensors(run(x))).backward()
        found.append({name: p.grad for name, p in module.named_parameters()})
    assert_same(found[1], found[0])


def test_reset_before_has_gradients_of_its_own() -> None:
    module = pynlm.torch.GRU(I, H, reset_before=True)
    module(torch.randn(T, B, I))[0].sum().backward()
    assert torch.equal(module.bias_ih_l0.grad, module.bias_hh_l0.grad)
    assert module.bias_ih_l0.grad.data_ptr() != module.bias_hh_l0.grad.data_ptr()


@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
def test_another_default_device(kind: str) -> None:
    """Is for new tensors; here all are on the CPU."""
    settings = {} if kind.endswith("Cell") else {"num_layers": 2, "dropout": 0.5}
    x = torch.randn(T, I, requires_grad=True)
    made = [
        (getattr(pynlm.torch, kind)(I, H, **settings), (x,)),
        (getattr(pynlm.torch, kind)(I, H, zoneout=0.5), (x,)),
    ]
    torch.set_default_device("meta")
    try:
        for module, given in made:
            outs = list(tensors(module(*given)))
            gradients = torch.autograd.grad(sum(o.sum() for o in outs), [x, *module.parameters()])
            assert all(t.device.type == "cpu" for t in (*outs, *gradients))
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("kind", ["Linear", "LinearCrossEntropyLoss", "AdaptiveLogSoftmaxWithLoss"])
def test_another_default_device_of_heads(kind: str) -> None:
    x, target = torch.randn(T, 8, requires_grad=True), torch.arange(T)
    module = getattr(pynlm.torch, kind)(8, 9, *([[3]] if kind.startswith("Adaptive") else []))
    torch.set_default_device("meta")
    try:
        found = module(x) if kind == "Linear" else module(x, target)
        loss = found.loss if kind.startswith("Adaptive") else found.sum()
        gradients = torch.autograd.grad(loss, [x, *module.parameters()])
        assert all(t.device.type == "cpu" for t in (loss, *gradients))
        with torch.no_grad():
            outs = tensors(module(x) if kind == "Linear" else module(x, target))
            assert all(t.is_cpu for t in outs)
    finally:
        torch.set_default_device(None)


# torch's own, of every nested tensor
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", ["Linear", "LSTM"])
def test_nested_tensors_are_torchs(kind: str) -> None:
    theirs, ours = pair(kind, I, H)
    x = torch.nested.nested_tensor([torch.ones(2, I), torch.ones(3, I)])
    if kind == "Linear":
        for a, b in zip(ours(x).unbind(), theirs(x).unbind(), strict=True):
            torch.testing.assert_close(a, b)
    else:
        both(theirs, ours, x)
