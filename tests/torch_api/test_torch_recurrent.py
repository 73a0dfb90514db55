"""pynlm.torch's LSTM, GRU and RNN beside torch.nn's: values, gradients, shapes, mistakes."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import pynlm.torch
from pynlm.testing.torch_modules import H, I, P, assert_same, outcome, packed, pair, states, tensors
from pynlm.torch import module as shared

T, B = 6, 4
KINDS = ("LSTM", "GRU", "RNN")
SETTINGS: list[dict[str, Any]] = [
    {"num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": first}
    for layers, both, (bias, first) in product(
        (1, 2, 3), (False, True), ((True, False), (False, True))
    )
]
LENGTHS = {"full": None, "ragged": [3, 6, 1, 6], "equal": [6, 6, 6, 6], "sorted": [6, 4, 4, 2]}


def ids(settings: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in settings.items()) or "default"


def data(kind: str, settings: dict[str, Any], dtype: torch.dtype) -> tuple[torch.Tensor, Any]:
    """Input [T, B, I] or [B, T, I], and a state."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"dtype": dtype, "requires_grad": True}
    k = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
    shape = (B, T, I) if settings.get("batch_first") else (T, B, I)
    x = torch.randn(shape, **options)
    return x, states(kind, (k, B), settings.get("proj_size", 0), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=ids)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_torch(kind: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Outputs and all gradients, with a state and without."""
    theirs, ours = pair(kind, I, H, dtype=dtype, **settings)
    x, hx = data(kind, settings, dtype)
    for state in (None, hx):
        assert_same(outcome(ours, x, state), outcome(theirs, x, state))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("settings", [s for s in SETTINGS if s["bias"]], ids=ids)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(kind: str, settings: dict[str, Any], lengths: list[int] | None) -> None:
    """In and out, rows in any order."""
    if lengths is None:
        lengths = [T] * B
    theirs, ours = pair(kind, I, H, dtype=torch.float64, **settings)
    x, hx = data(kind, settings, torch.float64)
    for state in (None, hx):
        given = packed(x, lengths)
        assert_same(outcome(ours, given, state), outcome(theirs, given, state))
        got, want = ours(given, state)[0], theirs(given, state)[0]
        for a, b in zip(got[1:], want[1:], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_in_falling_order(kind: str) -> None:
    """A PackedSequence without indices."""
    theirs, ours = pair(kind, I, H, dtype=torch.float64, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    given = sorted_rows(x)
    assert given.sorted_indices is None
    assert_same(outcome(ours, given), outcome(theirs, given))


@pytest.mark.parametrize("lengths", [None, [3, 6, 1, 6]], ids=["full", "ragged"])
@pytest.mark.parametrize("settings", [s for s in SETTINGS if not s["batch_first"]], ids=ids)
def test_projection(settings: dict[str, Any], lengths: list[int] | None) -> None:
    settings = {**settings, "proj_size": P}
    theirs, ours = pair("LSTM", I, H, dtype=torch.float64, **settings)
    x, hx = data("LSTM", settings, torch.float64)
    given = x if lengths is None else packed(x, lengths)
    assert_same(outcome(ours, given, hx), outcome(theirs, given, hx))


def test_relu() -> None:
    theirs, ours = pair("RNN", I, H, 2, "relu", dtype=torch.float64)
    x, hx = data("RNN", {"num_layers": 2}, torch.float64)
    assert ours.nonlinearity == "relu" and ours.mode == "RNN_RELU"
    assert_same(outcome(ours, x, hx), outcome(theirs, x, hx))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_unbatched(kind: str, first: bool) -> None:
    theirs, ours = pair(kind, I, H, 2, bidirectional=True, batch_first=first)
    x = torch.randn(T, I, requires_grad=True)
    hx = states(kind, (4,))
    for state in (None, hx):
        assert_same(outcome(ours, x, state), outcome(theirs, x, state))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (5, 1), (2, 17)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_small_and_odd_sizes(kind: str, shape: tuple[int, int]) -> None:
    theirs, ours = pair(kind, 7, 13, dtype=torch.float64, bidirectional=True)
    x = torch.randn(*shape, 7, dtype=torch.float64, requires_grad=True)
    assert_same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("lengths", [None, [3, 6, 1, 6]], ids=["full", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_draws_torchs_masks(kind: str, lengths: list[int] | None) -> None:
    """One seed gives torch's numbers; evaluation drops nothing."""
    theirs, ours = pair(kind, I, H, 3, bidirectional=True, dropout=0.4, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    given = x if lengths is None else packed(x, lengths)
    assert_same(outcome(ours, given), outcome(theirs, given))
    assert not torch.equal(*(next(tensors(ours(given))) for _ in range(2)))
    theirs.eval(), ours.eval()
    assert_same(outcome(ours, given), outcome(theirs, given))
    assert torch.equal(*(next(tensors(ours(given))) for _ in range(2)))


@pytest.mark.parametrize("kind", KINDS)
def test_everything_dropped(kind: str) -> None:
    theirs, ours = pair(kind, I, H, 2, dropout=1.0)
    x = torch.randn(T, B, I, requires_grad=True)
    assert_same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("kind", KINDS)
def test_same_parameters_and_words(kind: str) -> None:
    """Values after a seed, names, order, state dict, repr, classes, lists of weights."""
    settings = {"bidirectional": True, "bias": True, "dropout": 0.1, "batch_first": True}
    theirs, ours = pair(kind, I, H, 2, **settings)
    for (name, p), (other, q) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(p, q)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, getattr(torch.nn, kind))
    assert [[w.shape for w in one] for one in ours.all_weights] == [
        [w.shape for w in one] for one in theirs.all_weights
    ]
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    ours.flatten_parameters()


@pytest.mark.parametrize("kind", KINDS)
def test_strided_input(kind: str) -> None:
    """Slices, transposes and expanded tensors."""
    theirs, ours = pair(kind, I, H, dtype=torch.float64)
    whole = torch.randn(I, B, 2 * T, dtype=torch.float64, requires_grad=True)
    given = whole[:, :, ::2].permute(2, 1, 0)
    one = torch.randn(1, 1, I, dtype=torch.float64).expand(T, B, I)
    for x in (given, one):
        assert torch.allclose(ours(x)[0], theirs(x)[0])
    ours(given)[0].sum().backward()
    got, whole.grad = whole.grad, None
    theirs(given)[0].sum().backward()
    assert torch.allclose(got, whole.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_strided_weights(kind: str) -> None:
    theirs, ours = pair(kind, I, H)
    for module in (theirs, ours):
        w = module.weight_ih_l0
        module.weight_ih_l0 = torch.nn.Parameter(w.detach().t().contiguous().t())
        assert not module.weight_ih_l0.is_contiguous()
    x = torch.randn(T, B, I, requires_grad=True)
    assert_same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("which", ["y", "h", "input", "bias_hh_l0"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_only_where_wanted(kind: str, which: str) -> None:
    """Of one output only, or for one leaf only."""
    theirs, ours = pair(kind, I, H, 2, dtype=torch.float64)
    found = []
    for module in (theirs, ours):
        torch.manual_seed(0)
        x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=which != "bias_hh_l0")
        if which in ("input", "bias_hh_l0"):
            for name, p in module.named_parameters():
                p.requires_grad_(name == which)
        y, h = module(x)
        total = (next(tensors(h)) if which == "h" else y).square().sum()
        total.backward()
        grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        found.append(grads | ({} if x.grad is None else {"x": x.grad}))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients(kind: str) -> None:
    theirs, ours = pair(kind, I, H, 2, bidirectional=True)
    x = torch.randn(T, B, I)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = list(tensors(ours(x)))
            for a, b in zip(found, tensors(theirs(x)), strict=True):
                assert torch.allclose(a, b, atol=1e-6)
                assert not a.requires_grad and a.is_inference() == b.is_inference()
    for p in ours.parameters():
        p.requires_grad_(False)
    assert not ours(x)[0].requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_backward_twice(kind: str) -> None:
    """With the graph kept, the same gradients; without, torch's error; and for changed tensors."""
    _, ours = pair(kind, I, H, 2)
    x = torch.randn(T, B, I, requires_grad=True)
    y = ours(x)[0]
    leaves = [x, *ours.parameters()]
    first = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(y.sum(), leaves)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), leaves)
    y = ours(x)[0]
    with torch.no_grad():
        ours.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_and_gradients_of_gradients(kind: str) -> None:
    _, ours = pair(kind, 2, 3, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensors(ours(x)))

    leaves = (x, *ours.parameters())
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, (x,))
    theirs, ours = pair(kind, I, H, 2, dropout=0.5, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        given = packed(x, [2, 6, 6, 1])
        (g,) = torch.autograd.grad(module(given)[0].data.tanh().sum(), x, create_graph=True)
        own = [x, *module.parameters()]
        found.append(torch.autograd.grad(g.square().sum(), own, allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b)


def test_gradients_of_gradients_know_their_inputs() -> None:
    """A module called twice: the second call's input depends on the weights, too."""
    theirs, ours = pair("GRU", H, H, dtype=torch.float64)
    x = torch.randn(T, B, H, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (theirs, ours):
        y = module(module(x)[0])[0]
        first = torch.autograd.grad(y.sum(), list(module.parameters()), create_graph=True)
        total = sum(g.square().sum() for g in first)
        found.append(dict(enumerate(torch.autograd.grad(total, [x, *module.parameters()]))))
    assert_same(found[1], found[0], terms=10_000)


def sorted_rows(x: torch.Tensor) -> torch.nn.utils.rnn.PackedSequence:
    """Packed without indices."""
    return torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 5, 3, 1]))


