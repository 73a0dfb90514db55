"""pynlm.torch within what torch's users do with modules: copies, threads, compilers, hooks."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import pynlm.torch
from pynlm.testing.torch_modules import H, I, assert_same, outcome, packed, pair, tensors
from pynlm.torch import tensors as tensors_module
from pynlm.torch.operators import recurrent

T, B = 6, 4
KINDS = ("LSTM", "GRU", "RNN")


@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
def test_copies_and_pickles(kind: str) -> None:
    ours = getattr(pynlm.torch, kind)(I, H)
    x = torch.randn(B, I)
    want = next(tensors(ours(x)))
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(ours),
        copy.copy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(buffer, weights_only=False),
    ):
        assert type(twin) is type(ours)
        assert torch.equal(next(tensors(twin(x))), want)
    other = copy.deepcopy(ours)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(next(tensors(ours(x))), want)


def test_state_dict_through_a_file() -> None:
    theirs, ours = pair("LSTM", I, H, 2)
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    buffer.seek(0)
    theirs.load_state_dict(torch.load(buffer, weights_only=True))


def test_several_python_threads(two_threads: None) -> None:
    """One module in four threads, forward and backward, with the numbers of one thread."""
    ours = pynlm.torch.LSTM(16, 32, 2)
    inputs = [torch.randn(20, 8, 16) for _ in range(4)]

    def gradient(x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(ours(x)[0].square().sum(), x)
        return g

    want = [gradient(x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(gradient(inputs[i]), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


class _Rows(torch.utils.data.Dataset[torch.Tensor]):
    """Items that a recurrent layer makes, in a worker."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> torch.Tensor:
        with torch.no_grad():
            return self.module(torch.full((20, 8, 16), float(i)))[0].sum()


def test_workers_of_a_data_loader(two_threads: None) -> None:
    """Forked after the parent's team of threads has started."""
    rows = _Rows(pynlm.torch.GRU(16, 64))
    want = torch.stack([rows[i] for i in range(4)])
    loader = torch.utils.data.DataLoader(rows, batch_size=4, num_workers=2, timeout=60)
    for got in loader:
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    """Activations computed anew for the backward pass."""
    _, ours = pair("LSTM", I, H, 2, dropout=0.3)
    x = torch.randn(T, B, I, requires_grad=True)
    found = []
    for run in (ours, lambda x: checkpoint(ours, x, use_reentrant=reentrant)):
        torch.manual_seed(1)
        found.append(torch.autograd.grad(run(x)[0].sum(), x) if run is ours else None)
        if found[-1] is None:
            run(x)[0].sum().backward()
            found[-1] = (x.grad,)
    assert torch.equal(found[0][0], found[1][0])


def test_saved_tensors_hooks() -> None:
    """What is saved goes through the hooks, so that it can be moved elsewhere."""
    _, ours = pair("GRU", I, H, 2)
    x = torch.randn(T, B, I, requires_grad=True)
    (want,) = torch.autograd.grad(ours(x)[0].sum(), x)
    packs: list[int] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        packs.append(t.numel())
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = ours(x)[0]
    assert max(packs) >= T * B * 2 * 4 * H
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], want)


