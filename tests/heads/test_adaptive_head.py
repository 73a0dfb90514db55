"""Adaptive softmax: torch, finite differences, its own definition; top k, samples, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pynlm import kernels
from pynlm.heads import Adaptive, Full, HeadOptions
from pynlm.layers import Context, Parameters
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import (
    CLOSED_FORM,
    PROBABILITY_SUM,
    chi_square_bound,
    finite_difference_tolerance,
    kernel_tolerance,
    torch_tolerance,
)

N, H, V = 60, 24, 211
CUTOFFS = (13, 30, 101)
TARGETS = np.random.default_rng(2).integers(0, V, N)
WEIGHTS = np.random.default_rng(3).random(N)


def make(
    dtype: Any = np.float64,
    cutoffs: tuple[int, ...] = CUTOFFS,
    size: int = H,
    vocab_size: int = V,
    *,
    div_value: float = 2.0,
    bias: bool = True,
    scale: float = 0.5,
) -> tuple[Adaptive, Parameters]:
    specs = Adaptive.specs("head", vocab_size, size, cutoffs, div_value, bias=bias)
    parameters = Parameters(specs, dtype)
    rng = np.random.default_rng(1)
    for p in parameters.values():
        p.data[...] = scale * rng.standard_normal(p.data.shape)
    return Adaptive(parameters), parameters


def hidden(rows: int = N, size: int = H, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, size)).astype(dtype)


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


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_finite_differences(
    train: Context,
    reduction: str,
    weights: object,
    numeric_gradient: Callable[..., np.ndarray],
) -> None:
    targets = [0, 3, 4, 8, 9, 20, 20, 1, -100, 15]
    head, parameters = make(cutoffs=(4, 9), size=8, vocab_size=21)
    h, rows = hidden(10, 8), len(targets)
    weights = None if weights is None else WEIGHTS[:rows]
    upstream: Any = np.linspace(-1, 2, rows) if reduction == "none" else 0.3

    def loss(ctx: Context) -> Any:
        return head.loss(h, targets, ctx, weights, reduction=reduction)

    score = replace(train, train=False)
    value, backprop = loss(train)
    assert_close(value, loss(score)[0], CLOSED_FORM, what="loss in training")
    dh = backprop(upstream)
    tolerance = finite_difference_tolerance("head")

    def total() -> float:
        return float(np.sum(upstream * loss(score)[0]))

    assert_close(dh, numeric_gradient(total, h), tolerance, what="dh")
    for name, p in parameters.items():
        assert_close(p.densify(), numeric_gradient(total, p.data), tolerance, what=name)


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


def test_no_tokens_at_all(train: Context) -> None:
    head, parameters = make()
    for h, targets in ((hidden(0), []), (hidden(3), [-100] * 3)):
        value, backprop = head.loss(h, targets, train)
        assert value == 0 and backprop is not None
        assert not backprop().any() and not any(p.densify().any() for p in parameters.values())


def test_without_cutoffs_it_is_the_exact_softmax(train: Context) -> None:
    head, parameters = make(cutoffs=())
    full = Full({"head.weight": parameters["head.head.weight"], "head.bias": head.bias})  # type: ignore[dict-item]
    h = hidden()
    assert_same_bits(head(h, TARGETS, train)[0], full(h, TARGETS, train)[0], what="nll")
    assert (head.sample(h, train) == full.sample(h, train)).all()
    one, _ = make(cutoffs=(), vocab_size=1)
    assert not one(h, [0] * N, train)[0].any() and not one.entropy(h).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [0.5, 1e4])
def test_what_the_head_says_fits_together(score: Context, dtype: str, scale: float) -> None:
    """One distribution that adds up to 1, also at logits of +-1e4 and beyond."""
    head, _ = make(dtype, scale=scale, div_value=1.5)
    h = hidden(dtype=dtype)
    if scale > 1:
        h /= H * np.abs(h).max()
    log_prob = head.log_prob(h, score).astype(np.float64)
    assert_close(np.exp(log_prob).sum(1), np.ones(N), PROBABILITY_SUM, what="sum of p")
    tolerance = kernel_tolerance("xent", dtype, "sharp")
    nll, _ = head(h, TARGETS, score)
    assert_close(-nll, log_prob[np.arange(N), TARGETS], tolerance, what="chain rule", terms=V)
    entropy = -(np.exp(log_prob) * log_prob).sum(1)
    assert_close(head.entropy(h, score), entropy, tolerance, what="entropy", terms=V)
    for k in (1, 3, 14, 40, V):
        top, ids = head.top_k(h, k, score)
        assert top.dtype == dtype and ids.dtype == np.int32
        want = -np.sort(-log_prob, axis=1)[:, :k]
        assert_close(top, want, tolerance, what=f"top {k}", terms=V)
        assert_close(np.take_along_axis(log_prob, ids, 1), want, tolerance, what="ids", terms=V)
        assert all(len(set(row)) == k for row in ids.tolist())


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


def test_samples_follow_the_distribution(score: Context) -> None:
    """Chi-square of 100 000 draws; drawing the cluster says nothing about the draw in it."""
    rows = 100_000
    head, _ = make(cutoffs=(5, 20), size=8, vocab_size=60)
    one = hidden(1, 8)
    drawn = head.sample(np.repeat(one, rows, axis=0), score)
    expected = rows * np.exp(head.log_prob(one)[0])
    found = np.bincount(drawn, minlength=60)
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    found = np.append(found[~rare], found[rare].sum())
    cells = expected > 0
    statistic = ((found - expected)[cells] ** 2 / expected[cells]).sum()
    assert statistic < chi_square_bound(int(cells.sum()) - 1)


def test_a_sample_depends_on_its_context_and_row_alone(score: Context) -> None:
    head, _ = make()
    h = np.repeat(hidden(), 10, axis=0)
    drawn = head.sample(h, score)
    assert len(np.unique(np.searchsorted(CUTOFFS, drawn, side="right"))) == 4
    assert (head.sample(h[:77].copy(), score) == drawn[:77]).all()
    for other in (replace(score, step=6), replace(score, seed=4), replace(score, time0=1)):
        assert (head.sample(h, other) != drawn).any()


def test_same_bits_at_any_number_of_threads(train: Context) -> None:
    import pynlm

    threads = pynlm.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            pynlm.set_num_threads(n)
            head, parameters = make("float32", (500, 2000), 64, 9000)
            targets = np.random.default_rng(4).integers(0, 9000, 300)
            nll, backprop = head(hidden(300, 64, "float32"), targets, train)
            assert backprop is not None
            results.append([nll, backprop(), *(p.densify() for p in parameters.values())])
    finally:
        pynlm.set_num_threads(threads)
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert_same_bits(got, want, what="result")


@pytest.mark.parametrize("rows", [1, 3, 300])
def test_packed_weights_give_the_same_bits(rows: int) -> None:
    head, parameters = make("float32", (500, 2000), 64, 9000)
    score = Context(train=False, seed=1)
    h, targets = hidden(rows, 64, "float32"), np.random.default_rng(4).integers(0, 9000, rows)

    def all_it_says() -> list[np.ndarray]:
        top = head.top_k(h, 5)
        return [head(h, targets, score)[0], head.log_prob(h), *top, head.sample(h, score)]

    plain = all_it_says()
    parameters.pack()
    for got, want in zip(all_it_says(), plain, strict=True):
        assert_same_bits(got, want, what="result")


def test_a_steady_step_allocates_nothing(train: Context) -> None:
    head, parameters = make()
    rng, made = np.random.default_rng(4), 0
    for step in range(400):  # clusters have other numbers of tokens in each step
        parameters.zero_grad()
        _, backprop = head(hidden(), rng.integers(0, V, N), train, WEIGHTS)
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
    head, _ = make()
    with pytest.raises(IndexError, match=r"Adaptive head: targets\[1\] must be in \[0, V=211\)"):
        head(hidden(2), [0, 211], train)
    with pytest.raises(ValueError, match=r"Adaptive head top_k: k must be in \[1, 211\], got 212"):
        head.top_k(hidden(), 212)
    with pytest.raises(ValueError, match=r"Adaptive head: targets must be int32 \[N=2\]"):
        head(hidden(2), [[0, 1]], train)
    _, parameters = make()
    with pytest.raises(ValueError, match=r"Adaptive: head.tail.1.0.weight belongs to no cluster"):
        Adaptive({name: p for name, p in parameters.items() if ".tail.0." not in name})
    broken = hidden()
    broken[7] = np.nan
    with pytest.raises(ValueError, match=r"Adaptive head sample: h\[7\] gives no distribution"):
        head.sample(broken, train)


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
