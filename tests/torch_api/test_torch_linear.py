"""pynlm.torch.Linear beside torch.nn's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import pynlm.torch
from pynlm.testing.torch_modules import assert_same, outcome, pair
from pynlm.torch import linear

I, O = 5, 7


class Call(torch.nn.Module):
    """A module that is called with a state, which it does not look at."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor, hx: None) -> torch.Tensor:
        return self.module(x)


def is_ours(y: torch.Tensor) -> bool:
    return "_Product" in type(y.grad_fn).__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (2, 1, 3)], ids=str)
def test_agrees_with_torch(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    theirs, ours = pair("Linear", I, O, bias=bias, dtype=dtype)
    x = torch.randn(*shape, I, dtype=dtype, requires_grad=True)
    assert is_ours(ours(x))
    assert_same(outcome(Call(ours), x), outcome(Call(theirs), x))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        assert not ours(x).requires_grad


def test_strides() -> None:
    theirs, ours = pair("Linear", I, O)
    for module in (theirs, ours):
        module.weight = torch.nn.Parameter(torch.arange(35.0).view(I, O).t() / 35)
    x = torch.randn(I, 3, 4, requires_grad=True)
    found = []
    for module in (theirs, ours):
        y = module(x.permute(2, 1, 0))
        found.append(torch.autograd.grad(y.sum(), [x, *module.parameters()]))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("leaf", ["weight", "bias", "input"])
def test_gradients_only_where_wanted(leaf: str) -> None:
    theirs, ours = pair("Linear", I, O)
    found = []
    for module in (theirs, ours):
        x = torch.ones(3, I, requires_grad=leaf == "input")
        for name, p in module.named_parameters():
            p.requires_grad_(name == leaf)
        module(x).square().sum().backward()
        grads = [x.grad, module.weight.grad, module.bias.grad]
        assert [g is not None for g in grads] == [leaf == n for n in ("input", "weight", "bias")]
        found.append([g for g in grads if g is not None])
    torch.testing.assert_close(found[1], found[0])


def test_gradcheck_and_gradients_of_gradients() -> None:
    ours = pynlm.torch.Linear(I, O, dtype=torch.float64)
    x = torch.randn(2, 3, I, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return ours(x)

    assert torch.autograd.gradcheck(run, (x, *ours.parameters()))
    assert torch.autograd.gradgradcheck(run, (x, *ours.parameters()))


def test_elsewhere_torchs() -> None:
    theirs, ours = pair("Linear", I, O)
    x = torch.randn(3, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x).dtype == theirs(x).dtype == torch.bfloat16
    assert copy.deepcopy(ours).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), theirs(x))
    for vectorize in (False, True):
        got = torch.autograd.functional.jacobian(ours, x, vectorize=vectorize)
        torch.testing.assert_close(got, torch.autograd.functional.jacobian(theirs, x))
    want = torch.func.vmap(theirs)(x)
    torch.testing.assert_close(torch.func.vmap(ours)(x), want)
    for wrong in (torch.zeros(3, I + 1), torch.zeros(3, I, dtype=torch.float64)):
        with pytest.raises(RuntimeError) as wanted:
            theirs(wrong)
        with pytest.raises(RuntimeError) as got:
            ours(wrong)
        assert str(got.value) == str(wanted.value)
    assert ours(torch.zeros(0, I)).shape == (0, O)


def test_small_products_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair("Linear", I, O)
    x = torch.randn(3, I)
    monkeypatch.setattr(linear, "SMALL_PRODUCT", 3 * I * O + 1)
    assert not is_ours(ours(x)) and torch.equal(ours(x), theirs(x))
    monkeypatch.setattr(linear, "SMALL_PRODUCT", 3 * I * O)
    assert is_ours(ours(x))


def test_copies_and_pickles() -> None:
    theirs, ours = pair("Linear", I, O)
    x = torch.randn(3, I)
    want: Any = ours(x)
    for twin in (copy.deepcopy(ours), copy.copy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is pynlm.torch.Linear and torch.equal(twin(x), want)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, torch.nn.Linear)
