"""Rare uses, in which a module is to do what torch's does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import pynlm.torch
from pynlm.testing.torch_modules import H, I, assert_same, pair, tensors
from pynlm.torch import adaptive, cross_entropy
from pynlm.torch.autograd import Call
from pynlm.torch.operators import recurrent

T, B = 6, 4
KINDS = ("LSTM", "GRU", "RNN")


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


def by_hand(sizes: list[int], rows: int) -> Any:
    return lambda x: PackedSequence(x[:rows], torch.tensor(sizes))


SEQUENCES = {
    "falling": by_hand([3, 2, 1], 6),
    "ends with nobody": by_hand([3, 2, 0], 5),
    "grows": by_hand([2, 3, 1], 6),
    "more rows than sizes": by_hand([2, 1], 6),
    "fewer rows than sizes": by_hand([3, 3, 3], 6),
    "other indices": lambda x: PackedSequence(
        x[:6], torch.tensor([3, 2, 1]), torch.tensor([1, 0]), torch.tensor([1, 0])
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_sequences_packed_by_hand(kind: str, name: str) -> None:
    both(*pair(kind, I, H, bidirectional=True), SEQUENCES[name](torch.randn(9, I)))


@pytest.mark.parametrize("name", ["grows", "more rows than sizes"])
def test_operator_checks_batch_sizes(name: str) -> None:
    module, packed = pynlm.torch.LSTM(I, H), SEQUENCES[name](torch.randn(9, I))
    weights = list(module.parameters())
    with pytest.raises(RuntimeError, match=r"batch_sizes must be positive, never grow"):
        recurrent(
            packed.data, None, None, weights, packed.batch_sizes, None, module._settings(),
            int(packed.batch_sizes[0]), 0, True, True,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["weight_hh", "bias_hh", "no bias_hh"])
@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
def test_weights_that_do_not_go_together(kind: str, name: str) -> None:
    """One of another dtype, or none."""
    modules = pair(kind, I, H)
    for module in modules:
        own = name.removeprefix("no ") + ("" if kind.endswith("Cell") else "_l0")
        value = torch.nn.Parameter(getattr(module, own).detach().double())
        setattr(module, own, None if name.startswith("no") else value)
    both(*modules, torch.randn(B, I))


BIASES = {
    "float64": torch.ones(H, dtype=torch.float64),
    "bfloat16": torch.ones(H, dtype=torch.bfloat16),
    "one for all": torch.ones(1),
    "rows": torch.ones(T, H),
    "too many": torch.ones(H + 1),
}


@pytest.mark.parametrize("what", BIASES)
def test_biases_of_linear(what: str) -> None:
    modules = pair("Linear", I, H)
    for module in modules:
        module.bias = torch.nn.Parameter(BIASES[what])
    both(*modules, torch.randn(T, I))


def test_linear_with_a_vector() -> None:
    modules = pair("Linear", I, H, bias=False)
    for module in modules:
        module.weight = torch.nn.Parameter(torch.ones(I))
    both(*modules, torch.randn(T, I))


@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell"])
def test_autocast_narrows_only(kind: str) -> None:
    """Wider numbers, which autocast has not made, are refused as by torch."""
    theirs, ours = pair(kind, I, H)
    wide = torch.randn(T, I, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError):
            theirs(wide)
        with pytest.raises(RuntimeError):
            ours(wide)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = next(tensors(ours.double()(wide.float())))
    torch.testing.assert_close(found, next(tensors(ours(wide.float().double()))))


def test_autocast_leaves_integers() -> None:
    target = torch.arange(T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for kind, more in (("LinearCrossEntropyLoss", ()), ("AdaptiveLogSoftmaxWithLoss", ([3],))):
            with pytest.raises(RuntimeError):
                getattr(pynlm.torch, kind)(8, 9, *more)(torch.ones(T, 8, dtype=torch.int64), target)


class NoGradient(torch.autograd.Function):
    """The identity, whose backward pass gives nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> None:
        return None