BAD: dict[str, Any] = {
    "four axes": lambda k: (torch.zeros(1, T, B, I), None),
    "one axis": lambda k: (torch.zeros(I), None),
    "width": lambda k: (torch.zeros(T, B, I + 1), None),
    "dtype": lambda k: (torch.zeros(T, B, I, dtype=torch.float64), None),
    "integers": lambda k: (torch.zeros(T, B, I, dtype=torch.int64), None),
    "state rows": lambda k: (torch.zeros(T, B, I), states(k, (1, B + 1))),
    "state layers": lambda k: (torch.zeros(T, B, I), states(k, (2, B))),
    "state axes": lambda k: (torch.zeros(T, B, I), states(k, (B,))),
    "state of unbatched": lambda k: (torch.zeros(T, I), states(k, (1, B))),
    "state dtype": lambda k: (torch.zeros(T, B, I), states(k, (1, B), dtype=torch.float64)),
    "no steps": lambda k: (torch.zeros(0, B, I), None),
    "state kind": lambda k: (
        torch.zeros(T, B, I),
        torch.zeros(1, B, H) if k == "LSTM" else (torch.zeros(1, B, H),) * 2,
    ),
    "packed width": lambda k: (packed(torch.zeros(T, B, I + 1), [1, 2, 3, 6]), None),
    "packed state": lambda k: (sorted_rows(torch.zeros(T, B, I)), states(k, (1, B + 1))),
    "no tensor": lambda k: ([[1.0]], None),
}