def test_memory_goes_with_the_graph() -> None:
    """After a backward pass nothing that was saved is left, though the loss still is."""
    _, ours = pair("LSTM", I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    loss = ours(x)[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("lengths", [None, [3, 6, 1, 6]], ids=["full", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_used_again(
    kind: str, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step on nothing new is needed; what is still wanted stays as it is."""
    monkeypatch.setattr(tensors_module, "SMALL", 0)
    theirs, ours = pair(kind, I, H, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    given = x if lengths is None else packed(x, lengths)
    memory = ours._stack()[2][True].memory
    made = []
    for _ in range(4):
        assert_same(outcome(ours, given), outcome(theirs, given))
        made.append(memory.allocations)
    assert made[1] == made[3] > 0

    want = torch.autograd.grad(next(tensors(theirs(given))).square().sum(), theirs.parameters())
    for y in [next(tensors(ours(g))) for g in (given, given)]:
        found = torch.autograd.grad(y.square().sum(), ours.parameters())
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_norm_and_parametrisations(kind: str) -> None:
    """Weights that are computed from others, in three of torch's ways."""
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)

    def both(change: Any) -> None:
        found = []
        for module in pair(kind, I, H, 2, dtype=torch.float64):
            torch.manual_seed(8)
            found.append(outcome(change(module), x))
        assert_same(found[1], found[0])

    new = torch.nn.utils.parametrizations.weight_norm
    with pytest.warns(FutureWarning, match="weight_norm"):
        both(lambda m: torch.nn.utils.weight_norm(m, "weight_hh_l1"))
    both(lambda m: new(m, "weight_hh_l0"))
    both(lambda m: prune.l1_unstructured(m, "weight_ih_l0", amount=0.5))


def test_functional_call() -> None:
    """Other weights for one call."""
    theirs, ours = pair("LSTM", I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    weights = {n: torch.randn_like(p).requires_grad_() for n, p in ours.named_parameters()}
    found = []
    for module in (theirs, ours):
        y = torch.func.functional_call(module, weights, (x,))[0]
        gradients = torch.autograd.grad(y.sum(), list(weights.values()))
        found.append(dict(zip(weights, gradients, strict=True)))
    assert_same(found[1], found[0])
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


# torch's own, when it first differentiates forward
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_transforms_are_torchs() -> None:
    """torch.func, Jacobians, tracing and scripting use torch's own module."""
    theirs, ours = pair("GRU", I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    want = torch.func.grad(lambda x: theirs(x)[0].sum())(x)
    torch.testing.assert_close(torch.func.grad(lambda x: ours(x)[0].sum())(x), want)
    one = torch.randn(2, 1, I, dtype=torch.float64)
    for vectorize in (False, True):
        got = torch.autograd.functional.jacobian(lambda x: ours(x)[0], one, vectorize=vectorize)
        want = torch.autograd.functional.jacobian(lambda x: theirs(x)[0], one)
        torch.testing.assert_close(got, want)
    tangent = torch.randn_like(x)
    got = torch.func.jvp(lambda x: ours(x)[0], (x,), (tangent,))
    torch.testing.assert_close(got, torch.func.jvp(lambda x: theirs(x)[0], (x,), (tangent,)))


@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
def test_outputs_changed_in_place(kind: str) -> None:
    """Right gradients wherever torch gives them, and torch's error at most where it raises."""
    both: list[Any] = []
    for module in pair(kind, I, H):
        x = torch.randn(B, I, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = next(tensors(module(x)))
        y *= 2
        try:
            both.append(torch.autograd.grad(y.sum(), [x, *module.parameters()]))
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            both.append(None)
    assert both[0] is None or both[1] is not None
    if both[0] is not None:
        torch.testing.assert_close(both[1], both[0])


class _First(torch.nn.Module):
    """First result of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)[0]


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
def test_script_and_trace(kind: str) -> None:
    """TorchScript gets torch's module."""
    model = _First(getattr(pynlm.torch, kind)(I, H))
    x = torch.randn(B, I)
    want = model(x)
    for other in (torch.jit.script(model), torch.jit.trace(model, x)):
        torch.testing.assert_close(other(x), want)


@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
def test_compile(kind: str) -> None:
    """Whole graphs, no break; values and gradients of the eager module."""
    torch._dynamo.reset()
    cell = kind.endswith("Cell")
    settings = {} if cell else {"num_layers": 2, "bidirectional": True, "dropout": 0.0}
    ours = getattr(pynlm.torch, kind)(I, H, **settings)
    model = torch.nn.Sequential(torch.nn.Linear(I, I), ours)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    shape = (B, I) if cell else (T, B, I)
    x = torch.randn(shape, requires_grad=True)
    found = []
    for run in (model, compiled):
        out = list(tensors(run(x)))
        total = sum((o * o).sum() for o in out)
        found.append([*out, *torch.autograd.grad(total, [x, *model.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(list(tensors(compiled(x))), list(tensors(model(x))))


@pytest.mark.parametrize("states", [False, True])
def test_operator_keeps_torchs_rules(states: bool) -> None:
    """torch.library's own check: schema, fake kernel, autograd, compiler."""
    module = pynlm.torch.LSTM(I, H, 2)
    x = torch.randn(T, B, I, requires_grad=True)
    h, c = (torch.randn(2, B, H, requires_grad=True) if states else None for _ in range(2))
    given = (x, h, c, list(module.parameters()), None, None, module._settings(), B, 0, True, True)
    torch.library.opcheck(recurrent, given)


def test_compile_with_variants_and_dropout() -> None:
    """The compiler's graph draws what the eager module draws from the same seed."""
    torch._dynamo.reset()
    module = pynlm.torch.LSTM(I, H, 2, dropout=0.3, zoneout=0.2, layer_norm=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (T, T + 3):
        x = torch.randn(steps, B, I)
        found = []
        for run in (module, compiled):
            torch.manual_seed(4)
            y = run(x)[0]
            found.append([y, *torch.autograd.grad(y.square().sum(), module.parameters())])
        torch.testing.assert_close(found[1], found[0])


# torch's own modules draw it, too
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell"])
def test_export(kind: str, strict: bool) -> None:
    """A plain module in torch's operations, a variant in pynlm's."""
    for options, own in (({}, False), ({"layer_norm": True}, True)):
        model = _First(getattr(pynlm.torch, kind)(I, H, **options))
        x = torch.randn(B, I)
        exported = torch.export.export(model, (x,), strict=strict)
        called = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
        assert any("pynlm" in name for name in called) == own
        torch.testing.assert_close(exported.module()(x), model(x))
