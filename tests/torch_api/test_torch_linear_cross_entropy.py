"""linear_cross_entropy and its module against torch's own, call by call."""

from __future__ import annotations

import copy
import doctest
import gc
import io
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pynlm.testing import assert_close
from pynlm.testing.tolerances import torch_tolerance
from pynlm.torch import LinearCrossEntropyLoss, linear_cross_entropy
from pynlm.torch import cross_entropy as module

N, H, V = 7, 5, 11
DTYPES = [torch.float32, torch.float64]
REDUCTIONS = ["none", "mean", "sum"]


@contextmanager
def kernels_only() -> Iterator[None]:
    """Within, falling back to torch's function is an error."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("torch's linear_cross_entropy was called")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "torchs", refuse)
        yield


class Arguments:
    """Tensors of one call, from a fixed seed."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, *, bias: bool = True, batch: bool = True
    ) -> None:
        make = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=dtype, generator=make)

        rows = (N,) if batch else ()
        self.input = normal(*rows, H).requires_grad_()
        self.weight = normal(V, H).requires_grad_()
        self.bias = normal(V).requires_grad_() if bias else None
        self.target = torch.randint(V, rows, generator=make)
        self.classes = normal(V).abs()

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.input, self.weight, self.bias) if t is not None]

    def call(self, function: Callable[..., Tensor], **options: Any) -> Tensor:
        return function(self.input, self.weight, self.target, linear_bias=self.bias, **options)

    def results(self, function: Callable[..., Tensor], **options: Any) -> list[np.ndarray]:
        """Loss and gradients, at an upstream gradient that is not 1."""
        loss = self.call(function, **options)
        upstream = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
        found = [loss, *torch.autograd.grad(loss, self.leaves, upstream)]
        return [t.detach().numpy() for t in found]


def assert_equal_to_torch(arguments: Arguments, **options: Any) -> None:
    theirs = arguments.results(F.linear_cross_entropy, **options)
    with kernels_only():
        ours = arguments.results(linear_cross_entropy, **options)
    for i, (value, expected) in enumerate(zip(ours, theirs, strict=True)):
        tolerance = torch_tolerance(expected.dtype)
        assert value.dtype == expected.dtype
        assert_close(value, expected, tolerance, what=f"result {i}", case=options, terms=V)


def test_examples() -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [True, False], ids=["batch", "single"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_values_and_gradients(
    dtype: torch.dtype, batch: bool, bias: bool, reduction: str, label_smoothing: float
) -> None:
    arguments = Arguments(dtype, bias=bias, batch=batch)
    assert_equal_to_torch(arguments, reduction=reduction, label_smoothing=label_smoothing)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [None, -100, 4, -1, 20])
@pytest.mark.parametrize("options", ["plain", "smoothed", "class weights"])
def test_ignored_targets(reduction: str, ignore_index: int | None, options: str) -> None:
    arguments = Arguments()
    arguments.target[[0, 3]] = -100 if ignore_index is None else ignore_index
    more: dict[str, Any] = {"smoothed": {"label_smoothing": 0.2}}.get(options, {})
    if options == "class weights":
        more = {"weight": arguments.classes}
    assert_equal_to_torch(arguments, reduction=reduction, ignore_index=ignore_index, **more)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_targets_ignored(reduction: str) -> None:
    """NaN for the mean, as in torch, and gradients of zero."""
    arguments = Arguments()
    arguments.target.fill_(-100)
    assert_equal_to_torch(arguments, reduction=reduction)
    assert torch.isnan(arguments.call(linear_cross_entropy)).item()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_strided_tensors(reduction: str) -> None:
    arguments = Arguments()
    arguments.input = torch.randn(H, N, dtype=torch.float64).t().requires_grad_()
    arguments.weight = torch.randn(H, V, dtype=torch.float64).t().requires_grad_()
    arguments.bias = torch.randn(1, dtype=torch.float64).expand(V).requires_grad_()
    arguments.target = torch.arange(2 * N)[::2] % V
    assert_equal_to_torch(arguments, reduction=reduction)


def test_small_calls_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST", N * H * V + 1)
    arguments = Arguments()
    assert torch.equal(arguments.call(linear_cross_entropy), arguments.call(F.linear_cross_entropy))
    with pytest.raises(AssertionError, match="was called"), kernels_only():
        arguments.call(linear_cross_entropy)
    monkeypatch.setattr(module, "FEWEST", N * H * V)
    with kernels_only():
        arguments.call(linear_cross_entropy)


