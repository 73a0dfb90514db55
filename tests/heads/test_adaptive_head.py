"""Adaptive softmax: torch, clusters without tokens, top k, cutoffs, options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pynlm import kernels
from pynlm.heads import Adaptive, Full, HeadOptions
from pynlm.layers import Context, Parameters
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM, torch_tolerance

N, H, V = 60, 24, 211
CUTOFFS = (13, 30, 101)
TARGETS = np.random.default_rng(2).integers(0, V, N)


def make(
    dtype: Any = np.float64,
    cutoffs: tuple[int, ...] = CUTOFFS,
    vocab_size: int = V,
    *,
    div_value: float = 2.0,
    bias: bool = True,
) -> tuple[Adaptive, Parameters]:
    specs = Adaptive.specs("head", vocab_size, H, cutoffs, div_value, bias=bias)
    parameters = Parameters(specs, dtype)
    rng = np.random.default_rng(1)
    for p in parameters.values():
        p.data[...] = 0.5 * rng.standard_normal(p.data.shape)
    return Adaptive(parameters), parameters


def hidden(rows: int = N, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, H)).astype(dtype)


def test_layout() -> None:
    head, parameters = make(div_value=2.5)
    assert (head.cutoffs, head.shortlist, head.vocab_size) == (CUTOFFS, 13, V)
    assert {name: p.data.shape for name, p in parameters.items()} == {
        "head.head.weight": (16, 24),
        "head.head.bias": (16,),
        "head.tail.0.0.weight": (9, 24),
        "head.tail.0.1.weight": (17, 9),
        "head.tail.1.0.weight": (3, 24),
        "head.tail.1.1.weight": (71, 3),
        "head.tail.2.0.weight": (1, 24),
        "head.tail.2.1.weight": (110, 1),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cutoffs", [CUTOFFS, (1,), (210,), (1, 2, 3)])
def test_agrees_with_torch(dtype: str, bias: bool, cutoffs: tuple[int, ...]) -> None:
    """Values and gradients, after moving torch's state dict here; and moving ours there."""
    torch = pytest.importorskip("torch")
    tolerance = torch_tolerance(dtype)
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(
        H, V, list(cutoffs), div_value=2.0, head_bias=bias, dtype=getattr(torch, dtype)
    )
    head, parameters = make(dtype, cutoffs, bias=bias)
    state = {f"head.{name}": x.numpy() for name, x in theirs.state_dict().items()}
    parameters.load_state_dict(state)
    h = torch.tensor(hidden(dtype=dtype), requires_grad=True)
    output, loss = theirs(h, torch.tensor(TARGETS))
    loss.backward()
    got, backprop = head.loss(h.detach().numpy(), TARGETS, Context(train=True))
    assert backprop is not None
    assert_close(got, loss.detach().numpy(), tolerance, what="loss")
    assert_close(backprop(), h.grad.numpy(), tolerance, what="dh", terms=V)
    for name, p in theirs.named_parameters():
        gradient = parameters[f"head.{name}"].densify()
        want = np.zeros_like(gradient) if p.grad is None else p.grad.numpy()
        assert_close(gradient, want, tolerance, what=f"d{name}", terms=N)
    with torch.no_grad():
        log_prob, predicted = theirs.log_prob(h).numpy(), theirs.predict(h).numpy()
    nll, _ = head(h.detach().numpy(), TARGETS, Context(train=False))
    assert_close(nll, -output.detach().numpy(), tolerance, what="nll")
    assert_close(head.log_prob(h.detach().numpy()), log_prob, tolerance, what="log_prob", terms=H)
    assert (head.top_k(h.detach().numpy(), 1)[1][:, 0] == predicted).all()

    ours, parameters = make(dtype, cutoffs, bias=bias)
    moved = parameters.state_dict().items()
    theirs.load_state_dict({name.removeprefix("head."): torch.tensor(x) for name, x in moved})
    with torch.no_grad():
        log_prob = theirs.log_prob(h).numpy()
    assert_close(ours.log_prob(h.detach().numpy()), log_prob, tolerance, what="moved", terms=H)


