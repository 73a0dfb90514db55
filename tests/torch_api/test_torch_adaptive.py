"""AdaptiveLogSoftmaxWithLoss against torch's own, call by call."""

from __future__ import annotations

import copy
import doctest
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pynlm.testing import assert_close
from pynlm.testing.tolerances import torch_tolerance
from pynlm.torch import AdaptiveLogSoftmaxWithLoss
from pynlm.torch import adaptive as module

THEIRS = nn.AdaptiveLogSoftmaxWithLoss
N, H, V, CUTOFFS = 13, 16, 20, [5, 10, 15]
DTYPES = [torch.float32, torch.float64]
# what a step may differentiate
WANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "loss": lambda output, loss: 3 * loss,
    "output": lambda output, loss: (output * torch.linspace(-1, 2, output.numel())).sum(),
    "both": lambda output, loss: output.square().sum() - loss,
}


@contextmanager
def kernels_only() -> Iterator[None]:
    """Within, falling back to torch's code is an error."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("torch's method was called")

    names = ("forward", "log_prob", "predict")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(THEIRS, name, refuse)
        yield


def twins(
    dtype: torch.dtype = torch.float64, *, bias: bool = True
) -> tuple[AdaptiveLogSoftmaxWithLoss, nn.AdaptiveLogSoftmaxWithLoss]:
    """Ours and torch's with the same weights."""
    made = []
    for kind in (AdaptiveLogSoftmaxWithLoss, THEIRS):
        torch.manual_seed(2)
        made.append(kind(H, V, CUTOFFS, div_value=2.0, head_bias=bias, dtype=dtype))
    return made[0], made[1]


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Hidden states, and targets in all clusters but one."""
    make = torch.Generator().manual_seed(3)
    input = torch.randn(N, H, dtype=dtype, generator=make).requires_grad_()
    target = torch.randint(V - 5, (N,), generator=make)
    return input, torch.where(target < 10, target, target + 5)


def results(
    head: nn.Module, input: Tensor, target: Tensor, want: str
) -> dict[str, np.ndarray | None]:
    """Output, loss and gradients by name."""
    output, loss = head(input, target)
    leaves = {"input": input, **dict(head.named_parameters())}
    found = torch.autograd.grad(WANTS[want](output, loss), list(leaves.values()), allow_unused=True)
    gradients = {f"d{name}": g for name, g in zip(leaves, found, strict=True)}
    everything = {"output": output, "loss": loss, **gradients}
    return {k: None if t is None else t.detach().numpy() for k, t in everything.items()}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], dtype: torch.dtype) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert (ours[name] is None) is (expected is None), name
        if expected is not None:
            tolerance = torch_tolerance(str(dtype).removeprefix("torch."))
            assert ours[name].dtype == expected.dtype
            assert_close(ours[name], expected, tolerance, what=name, terms=V)


def test_examples() -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("want", WANTS)
def test_values_and_gradients(dtype: torch.dtype, bias: bool, want: str) -> None:
    """Clusters without a token have no gradient in both."""
    ours, theirs = twins(dtype, bias=bias)
    input, target = batch(dtype)
    expected = results(theirs, input, target, want)
    with kernels_only():
        found = results(ours, input, target, want)
    assert found["dtail.1.1.weight"] is None
    assert_same(found, expected, dtype)


@pytest.mark.parametrize("cluster", range(4))
def test_one_token_without_a_batch(cluster: int) -> None:
    ours, theirs = twins()
    input, _ = batch()
    row, target = input.detach()[0].clone().requires_grad_(), torch.tensor(5 * cluster)
    expected = results(theirs, row, target, "both")
    with kernels_only():
        found = results(ours, row, target, "both")
    assert found["output"].shape == ()  # type: ignore[union-attr]
    assert_same(found, expected, torch.float64)


def test_small_calls_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = twins()
    monkeypatch.setattr(module, "FEWEST", N * H * V + 1)
    assert torch.equal(ours(*batch()).output, theirs(*batch()).output)
    with pytest.raises(AssertionError, match="was called"), kernels_only():
        ours(*batch())
    monkeypatch.setattr(module, "FEWEST", N * H * V)
    with kernels_only():
        ours(*batch())


def test_result_is_torchs_named_tuple() -> None:
    ours, theirs = twins()
    found = ours(*batch())
    assert type(found) is type(theirs(*batch()))
    assert found.output is found[0] and found.loss is found[1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Callable[[], Any]) -> None:
    ours, theirs = twins()
    input, target = batch()
    with mode():
        expected = theirs(input, target), theirs.log_prob(input), theirs.predict(input)
        with kernels_only():
            found = ours(input, target), ours.log_prob(input), ours.predict(input)
    tolerance = torch_tolerance(np.float64)
    assert not found[0].loss.requires_grad
    for name, a, b in (
        ("output", found[0].output, expected[0].output),
        ("loss", found[0].loss, expected[0].loss),
        ("log_prob", found[1], expected[1]),
    ):
        assert_close(a, b, tolerance, what=name, terms=V)
    assert torch.equal(found[2], expected[2]) and found[2].dtype == expected[2].dtype


def test_predict_in_shortlist_and_clusters() -> None:
    """As the largest log-probability, wherever it is."""
    ours, _ = twins()
    make = torch.Generator().manual_seed(1)
    input = torch.randn(200, H, dtype=torch.float64, generator=make)
    with torch.no_grad():
        for favoured in (slice(0, 5), slice(5, 8)):
            ours.head.bias.zero_()
            ours.head.bias[favoured] = 2
            with kernels_only():
                found = ours.predict(input)
            assert torch.equal(found, ours.log_prob(input).argmax(1))
    assert torch.equal(ours.predict(input), ours.predict(input.requires_grad_()))


def test_log_prob_has_gradients() -> None:
    ours, theirs = twins()
    input, _ = batch()
    found = [
        torch.autograd.grad(m.log_prob(input).square().sum(), input)[0] for m in (ours, theirs)
    ]
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch's forward mode
@pytest.mark.parametrize("want", WANTS)
def test_gradcheck(want: str) -> None:
    """First and second derivatives, batched gradients and forward mode too."""
    ours, _ = twins()
    input, target = batch()
    weights = tuple(ours.parameters())
    names = [name for name, _ in ours.named_parameters()]

    def function(input: Tensor, *weights: Tensor) -> Tensor:
        given = dict(zip(names, weights, strict=True))
        output, loss = torch.func.functional_call(ours, given, (input, target))
        return WANTS[want](output, loss)

    checks = {"check_batched_grad": True, "check_forward_ad": True}
    assert torch.autograd.gradcheck(function, (input, *weights), **checks)
    assert torch.autograd.gradgradcheck(function, (input, *weights))


def test_backward_twice() -> None:
    ours, _ = twins()
    input, target = batch()
    loss = ours(input, target).loss
    first = torch.autograd.grad(loss, [input, ours.head.weight], retain_graph=True)
    kept = [t.clone() for t in first]
    second = torch.autograd.grad(loss, [input, ours.head.weight])
    for a, b, c in zip(first, kept, second, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)


def test_changed_in_place_before_backward() -> None:
    ours, _ = twins()
    loss = ours(*batch()).loss
    with torch.no_grad():
        ours.tail[0][1].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_only_where_required() -> None:
    ours, _ = twins()
    input, target = batch()
    ours.requires_grad_(False)
    ours(input, target).loss.backward()
    assert input.grad is not None and all(p.grad is None for p in ours.parameters())
    ours.requires_grad_(True)
    ours(input.detach(), target).loss.backward()
    assert ours.head.weight.grad is not None


def test_gradients_add_up() -> None:
    ours, theirs = twins()
    for head in (ours, theirs):
        for shift in range(3):
            input, target = batch()
            head(input + shift, target).loss.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) is (b.grad is None)
        if a.grad is not None and b.grad is not None:
            assert_close(a.grad, b.grad, torch_tolerance(np.float64), what="gradient", terms=V)


MISTAKES: dict[str, Callable[[Tensor, Tensor], tuple[Any, Any]]] = {
    "target too large": lambda input, target: (input, target + V),
    "target negative": lambda input, target: (input, target - V),
    "another length": lambda input, target: (input, target[1:]),
    "two dimensions of targets": lambda input, target: (input, target[None]),
    "three dimensions of input": lambda input, target: (input[:, None], target),
    "one target for many": lambda input, target: (input, target[0]),
    "another width": lambda input, target: (input[:, 1:], target),
    "another dtype": lambda input, target: (input.float(), target),
    "float target": lambda input, target: (input, target.double()),
    "no tensor": lambda input, target: (3, target),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise_what_torch_raises(mistake: str) -> None:
    found = []
    for head in twins():
        with pytest.raises(Exception) as raised:
            head(*MISTAKES[mistake](*batch()))
        # which attribute is missed first does not matter
        message = "" if raised.type is AttributeError else str(raised.value)
        found.append((raised.type, message))
    assert found[0] == found[1]


@pytest.mark.parametrize("cutoffs", [[], [5, 15, 15], [5, 15, 10], [0, 5], [5, 25], [5, 20]])
def test_cutoffs_are_refused_as_by_torch(cutoffs: list[int]) -> None:
    found = []
    for kind in (AdaptiveLogSoftmaxWithLoss, THEIRS):
        with pytest.raises(ValueError) as raised:
            kind(H, V, cutoffs)
        found.append(str(raised.value))
    assert found[0] == found[1]


def test_torch_does_what_the_kernels_do_not() -> None:
    """No rows, another dtype, hooks and other layers in place of the linear ones."""
    ours, theirs = twins()
    output, loss = ours(torch.empty(0, H, dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    assert output.shape == (0,) and loss.isnan()

    seen = []
    ours.tail[0][0].register_forward_hook(lambda *_: seen.append(1))
    input, target = batch()
    assert_same(*(results(m, input, target, "loss") for m in (ours, theirs)), torch.float64)
    assert seen

    narrow, wide = (m.to(torch.bfloat16) for m in twins())
    a, b = (m(input.bfloat16(), target) for m in (narrow, wide))
    assert torch.equal(a.output, b.output) and torch.equal(a.loss, b.loss)


def hook_everything(head: Any, call: Callable[..., None]) -> None:
    handle = nn.modules.module.register_module_forward_hook(call)
    head.undo = handle.remove


def patch_forward(head: Any, call: Callable[..., None]) -> None:
    forward = head.head.forward
    head.head.forward = lambda x: (call(), 2 * forward(x))[1]


def give_a_bias(head: Any, call: Callable[..., None]) -> None:
    head.tail[0][0].bias = nn.Parameter(torch.linspace(-1, 1, H // 2, dtype=torch.float64))
    call()


def add_a_layer(head: Any, call: Callable[..., None]) -> None:
    torch.manual_seed(4)
    head.tail[0].append(nn.Linear(5, 5, bias=False, dtype=torch.float64))
    call()


CHANGES: dict[str, Callable[[Any, Callable[..., None]], Any]] = {
    "hook of a cluster": lambda head, call: head.tail[0].register_forward_hook(call),
    "hook of all modules": hook_everything,
    "forward of an instance": patch_forward,
    "bias of a cluster": give_a_bias,
    "third layer of a cluster": add_a_layer,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_layers_are_torchs(change: str) -> None:
    found, calls = [], []
    for head in twins():
        seen: list[int] = []
        head.undo = lambda: None  # type: ignore[assignment]
        CHANGES[change](head, lambda *_, seen=seen: seen.append(1))
        try:
            found.append(results(head, *batch(), "both"))
        finally:
            head.undo()
        calls.append(len(seen))
    assert_same(*found, torch.float64)
    assert calls[0] == calls[1] > 0


def test_autocast_computes_in_the_dtype_of_the_weights() -> None:
    ours, _ = twins(torch.float32)
    input, target = batch(torch.float32)
    expected = ours(input, target)
    with torch.autocast("cpu", torch.bfloat16), kernels_only():
        same, narrow = ours(input, target), ours(input.bfloat16(), target)
    assert torch.equal(same.loss, expected.loss)
    assert narrow.loss.dtype == torch.float32
    assert torch.isclose(narrow.loss, expected.loss, rtol=0.05)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("want", WANTS)
def test_compile(bias: bool, want: str) -> None:
    """One graph; a cluster without a token gets zeros there."""
    ours, _ = twins(torch.float32, bias=bias)
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    input, target = batch(torch.float32)
    expected = results(ours, input, target, want)
    with kernels_only():
        found = results(compiled, input, target, want)
    for name, value in expected.items():
        twin = found[name if name in found else name.replace("d", "d_orig_mod.", 1)]
        wanted = np.zeros(twin.shape, twin.dtype) if value is None else value
        assert_close(twin, wanted, torch_tolerance(np.float32), what=name, terms=V)
    with torch.no_grad():
        assert torch.equal(compiled(input, target).output, ours(input, target).output)
    with pytest.raises(RuntimeError, match="Target values should be in"):
        compiled(input, target + V)


def test_operators_are_as_they_say() -> None:
    """Schemas, fake kernels and gradients, by torch's own check."""
    ours, _ = twins()
    input, target = batch()
    head, bias, *tails = ours.parameters()
    given = input, target, [head, *tails], bias
    for gradients in (True, False):
        torch.library.opcheck(
            module._operator, (*given, gradients), test_utils=("test_schema", "test_faketensor")
        )
    with torch.no_grad():
        _, _, dinput, flat = module._operator(*given, True)
    fixed = input.detach(), target, [t.detach() for t in (head, *tails)], bias.detach()
    for d_output in (None, torch.rand(N, dtype=torch.float64)):
        torch.library.opcheck(
            module._backward_operator, (*fixed, dinput, flat, d_output, torch.tensor(2.0).double())
        )