def test_may_stand_in_torchs_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torch's own tests are run with it: what is left to torch still gets there."""
    arguments = Arguments()
    expected = arguments.call(F.linear_cross_entropy, label_smoothing=0.1, weight=arguments.classes)
    monkeypatch.setattr(F, "linear_cross_entropy", linear_cross_entropy)
    found = arguments.call(F.linear_cross_entropy, label_smoothing=0.1, weight=arguments.classes)
    assert torch.equal(found, expected)


def test_gradients_only_where_required() -> None:
    for names in itertools.product([True, False], repeat=3):
        arguments = Arguments()
        for leaf, wanted in zip(arguments.leaves, names, strict=True):
            leaf.requires_grad_(wanted)
        with kernels_only():
            loss = arguments.call(linear_cross_entropy)
        assert loss.requires_grad is any(names)
        if any(names):
            loss.backward()
        assert [leaf.grad is not None for leaf in arguments.leaves] == list(names)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_gradients(mode: Callable[[], Any], reduction: str) -> None:
    arguments = Arguments()
    with mode():
        expected = arguments.call(F.linear_cross_entropy, reduction=reduction)
        with kernels_only():
            loss = arguments.call(linear_cross_entropy, reduction=reduction)
    assert not loss.requires_grad
    assert_close(loss, expected, torch_tolerance(np.float64), what="loss", terms=V)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch's forward mode
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_gradcheck(reduction: str, label_smoothing: float) -> None:
    """First and second derivatives, batched gradients and forward mode too."""
    arguments = Arguments()
    arguments.target[2] = -100

    def loss(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(
            input, weight, arguments.target, linear_bias=bias, reduction=reduction,
            label_smoothing=label_smoothing,
        )  # fmt: skip

    leaves = tuple(arguments.leaves)
    checks = {"check_batched_grad": True, "check_forward_ad": True}
    assert torch.autograd.gradcheck(loss, leaves, **checks)
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_second_derivative_of_inputs_that_depend_on_each_other() -> None:
    """A tied table: the input is made from the weight, whose gradient must not count twice."""
    arguments = Arguments()
    found = []
    for function in (linear_cross_entropy, F.linear_cross_entropy):
        input = arguments.weight[:N].tanh()
        loss = function(input, arguments.weight, arguments.target)
        (first,) = torch.autograd.grad(loss, arguments.weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), arguments.weight)
        found.append((first.detach(), second))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, torch_tolerance(np.float64), what="gradient", terms=V * H)


def test_backward_twice() -> None:
    arguments = Arguments()
    loss = arguments.call(linear_cross_entropy)
    first = torch.autograd.grad(loss, arguments.leaves, retain_graph=True)
    kept = [t.clone() for t in first]
    second = torch.autograd.grad(loss, arguments.leaves)
    for a, b, c in zip(first, kept, second, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)


@pytest.mark.parametrize("which", ["input", "weight"])
def test_changed_in_place_before_backward(which: str) -> None:
    arguments = Arguments()
    arguments.input = arguments.input * 1
    loss = arguments.call(linear_cross_entropy)
    with torch.no_grad():
        getattr(arguments, which).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


