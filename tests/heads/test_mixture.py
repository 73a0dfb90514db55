"""Mixture of softmaxes: against its definition, gradients, predictions, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pynlm import set_num_threads
from pynlm.heads import HeadOptions, Mixture
from pynlm.layers import Context, Embedding, Parameters
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import (
    CLOSED_FORM,
    PROBABILITY_SUM,
    chi_square_bound,
    finite_difference_tolerance,
    kernel_tolerance,
)

N, H, V, K = 6, 3, 7, 2
HIDDEN = np.random.default_rng(0).standard_normal((N, H))
TARGETS = [0, -100, 2, 2, 5, -100]
ALL = [0, 6, 2, 2, 5, 1]
WEIGHTS = np.array([0.5, 3.0, 1.5, 0.0, 2.0, 1.0])


def make(
    dtype: Any = np.float64, *, experts: int = K, bias: bool = True, size: int = V, **options: float
) -> tuple[Mixture, Parameters]:
    p = Parameters(Mixture.specs("head", size, H, experts, bias=bias), dtype)
    rng = np.random.default_rng(1)
    for q in p.values():
        q.data[...] = rng.standard_normal(q.data.shape)
    return Mixture(p, **options), p


def by_definition(h: np.ndarray, p: Parameters, temperature: float = 1.0) -> np.ndarray:
    """Probabilities [N, V] in float64, as the paper writes them."""
    w = {name.removeprefix("head."): q.data.astype(np.float64) for name, q in p.items()}
    prior = np.exp(h @ w["prior.weight"].T)
    prior /= prior.sum(axis=1, keepdims=True)
    total = np.zeros((len(h), len(w["weight"])))
    for k in range(prior.shape[1]):
        rows = slice(k * H, (k + 1) * H)
        e = np.tanh(h @ w["latent.weight"][rows].T + w["latent.bias"][rows])
        z = (e @ w["weight"].T + w.get("bias", 0)) / temperature
        z = np.exp(z - z.max(axis=1, keepdims=True))
        total += prior[:, k : k + 1] * z / z.sum(axis=1, keepdims=True)
    return total


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("experts", [1, 2, 5])
def test_is_what_the_paper_defines(train: Context, dtype: str, bias: bool, experts: int) -> None:
    head, parameters = make(dtype, experts=experts, bias=bias, temperature=0.7)
    want = np.log(by_definition(HIDDEN, parameters, 0.7))
    h = HIDDEN.astype(dtype)
    tolerance = kernel_tolerance("xent", dtype, "sharp")
    log_prob = head.log_prob(h, train)
    assert log_prob.dtype == dtype
    assert_close(log_prob, want, tolerance, what="log_prob")
    for ctx in (train, replace(train, train=False)):
        nll, _ = head(h, ALL, ctx)
        assert_close(nll, -want[np.arange(N), ALL], tolerance, what="nll")
    entropy = -(np.exp(want) * want).sum(axis=1)
    assert_close(head.entropy(h, train), entropy, tolerance, what="entropy")


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weights", [None, WEIGHTS, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_finite_differences(
    train: Context,
    reduction: str,
    weights: object,
    temperature: float,
    numeric_gradient: Callable[..., np.ndarray],
) -> None:
    head, parameters = make(temperature=temperature)
    h = HIDDEN.copy()
    upstream: Any = np.array([1.0, 2.0, -1.0, 0.5, 0.25, 3.0]) if reduction == "none" else 0.3

    def loss(ctx: Context) -> Any:
        return head.loss(h, TARGETS, ctx, weights, reduction=reduction)

    score = replace(train, train=False)
    value, backprop = loss(train)
    assert_close(value, loss(score)[0], CLOSED_FORM, what="loss in training")
    dh = backprop(upstream)

    def total() -> float:
        return float(np.sum(upstream * loss(score)[0]))

    tolerance = finite_difference_tolerance("head")
    assert_close(dh, numeric_gradient(total, h), tolerance, what="dh")
    assert len(parameters) == 5
    for name, p in parameters.items():
        assert_close(p.densify(), numeric_gradient(total, p.data), tolerance, what=name)


def test_two_forwards_in_flight_and_a_dropped_one(train: Context) -> None:
    head, parameters = make()
    want = {name: np.zeros(p.data.shape) for name, p in parameters.items()}
    for sign in (1, -1):
        parameters.zero_grad()
        _, backprop = head(sign * HIDDEN, ALL, train)
        assert backprop is not None
        backprop(0.5)
        for name, p in parameters.items():
            want[name] += p.densify()
    parameters.zero_grad()
    flying = [head(sign * HIDDEN, ALL, train)[1] for sign in (1, -1)]
    head(HIDDEN, ALL, train)
    for backprop in flying:
        assert backprop is not None
        backprop(0.5)
    for name, p in parameters.items():
        assert_close(p.grad, want[name], CLOSED_FORM, what=name)


def test_tied_table(train: Context) -> None:
    specs = [
        *Embedding.specs("embedding", V, H, sparse=False),
        *Mixture.specs("head", V, H, K, tied=True),
    ]
    p = Parameters(specs, np.float64)
    own, parameters = make()
    p["embedding.weight"].data[...] = parameters["head.weight"].data
    for name in set(p) - {"embedding.weight"}:
        p[name].data[...] = parameters[name].data
    for head in (own, Mixture(p, tied=p["embedding.weight"])):
        _, backprop = head(HIDDEN, ALL, train)
        assert backprop is not None
        backprop()
    assert_same_bits(p["embedding.weight"].grad, parameters["head.weight"].grad, what="dw")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_probabilities_add_up_to_one(score: Context, dtype: str, scale: float) -> None:
    """At logits of +-1e4, too, of experts and prior."""
    head, parameters = make(dtype, size=301)
    for name in ("head.weight", "head.prior.weight"):
        parameters[name].data[...] *= scale
    h = HIDDEN.astype(dtype)
    log_prob = head.log_prob(h, score).astype(np.float64)
    assert_close(np.exp(log_prob).sum(1), np.ones(N), PROBABILITY_SUM, what="sum of p")
    tolerance = kernel_tolerance("xent", dtype, "sharp")
    nll, _ = head(h, ALL, score)
    assert np.isfinite(nll).all()
    assert_close(-nll, log_prob[np.arange(N), ALL], tolerance, what="nll", terms=H)
    _, backprop = head(h, ALL, replace(score, train=True))
    assert backprop is not None and np.isfinite(backprop()).all()


def test_top_k_of_many_rows(score: Context) -> None:
    """More rows than a block has, and ties."""
    head, parameters = make(size=50)
    parameters["head.weight"].data[30:40] = parameters["head.weight"].data[0]
    parameters["head.bias"].data[30:40] = parameters["head.bias"].data[0]
    h = np.random.default_rng(2).standard_normal((150, H))
    log_prob = head.log_prob(h, score)
    want = np.argsort(-log_prob, axis=1, kind="stable")
    for k in (1, 3, 50):
        top, ids = head.top_k(h, k, score)
        assert ids.dtype == np.int32 and (ids == want[:, :k]).all()
        assert_same_bits(top, np.take_along_axis(log_prob, want[:, :k], 1), what="top_k")


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_distribution(temperature: float) -> None:
    """Chi-square of 100 000 draws, cells of expected 5 and more."""
    rows, size = 100_000, 60
    head, parameters = make(size=size, temperature=temperature)
    ids = head.sample(np.repeat(HIDDEN[:1], rows, axis=0), Context(train=False, seed=11))
    assert ids.dtype == np.int32
    expected = rows * by_definition(HIDDEN[:1], parameters, temperature)[0]
    found, rare = np.bincount(ids, minlength=size), expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    found = np.append(found[~rare], found[rare].sum())
    cells = expected > 0
    statistic = ((found - expected)[cells] ** 2 / expected[cells]).sum()
    assert statistic < chi_square_bound(int(cells.sum()) - 1)


def test_a_sample_is_a_function_of_its_context(score: Context) -> None:
    head, _ = make()
    h = np.repeat(HIDDEN, 50, axis=0)
    drawn = head.sample(h, score)
    assert (head.sample(h, score) == drawn).all()
    for other in (replace(score, step=6), replace(score, seed=4), replace(score, time0=1)):
        assert (head.sample(h, other) != drawn).any()


def test_threads_change_no_bit() -> None:
    head, parameters = make("float32", size=2000, experts=3)
    h = np.random.default_rng(3).standard_normal((64, H)).astype(np.float32)
    ids = np.random.default_rng(4).integers(0, 2000, 64)
    found = []
    for threads in (1, 2, 3):
        set_num_threads(threads)
        parameters.zero_grad()
        nll, backprop = head(h, ids, Context(train=True))
        assert backprop is not None
        dh = backprop()
        drawn = head.sample(h, Context(train=False))
        grads = [p.grad.copy() for p in parameters.values()]
        found.append([nll, dh, drawn, head.log_prob(h), *grads])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_same_bits(a, b, what="threads")


def test_one_word_no_rows_and_all_ignored(train: Context) -> None:
    head, parameters = make(size=1)
    nll, backprop = head(HIDDEN, [0] * N, train)
    assert_close(nll, np.zeros(N), CLOSED_FORM, what="nll of the only word")
    assert backprop is not None
    assert_close(backprop(), np.zeros((N, H)), CLOSED_FORM, what="dh")
    assert head.top_k(HIDDEN, 1, train)[1].tolist() == head.sample(HIDDEN, train)[:, None].tolist()
    head, parameters = make()
    none = np.empty((0, H))
    nll, backprop = head(none, np.empty(0, np.int32), train)
    assert nll.shape == (0,) and backprop is not None and backprop().shape == (0, H)
    assert head.entropy(none, train).shape == head.sample(none, train).shape == (0,)
    assert [x.shape for x in head.top_k(none, 2, train)] == [(0, 2), (0, 2)]
    value, backprop = head.loss(HIDDEN, [-100] * N, train)
    assert value == 0 and backprop is not None and not backprop().any()
    assert not any(p.densify().any() for p in parameters.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"targets": [0, 1, 2, 3, 4, 7]},
            IndexError,
            r"targets\[5\] must be in \[0, V=7\), got 7",
        ),
        ({"targets": [0, 1]}, ValueError, r"targets must be int32 \[N=6\], got int32 \[2\]"),
        ({"targets": [0.5] * N}, TypeError, "targets must be integers"),
        ({"h": np.ones((N, 4))}, ValueError, r"h must be float64 \[N=6, H=3\], got float64 "),
        ({"h": HIDDEN.astype(np.float32)}, TypeError, r"h must be float64 \[N, H=3\], got float32"),
        ({"weights": [1.0]}, ValueError, r"weights must be \[N=6\] or a number"),
    ],
)
def test_errors(
    train: Context, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    head, parameters = make()
    given: dict[str, Any] = {"h": HIDDEN, "targets": ALL, "weights": None, **change}
    with pytest.raises(error, match=f"^Mixture head: {message}"):
        head(given["h"], given["targets"], train, given["weights"])
    with pytest.raises(error, match="Mixture head"):
        head.loss(given["h"], given["targets"], train, given["weights"])
    assert not any(p.densify().any() for p in parameters.values())


def test_errors_of_predictions(train: Context) -> None:
    head, _ = make()
    for predict in (head.log_prob, head.entropy, head.sample):
        with pytest.raises(ValueError, match=r"Mixture head: h must be .*, got float64 \[6, 4\]"):
            predict(np.ones((N, 4)), train)
    with pytest.raises(ValueError, match=r"Mixture head top_k: k must be in \[1, 7\], got 0"):
        head.top_k(HIDDEN, 0)
    broken = HIDDEN.copy()
    broken[2] = math.nan
    with pytest.raises(ValueError, match=r"Mixture head sample: h\[2\] gives no distribution"):
        head.sample(broken, train)


def test_options(train: Context) -> None:
    options = HeadOptions(kind="mixture", experts=3, temperature=2.0)
    parameters = Parameters(options.specs("head", V, H, bias=False, tied=False))
    head = options.make(parameters, None)
    assert isinstance(head, Mixture) and head.experts == 3 and head.temperature == 2.0
    assert parameters["head.latent.weight"].data.shape == (9, 3)
    for experts in (0, 1001):
        with pytest.raises(ValueError, match=rf"experts must be in \[1, 1000\], got {experts}"):
            HeadOptions(kind="mixture", experts=experts)
        with pytest.raises(ValueError, match=rf"Mixture: experts must be .* got {experts}"):
            Mixture.specs("head", V, H, experts)
    with pytest.raises(TypeError, match="experts must be an integer"):
        HeadOptions(kind="mixture", experts=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature must be in"):
        make(temperature=0.0)
    for kind, refused in (("mixture", {"z_loss": 0.1}), ("full", {"experts": 3})):
        with pytest.raises(ValueError, match=f"{next(iter(refused))} is not defined for kind"):
            HeadOptions(kind=kind, **refused)  # type: ignore[arg-type]


def test_training_keeps_no_logits(train: Context) -> None:
    """What the pool lends is of N K H or V H numbers, never of N V."""
    head, _ = make(size=500)
    lent: list[int] = []
    lease = head.pool.lease
    head.pool.lease = lambda shape, *a: (lent.append(math.prod(shape)), lease(shape, *a))[1]  # type: ignore[method-assign]
    _, backprop = head(np.repeat(HIDDEN, 40, axis=0), ALL * 40, train)
    assert backprop is not None
    backprop()
    assert lent and max(lent) <= max(240 * K * H, 500 * H)