def test_module_is_torchs() -> None:
    ours, theirs = twins()
    assert isinstance(ours, THEIRS)
    assert repr(ours) == repr(theirs)
    for a, b in ((ours, theirs), (theirs, ours)):
        state = a.state_dict()
        assert list(state) == list(b.state_dict())
        assert all(torch.equal(w, b.state_dict()[name]) for name, w in state.items())
        b.load_state_dict(state)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is AdaptiveLogSoftmaxWithLoss
        assert torch.equal(twin(*batch()).output, ours(*batch()).output)


def test_several_python_threads() -> None:
    """Calls at the same time give the bits of calls one after another."""
    heads = [twins()[0] for _ in range(4)]
    for i, head in enumerate(heads):
        with torch.no_grad():
            head.head.weight.mul_(i + 1)
    expected = [results(head, *batch(), "both") for head in heads]
    found: list[dict[str, Any]] = [{} for _ in heads]

    def work(i: int) -> None:
        for _ in range(20):
            found[i] = results(heads[i], *batch(), "both")

    running = [threading.Thread(target=work, args=(i,)) for i in range(len(heads))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for ours, wanted in zip(found, expected, strict=True):
        for name, value in wanted.items():
            assert np.array_equal(ours[name], value) if value is not None else ours[name] is None