@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "Linear"])
def test_no_gradient_is_none(kind: str) -> None:
    for module in pair(kind, I, H):
        x = torch.randn(T, I, requires_grad=True)
        NoGradient.apply(next(tensors(module(x)))).sum().backward()
        assert x.grad is None and all(p.grad is None for p in module.parameters())


def test_no_gradient_of_the_loss_is_none() -> None:
    loss = pynlm.torch.LinearCrossEntropyLoss(8, 9)
    x = torch.randn(T, 8, requires_grad=True)
    NoGradient.apply(loss(x, torch.arange(T))).backward()
    assert x.grad is None and loss.linear.weight.grad is None


def test_without_torchs_private_names() -> None:
    """A torch that lacks them is slower at most."""
    code = """
import torch
del torch._C._functorch.is_legacy_batchedtensor
del torch._C._autograd._get_current_graph_task_keep_graph
import pynlm.torch
from pynlm.torch.dynamo import _allow
from types import ModuleType
_allow(ModuleType("config"))
lstm, x = pynlm.torch.LSTM(3, 5), torch.randn(4, 2, 3, requires_grad=True)
y = lstm(x)[0].sum()
y.backward(retain_graph=True)
first = x.grad.clone()
y.backward()
assert torch.equal(x.grad, 2 * first)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# torch's own, when its compiler is loaded
@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:DeprecationWarning")
def test_compile_with_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile as it comes, which compiles C++."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    _, ours = pair("LSTM", I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    model = torch.nn.Sequential(torch.nn.Linear(I, I), ours)
    found = []
    for run in (model, torch.compile(model, fullgraph=True)):
        y = run(x)[0]
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])])
    torch.testing.assert_close(found[1], found[0])


FROZEN = [*KINDS, "LSTMCell", "GRUCell", "RNNCell", "Linear"]


@pytest.mark.parametrize("frozen", ["ih", "hh", "weight", "bias", ""])
@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_parameters(kind: str, frozen: str) -> None:
    """Gradients where they are wanted; the others stay None."""
    results = []
    for module in pair(kind, I, H):
        for name, p in module.named_parameters():
            p.requires_grad_(frozen not in name)
        x = torch.randn(T, I, generator=torch.Generator().manual_seed(1)).requires_grad_()
        next(tensors(module(x))).square().sum().backward()
        grads = {name: p.grad for name, p in module.named_parameters()} | {"x": x.grad}
        assert all((g is None) == (n != "x" and frozen in n) for n, g in grads.items())
        results.append({name: g for name, g in grads.items() if g is not None})
    assert_same(*results)


def called(*_: Any, **__: Any) -> Any:
    raise AssertionError("a gradient was computed")


@pytest.mark.parametrize("grad", [True, False], ids=["frozen", "no_grad"])
def test_nothing_is_made_for_no_gradient(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All frozen, or within no_grad: no gradient, and nothing that one would need."""
    monkeypatch.setattr(cross_entropy, "xent_gradients", called)
    monkeypatch.setattr(adaptive, "_Made", called)
    kept: list[bool] = []
    size = Call.buffer_size

    def buffer_size(call: Call, shape: tuple[int, ...], saves: bool) -> int:
        kept.append(saves)
        return size(call, shape, saves)

    monkeypatch.setattr(Call, "buffer_size", buffer_size)
    x, target = torch.randn(T, 8), torch.arange(T)
    with torch.set_grad_enabled(grad):
        for kind in FROZEN:
            module = getattr(pynlm.torch, kind)(8, H).requires_grad_(not grad)
            assert not any(y.requires_grad for y in tensors(module(x)))
        for kind, more in (
            ("LinearCrossEntropyLoss", (9,)),
            ("AdaptiveLogSoftmaxWithLoss", (9, [3])),
        ):
            module = getattr(pynlm.torch, kind)(8, *more).requires_grad_(not grad)
            assert not any(y.requires_grad for y in tensors(module(x, target)))
    assert kept == [False] * 6
