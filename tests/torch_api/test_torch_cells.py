"""pynlm.torch's cells beside torch.nn's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import pynlm.torch
from pynlm.testing.torch_modules import H, I, assert_same, outcome, pair, states, tensors
from pynlm.torch import module as shared

B = 4


KINDS = ("LSTMCell", "GRUCell", "RNNCell")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(), (1,), (B,)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_torch(
    kind: str, rows: tuple[int, ...], bias: bool, dtype: torch.dtype
) -> None:
    theirs, ours = pair(kind, I, H, bias=bias, dtype=dtype)
    x = torch.randn(*rows, I, dtype=dtype, requires_grad=True)
    hx = states(kind, rows, dtype=dtype, requires_grad=True)
    for state in (None, hx):
        assert_same(outcome(ours, x, state), outcome(theirs, x, state))


def test_relu() -> None:
    theirs, ours = pair("RNNCell", I, H, nonlinearity="relu")
    x = torch.randn(B, I, requires_grad=True)
    assert_same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("kind", KINDS)
def test_loop(kind: str) -> None:
    """Steps one after another, as in a decoder; gradients through all."""
    theirs, ours = pair(kind, I, H, dtype=torch.float64)
    x = torch.randn(6, B, I, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (theirs, ours):
        state = None
        for step in x:
            state = module(step, state)
        total = sum(s.square().sum() for s in tensors(state))
        leaves = [x, *module.parameters()]
        found.append(dict(enumerate(torch.autograd.grad(total, leaves))))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_words(kind: str) -> None:
    theirs, ours = pair(kind, I, H)
    assert isinstance(ours, getattr(torch.nn, kind))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients(kind: str) -> None:
    theirs, ours = pair(kind, I, H)
    x = torch.randn(B, I)
    with torch.no_grad():
        for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
            assert torch.allclose(a, b, atol=1e-6) and not a.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_and_gradients_of_gradients(kind: str) -> None:
    _, ours = pair(kind, 2, 3, dtype=torch.float64)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    hx = states(kind, (2,), dtype=torch.float64)
    state = tuple(s[:, :3].clone().requires_grad_() for s in tensors(hx))

    def run(x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = rest[: len(state)]
        return tuple(tensors(ours(x, given if len(given) == 2 else given[0])))

    leaves = (x, *state, *ours.parameters())
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


BAD: dict[str, Any] = {
    "three axes": lambda k: (torch.zeros(1, B, I), None),
    "width": lambda k: (torch.zeros(B, I + 1), None),
    "state rows": lambda k: (torch.zeros(B, I), states(k, (B + 1,))),
    "state of one row": lambda k: (torch.zeros(B, I), states(k, (1,))),
    "state width": lambda k: (torch.zeros(B, I), states(k, (B,), requires_grad=False)),
    "state axes": lambda k: (torch.zeros(B, I), states(k, (1, 1, B))),
    "dtype": lambda k: (torch.zeros(B, I, dtype=torch.float64), None),
}


@pytest.mark.parametrize("mistake", BAD)
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}], ids=["plain", "variant"])
@pytest.mark.parametrize("kind", KINDS)
def test_mistakes(kind: str, mistake: str, options: dict[str, Any]) -> None:
    size = H + 1 if mistake == "state width" else H
    theirs, _ = pair(kind, I, size)
    ours = getattr(pynlm.torch, kind)(I, size, **options)
    with pytest.raises(Exception) as wanted:
        theirs(*BAD[mistake](kind))
    with pytest.raises(wanted.type):
        ours(*BAD[mistake](kind))


def test_no_units() -> None:
    """torch's cells may have none."""
    for kind in ("RNNCell", "GRUCell"):
        theirs, ours = pair(kind, I, 0)
        x, h = torch.randn(B, I), torch.randn(B, 0)
        assert ours(x, h).shape == theirs(x, h).shape == (B, 0)


def test_unknown_nonlinearity() -> None:
    with pytest.raises(RuntimeError, match="Unknown nonlinearity"):
        pynlm.torch.RNNCell(I, H, nonlinearity="cube")(torch.zeros(B, I))


@pytest.mark.parametrize("kind", KINDS)
def test_small_steps_are_torchs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, and as fast; larger ones are not."""
    theirs, ours = pair(kind, I, H)
    rows = 1 + 1000 // sum(w.numel() for w in (ours.weight_ih, ours.weight_hh))
    x = torch.randn(rows, I, requires_grad=True)
    monkeypatch.setattr(shared, "SMALL_STEP", 10**6)
    y = next(tensors(ours(x)))
    assert torch.equal(y, next(tensors(theirs(x))))
    assert "RecurrentCell" not in type(y.grad_fn).__name__
    monkeypatch.setattr(shared, "SMALL_STEP", 1000)
    assert "RecurrentCell" in type(next(tensors(ours(x))).grad_fn).__name__


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(), (B,), (0,)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_small_steps(
    kind: str, rows: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SMALL_STEP", 10**6)
    theirs, ours = pair(kind, I, H, bias=bias)
    x = torch.randn(*rows, I, requires_grad=True)
    for hx in (None, states(kind, rows, requires_grad=True)):
        assert_same(outcome(ours, x, hx), outcome(theirs, x, hx))
    for module in (ours, theirs):
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh")
    assert_same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("mistake", ["input", "dimensions", "dtype", "state", "kind of state"])
@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_in_small_steps(kind: str, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SMALL_STEP", 10**6)
    x, h = torch.zeros(B, I), torch.zeros(B, H)
    bad = torch.zeros(B, H + 1)
    given: dict[str, tuple[Any, ...]] = {
        "input": (torch.zeros(B, I + 1),),
        "dimensions": (torch.zeros(2, 2, B, I),),
        "dtype": (x.double(),),
        "state": (x, (h, bad) if kind == "LSTMCell" else bad),
        "kind of state": (x, (h,) if kind == "LSTMCell" else (h, h)),
    }
    theirs, ours = pair(kind, I, H)
    with pytest.raises(Exception) as wanted:
        theirs(*given[mistake])
    with pytest.raises(type(wanted.value)) as got:
        ours(*given[mistake])
    assert str(got.value) == str(wanted.value)


@pytest.mark.parametrize("kind", KINDS)
def test_mode_of_plain_cells_is_nothing(kind: str) -> None:
    """PyTorch's own tests take the attribute away."""
    theirs, ours = pair(kind, I, H)
    del ours.training
    x = torch.randn(B, I)
    assert_same({"y": next(tensors(ours(x)))}, {"y": next(tensors(theirs(x)))})


@pytest.mark.parametrize("kind", KINDS)
def test_small_steps_under_autocast(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the dtype of the weights, as larger ones."""
    monkeypatch.setattr(shared, "SMALL_STEP", 10**6)
    _, ours = pair(kind, I, H)
    x = torch.randn(B, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for input in (x, x.bfloat16()):
            assert next(tensors(ours(input))).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_small_steps_are_traced_without_a_warning(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SMALL_STEP", 10**6)
    _, ours = pair(kind, I, H)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        traced = torch.jit.trace(ours, (torch.randn(B, I),))
    x = torch.randn(B + 3, I)
    assert torch.equal(next(tensors(traced(x))), next(tensors(ours(x))))