def test_a_cluster_without_tokens_costs_nothing(
    train: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, parameters = make()
    calls = []
    gradients = kernels.xent_gradients
    monkeypatch.setattr(
        "pynlm.heads.adaptive.xent_gradients",
        lambda **given: (calls.append(given["w"].shape[0]), gradients(**given)),
    )
    _, backprop = head(hidden(4), [0, 5, 40, 100], train)
    assert backprop is not None
    backprop()
    assert calls == [16, 71]
    states = {name.removeprefix("head."): p.state for name, p in parameters.items()}
    assert states == {
        "head.weight": "dense",
        "head.bias": "dense",
        "tail.0.0.weight": "unset",
        "tail.0.1.weight": "unset",
        "tail.1.0.weight": "dense",
        "tail.1.1.weight": "dense",
        "tail.2.0.weight": "unset",
        "tail.2.1.weight": "unset",
    }
    assert not parameters["head.tail.2.1.weight"].densify().any()


def test_without_cutoffs_it_is_the_exact_softmax(train: Context) -> None:
    head, parameters = make(cutoffs=())
    full = Full({"head.weight": parameters["head.head.weight"], "head.bias": head.bias})  # type: ignore[dict-item]
    h = hidden()
    assert_same_bits(head(h, TARGETS, train)[0], full(h, TARGETS, train)[0], what="nll")
    assert (head.sample(h, train) == full.sample(h, train)).all()
    one, _ = make(cutoffs=(), vocab_size=1)
    assert not one(h, [0] * N, train)[0].any() and not one.entropy(h).any()


def test_top_k_opens_only_what_it_must(score: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    head, parameters = make()
    bias = parameters["head.head.bias"].data
    top_k = kernels.xent_top_k
    opened: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "pynlm.heads.adaptive.xent_top_k",
        lambda **given: (opened.append((len(given["h"]), len(given["w"]))), top_k(**given)),
    )
    bias[:13] += 100
    head.top_k(hidden(), 5, score)
    assert opened == [(N, 16)]
    bias[14] += 200
    opened.clear()
    _, ids = head.top_k(hidden(), 5, score)
    assert opened == [(N, 16), (N, 71)]
    assert ((ids >= 30) & (ids < 101)).all()


@pytest.mark.parametrize("k", [2, 5])
def test_equal_tokens_come_in_order(score: Context, k: int) -> None:
    head, parameters = make(cutoffs=(2, 4), vocab_size=6)
    for p in parameters.values():
        p.data.fill(0)
    # shortlist 1/4 each, every token of a cluster 1/8
    top, ids = head.top_k(hidden(3), k, score)
    assert (ids == np.arange(k)).all()
    want = np.log([0.25, 0.25, 0.125, 0.125, 0.125])[:k]
    assert_close(top, np.broadcast_to(want, top.shape), CLOSED_FORM, what="log_prob")


@pytest.mark.parametrize("dead", [3, 14])  # a word of the shortlist, a cluster
def test_top_k_of_impossible_tokens_names_each_once(score: Context, dead: int) -> None:
    head, parameters = make()
    parameters["head.head.bias"].data[dead] = -np.inf
    log_prob, ids = head.top_k(hidden(), V)
    assert (np.sort(ids) == np.arange(V)).all()
    assert_same_bits(log_prob, np.take_along_axis(head.log_prob(hidden()), ids, 1), what="top k")


@pytest.mark.parametrize("where", ["hidden", "head", "tail"])
def test_top_k_shows_nan(score: Context, where: str) -> None:
    head, parameters = make()
    h, broken = hidden(), slice(None)
    if where == "hidden":
        h[7], broken = np.nan, slice(7, 8)
    else:
        name = "head.head.weight" if where == "head" else "head.tail.2.1.weight"
        parameters[name].data[5] = np.nan
    log_prob, ids = head.top_k(h, V)
    assert np.isnan(log_prob[broken]).all() and np.isnan(log_prob).any(1).sum() in (1, N)
    assert ids.min() >= 0 and ids.max() < V


def test_steps_of_other_tokens_soon_allocate_little(train: Context) -> None:
    head, parameters = make()
    rng, made = np.random.default_rng(4), 0
    for step in range(400):  # clusters have other numbers of tokens in each step
        parameters.zero_grad()
        _, backprop = head(hidden(), rng.integers(0, V, N), train, np.ones(N))
        assert backprop is not None
        backprop()
        made = head.pool.allocations if step == 199 else made
    # a cluster may have more tokens than ever before
    assert head.pool.allocations <= 1.15 * made


@pytest.mark.parametrize(
    ("cutoffs", "error", "message"),
    [
        ((0, 5), ValueError, r"cutoffs\[0\] must be in \[1, 210\], got 0"),
        ((5, 211), ValueError, r"cutoffs\[1\] must be in \[1, 210\], got 211"),
        ((5, 5), ValueError, r"cutoffs must be strictly increasing, got cutoffs\[1\]=5 after 5"),
        ((9, 5), ValueError, "cutoffs must be strictly increasing"),
        ((5.0, 9), TypeError, r"cutoffs\[0\] must be an integer, got float 5.0"),
        (5, TypeError, "cutoffs must be a sequence of integers, got 5"),
        (np.array(5), TypeError, "cutoffs must be a sequence of integers, got 5"),
        (np.array([5.0, 9.0]), TypeError, r"cutoffs\[0\] must be an integer, got float 5.0"),
        (np.array([[5, 9]]), TypeError, r"cutoffs\[0\] must be an integer, got list"),
    ],
)
def test_cutoff_errors(cutoffs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^Adaptive: {message}"):
        Adaptive.specs("head", V, H, cutoffs)


def test_cutoffs_may_be_an_array() -> None:
    given = np.array(CUTOFFS)
    assert Adaptive.specs("head", V, H, given, 2.0) == Adaptive.specs("head", V, H, CUTOFFS, 2.0)
    options = HeadOptions(kind="adaptive", cutoffs=given)  # type: ignore[arg-type]
    assert options.cutoffs == CUTOFFS and {type(c) for c in options.cutoffs} == {int}


def test_errors(train: Context) -> None:
    with pytest.raises(ValueError, match=r"div_value=4 leaves tail 2 no dimension: 24 // 4\^3 = 0"):
        Adaptive.specs("head", V, H, CUTOFFS, 4.0)
    with pytest.raises(ValueError, match=r"Adaptive: div_value must be in \[1, inf\), got 0.5"):
        Adaptive.specs("head", V, H, CUTOFFS, 0.5)
    with pytest.raises(ValueError, match=r"cutoffs\[0\] must be in \[1, 0\], got 1"):
        Adaptive.specs("head", 1, H, (1,))
    head, parameters = make()
    with pytest.raises(ValueError, match=r"Adaptive head: targets must be int32 \[N=2\]"):
        head(hidden(2), [[0, 1]], train)
    with pytest.raises(ValueError, match=r"Adaptive: head.tail.1.0.weight belongs to no cluster"):
        Adaptive({name: p for name, p in parameters.items() if ".tail.0." not in name})


def test_options_make_the_head() -> None:
    options = HeadOptions(kind="adaptive", cutoffs=CUTOFFS, div_value=2.0)
    assert HeadOptions.from_dict(options.to_dict()) == options
    assert HeadOptions.from_dict({**options.to_dict(), "cutoffs": list(CUTOFFS)}) == options
    parameters = Parameters(options.specs("head", V, H, bias=True, tied=False))
    head = options.make(parameters, None)
    assert isinstance(head, Adaptive) and head.cutoffs == CUTOFFS
    for name in ("label_smoothing", "z_loss"):
        with pytest.raises(ValueError, match=f"HeadOptions: {name} is not defined for kind 'adap"):
            HeadOptions(kind="adaptive", **{name: 0.1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="HeadOptions: temperature is not defined for kind 'adap"):
        HeadOptions(kind="adaptive", temperature=2.0)
    with pytest.raises(ValueError, match="HeadOptions: cutoffs is not defined for kind 'full'"):
        HeadOptions(cutoffs=(3,))
    with pytest.raises(ValueError, match="HeadOptions: cutoffs must be strictly increasing"):
        HeadOptions(kind="adaptive", cutoffs=(5, 3))
    with pytest.raises(ValueError, match="HeadOptions: kind 'adaptive' needs cutoffs"):
        HeadOptions(kind="adaptive").specs("head", V, H, bias=True, tied=False)