MISTAKES: dict[str, Callable[[Arguments], dict[str, Any]]] = {
    "target too large": lambda a: {"target": torch.full((N,), V)},
    "target negative": lambda a: {"target": torch.full((N,), -1)},
    "target of another length": lambda a: {"target": a.target[1:]},
    "target of two dimensions": lambda a: {"target": a.target[None]},
    "float target": lambda a: {"target": a.target.double()},
    "int32 target": lambda a: {"target": a.target.int()},
    "input of three dimensions": lambda a: {"input": a.input[None]},
    "input of no dimension": lambda a: {"input": a.input[0, 0]},
    "input of another width": lambda a: {"input": a.input[:, 1:]},
    "input of another dtype": lambda a: {"input": a.input.float()},
    "weight of one dimension": lambda a: {"linear_weight": a.weight[0]},
    "bias of another length": lambda a: {"linear_bias": a.bias[1:]},
    "bias of another dtype": lambda a: {"linear_bias": a.bias.float()},
    "class weights of another length": lambda a: {"weight": a.classes[1:]},
    "unknown reduction": lambda a: {"reduction": "average"},
    "label smoothing above 1": lambda a: {"label_smoothing": 1.5},
    "ignore_index with probabilities": lambda a: {"target": torch.ones(N, V), "ignore_index": 1},
    "no tensor": lambda a: {"input": 3},
    "no target": lambda a: {"target": None},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise_what_torch_raises(mistake: str) -> None:
    arguments = Arguments()
    given = {
        "input": arguments.input,
        "linear_weight": arguments.weight,
        "target": arguments.target,
        "linear_bias": arguments.bias,
        **MISTAKES[mistake](arguments),
    }
    found = []
    for function in (linear_cross_entropy, F.linear_cross_entropy):
        with pytest.raises(Exception) as raised:
            function(**given)
        # which attribute is missed first does not matter
        message = "" if raised.type is AttributeError else str(raised.value)
        found.append((raised.type, message))
    assert found[0] == found[1]


OTHERS: dict[str, Callable[[Arguments], dict[str, Any]]] = {
    "bfloat16": lambda a: {
        "input": a.input.bfloat16(),
        "linear_weight": a.weight.bfloat16(),
        "linear_bias": a.bias.bfloat16(),
    },
    "probabilities": lambda a: {"target": torch.rand(N, V, dtype=torch.float64)},
    "smoothed with class weights": lambda a: {"weight": a.classes, "label_smoothing": 0.1},
    "two losses a row": lambda a: {
        "linear_weight": a.weight[:, None].expand(V, 2, H),
        "linear_bias": a.bias[:, None].expand(V, 2),
        "target": a.target[:, None].expand(N, 2),
    },
    "options": lambda a: {"options": nn.LinearCrossEntropyOptions(batch_chunk_size=2)},
    "no rows": lambda a: {"input": a.input[:0], "target": a.target[:0], "reduction": "sum"},
}


@pytest.mark.parametrize("other", OTHERS)
def test_torch_does_what_the_kernel_does_not(other: str) -> None:
    arguments = Arguments()
    given = {
        "input": arguments.input,
        "linear_weight": arguments.weight,
        "target": arguments.target,
        "linear_bias": arguments.bias,
        **OTHERS[other](arguments),
    }
    found = []
    for function in (linear_cross_entropy, F.linear_cross_entropy):
        loss = function(**given)
        found.append([loss, *torch.autograd.grad(loss.sum(), arguments.leaves)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_autocast_computes_in_the_dtype_of_the_weights() -> None:
    arguments = Arguments(torch.float32)
    expected = arguments.call(F.linear_cross_entropy)
    with torch.autocast("cpu", torch.bfloat16), kernels_only():
        loss = arguments.call(linear_cross_entropy)
        arguments.input = arguments.input.bfloat16()  # of a layer within autocast
        narrow = arguments.call(linear_cross_entropy)
        narrow.backward()
    assert loss.dtype == narrow.dtype == torch.float32
    assert torch.isclose(loss, expected) and torch.isclose(narrow, loss, rtol=0.05)
    assert arguments.weight.grad is not None and arguments.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_torch_func(reduction: str) -> None:
    arguments = Arguments()

    def loss(function: Callable[..., Tensor], input: Tensor) -> Tensor:
        given = input, arguments.weight, arguments.target
        return function(*given, reduction=reduction).sum()

    ours, theirs = (
        torch.func.grad(lambda input, f=f: loss(f, input))(arguments.input)
        for f in (linear_cross_entropy, F.linear_cross_entropy)
    )
    assert_close(ours.detach(), theirs.detach(), torch_tolerance(np.float64), what="gradient")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_compile(reduction: str, bias: bool) -> None:
    arguments = Arguments(torch.float32, bias=bias)
    arguments.target[1] = -100
    torch.compiler.reset()
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
    ours = arguments.results(linear_cross_entropy, **options)
    with kernels_only():
        found = arguments.results(compiled, **options)
        with torch.no_grad():
            alone = arguments.call(compiled, **options)
    for value, expected in zip([*found, alone.numpy()], [*ours, ours[0]], strict=True):
        assert_close(value, expected, torch_tolerance(np.float32), what="compiled", terms=V)
    arguments.target[0] = V
    with pytest.raises(IndexError, match=f"Target {V} is out of bounds"):
        arguments.call(compiled, **options)


def test_operators_are_as_they_say() -> None:
    """Schemas, fake kernels and gradients, by torch's own check."""
    arguments = Arguments()
    tensors = arguments.input, arguments.weight, arguments.bias, arguments.target, None
    for reduction in REDUCTIONS:
        gradients = reduction != "none"
        given = (*tensors, -100, 0.1, reduction)
        torch.library.opcheck(module._operator, (*given, gradients))
    upstream = torch.rand(N, dtype=torch.float64)
    fixed = [t.detach() if isinstance(t, Tensor) else t for t in given]
    torch.library.opcheck(module._backward_operator, (*fixed, upstream))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("outputs", [(), (2,)], ids=["", "K-dimensional"])
def test_module_is_torchs(bias: bool, outputs: tuple[int, ...]) -> None:
    made = []
    for kind in (LinearCrossEntropyLoss, nn.LinearCrossEntropyLoss):
        torch.manual_seed(5)
        made.append(kind(H, V, bias=bias, out_features=outputs, label_smoothing=0.1))
    ours, theirs = made
    assert isinstance(ours, nn.LinearCrossEntropyLoss)
    assert repr(ours) == repr(theirs)
    for a, b in ((ours, theirs), (theirs, ours)):
        state = a.state_dict()
        assert list(state) == list(b.state_dict())
        assert all(torch.equal(w, b.state_dict()[name]) for name, w in state.items())
        b.load_state_dict(state)
    input, target = torch.randn(N, H), torch.randint(V, (N, *outputs))
    (loss, *gradients), (expected, *others) = (
        [loss, *torch.autograd.grad(loss, [*m.parameters()])]
        for m in made
        for loss in [m(input, target)]
    )
    for value, wanted in zip([loss, *gradients], [expected, *others], strict=True):
        assert_close(value.detach(), wanted.detach(), torch_tolerance(np.float32), what="", terms=V)


def test_module_refuses_what_torchs_refuses() -> None:
    for options in ({"weight": torch.ones(3)}, {"label_smoothing": 2.0}, {"nonsense": 1}):
        found = []
        for kind in (LinearCrossEntropyLoss, nn.LinearCrossEntropyLoss):
            with pytest.raises((RuntimeError, TypeError)) as raised:
                kind(H, V, **options)
            found.append((raised.type, str(raised.value)))
        assert found[0] == found[1]


def test_module_copies_and_pickles() -> None:
    loss = LinearCrossEntropyLoss(H, V, bias=True, weight=torch.rand(V))
    input, target = torch.randn(N, H), torch.randint(V, (N,))
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(loss),
        pickle.loads(pickle.dumps(loss)),
        torch.load(file, weights_only=False),
    ):
        assert type(twin) is LinearCrossEntropyLoss
        assert torch.equal(twin(input, target), loss(input, target))


def test_several_python_threads() -> None:
    """Calls at the same time give the bits of calls one after another."""
    cases = [Arguments() for _ in range(4)]
    for i, case in enumerate(cases):
        case.input = (case.input.detach() * (i + 1)).requires_grad_()
    expected = [case.results(linear_cross_entropy) for case in cases]
    found: list[list[np.ndarray]] = [[] for _ in cases]

    def work(i: int) -> None:
        for _ in range(20):
            found[i] = cases[i].results(linear_cross_entropy)

    running = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for ours, wanted in zip(found, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_memory_of_gradients_is_used_again() -> None:
    """As long as the weights live, and never while anybody has the gradient."""
    known = len(module._memories)
    h, w = torch.randn(40, 64), nn.Parameter(torch.randn(300, 64))
    target = torch.arange(40)

    def gradient(w: nn.Parameter) -> Tensor:
        w.grad = None
        with kernels_only():
            linear_cross_entropy(h, w, target).backward()
        assert w.grad is not None
        return w.grad

    first = gradient(w)
    want, kept = first.clone(), first.data_ptr()
    assert gradient(w).data_ptr() != kept
    assert torch.equal(first, want)
    del first
    assert gradient(w).data_ptr() == kept
    del w
    gc.collect()
    assert len(module._memories) == known