@pytest.mark.parametrize("mistake", BAD)
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}], ids=["plain", "variant"])
@pytest.mark.parametrize("kind", KINDS)
def test_mistakes(kind: str, mistake: str, options: dict[str, Any]) -> None:
    """The exceptions of torch, in its words."""
    theirs, _ = pair(kind, I, H)
    ours = getattr(pynlm.torch, kind)(I, H, **options)
    with pytest.raises(Exception) as wanted:
        theirs(*BAD[mistake](kind))
    with pytest.raises(wanted.type) as got:
        ours(*BAD[mistake](kind))
    if not options:
        assert str(got.value) == str(wanted.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_size": 0, "hidden_size": H},
        {"input_size": I, "hidden_size": 0},
        {"input_size": I, "hidden_size": H, "num_layers": 0},
        {"input_size": I, "hidden_size": H, "dropout": 2.0},
        {"input_size": I, "hidden_size": H, "proj_size": H},
        {"input_size": I, "hidden_size": H, "bias": 1},
        {"input_size": 1.5, "hidden_size": H},
        {"input_size": I, "hidden_size": H, "unknown": 1},
        {"input_size": I},
    ],
    ids=ids,
)
@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_in_settings(kind: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(Exception) as wanted:
        getattr(torch.nn, kind)(**arguments)
    with pytest.raises(wanted.type):
        getattr(pynlm.torch, kind)(**arguments)


def test_mistakes_in_variants() -> None:
    with pytest.raises(ValueError, match=r"GRU: peephole is not defined for this cell, only for"):
        pynlm.torch.GRU(I, H, peephole=True)
    with pytest.raises(ValueError, match=r"zoneout must be in \[0, 1\)"):
        pynlm.torch.LSTM(I, H, zoneout=1.0)
    with pytest.raises(TypeError, match="layer_norm must be a bool"):
        pynlm.torch.LSTM(I, H, layer_norm=1)
    with pytest.raises(TypeError):
        pynlm.torch.LSTM(I, H, projection=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_other_dtypes_are_torchs(kind: str, dtype: torch.dtype) -> None:
    theirs, ours = pair(kind, I, H, dtype=dtype)
    x = torch.randn(T, B, I).to(dtype)
    with torch.no_grad():
        for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
            assert torch.equal(a, b) and a.dtype == dtype
    variant = getattr(pynlm.torch, kind)(I, H, dtype=dtype, zoneout=0.1)
    with pytest.raises(NotImplementedError, match=rf"{kind}: a cell with zoneout=0.1 needs"):
        variant(x)


@pytest.mark.parametrize("kind", KINDS)
def test_meta_device(kind: str) -> None:
    """Shapes without memory, by torch's own module."""
    theirs, ours = pair(kind, I, H, 2, device="meta")
    x = torch.zeros(T, B, I, device="meta")
    for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        assert a.shape == b.shape and a.is_meta


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch_is_torchs(kind: str) -> None:
    theirs, ours = pair(kind, I, H)
    x = torch.zeros(T, 0, I)
    for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        assert a.shape == b.shape


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_keeps_the_weights_dtype(kind: str) -> None:
    """Computed in float32, whatever came before made of the input."""
    theirs, ours = pair(kind, I, H)
    x = torch.randn(T, B, I)
    want = list(tensors(theirs(x)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = list(tensors(ours(x)))
        half = ours(x.bfloat16(), states(kind, (1, B), dtype=torch.bfloat16))[0]
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32 and torch.allclose(a, b, atol=1e-6)
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match="does not match weight dtype"):
        ours(x.bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_to_another_dtype(kind: str) -> None:
    theirs, ours = pair(kind, I, H, 2)
    x = torch.randn(T, B, I, requires_grad=True)
    ours(x)
    theirs.double(), ours.double()
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    assert_same(outcome(ours, x), outcome(theirs, x))


def test_changed_weights_count_at_once() -> None:
    """Optimiser steps, new data, new parameters."""
    theirs, ours = pair("LSTM", I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    outcome(ours, x)
    for module in (theirs, ours):
        torch.manual_seed(5)
        with torch.no_grad():
            module.weight_hh_l0.mul_(0.5)
        module.weight_ih_l0.data = torch.randn(4 * H, I)
        module.bias_ih_l0 = torch.nn.Parameter(torch.randn(4 * H))
    assert_same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("settings", [*SETTINGS, {"num_layers": 2, "dropout": 0.5}], ids=ids)
@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_few_small_steps_are_torchs(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, and as fast; more of them are not."""
    theirs, ours = pair(kind, I, H, **settings)
    x, hx = data(kind, settings, torch.float32)
    one, three = (x[:, :1], x[:, :3]) if settings.get("batch_first") else (x[:1], x[:3])
    assert "RecurrentStack" in graph(ours(one)[0])
    monkeypatch.setattr(shared, "SMALL_STEP", 10**9)
    for state in (None, hx):
        torch.manual_seed(1)
        y = ours(one, state)[0]
        torch.manual_seed(1)
        assert torch.equal(y, theirs(one, state)[0])
        assert "RecurrentStack" not in graph(y)
        torch.manual_seed(1)
        found = outcome(ours, one, state)
        torch.manual_seed(1)
        assert_same(found, outcome(theirs, one, state))
    assert "RecurrentStack" in graph(ours(three)[0])


def graph(y: torch.Tensor) -> str:
    """What a tensor was computed by, views left out."""
    node: Any = y.grad_fn
    while type(node).__name__.startswith(("Transpose", "Squeeze", "Unsqueeze")):
        node = node.next_functions[0][0]
    return type(node).__name__


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_mistakes_in_small_steps(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SMALL_STEP", 10**6)
    theirs, ours = pair(kind, I, H)
    x, h = torch.zeros(1, B, I), torch.zeros(1, B, H)
    bad: list[tuple[Any, ...]] = [
        (torch.zeros(1, B, I + 1),),
        (x.double(),),
        (x, torch.zeros(1, B + 1, H)),
        (x, torch.zeros(B, H)),
        (x, h.double()),
        (x, (h, h)),
        (x, "state"),
    ]
    for given in bad:
        with pytest.raises(Exception) as wanted:
            theirs(*given)
        with pytest.raises(type(wanted.value)) as got:
            ours(*given)
        assert str(got.value) == str(wanted.value)
    assert ours(x[:, :0])[0].shape == (1, 0, H)
