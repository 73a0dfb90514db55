"""Reduced losses: weights, ignored targets, upstream gradients, smoothing, z-loss, temperature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pynlm.heads import Full, HeadOptions
from pynlm.layers import Context, Parameters
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import (
    CLOSED_FORM,
    PROBABILITY_SUM,
    finite_difference_tolerance,
    kernel_tolerance,
    torch_tolerance,
)

N, H, V = 6, 3, 7
HIDDEN = np.random.default_rng(0).standard_normal((N, H))
TARGETS = [0, -100, 2, 2, 5, -100]
WEIGHTS = np.array([0.5, 3.0, 1.5, 0.0, 2.0, 1.0])
OPTIONS: list[dict[str, float]] = [
    {},
    {"label_smoothing": 0.2},
    {"z_loss": 0.3},
    {"temperature": 1.7},
    {"label_smoothing": 0.2, "z_loss": 0.3, "temperature": 0.6},
]


def make(dtype: Any = np.float64, **options: float) -> tuple[Full, Parameters]:
    p = Parameters(Full.specs("head", V, H), dtype)
    for q in p.values():
        q.data[...] = np.random.default_rng(1).standard_normal(q.data.shape)
    return Full(p, **options), p


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weights", [None, WEIGHTS, 0.5])
def test_finite_differences(
    train: Context,
    reduction: str,
    weights: object,
    options: dict[str, float],
    numeric_gradient: Callable[..., np.ndarray],
) -> None:
    head, parameters = make(**options)
    h = HIDDEN.copy()
    upstream: Any = np.array([1.0, 2.0, -1.0, 0.5, 0.25, 3.0]) if reduction == "none" else 0.3

    def loss(ctx: Context) -> Any:
        return head.loss(h, TARGETS, ctx, weights, reduction=reduction)

    score = replace(train, train=False)
    assert loss(score)[1] is None
    value, backprop = loss(train)
    assert_close(value, loss(score)[0], CLOSED_FORM, what="loss in training")
    dh = backprop(upstream)
    tolerance = finite_difference_tolerance("head")

    def total() -> float:
        return float(np.sum(upstream * loss(score)[0]))

    assert_close(dh, numeric_gradient(total, h), tolerance, what="dh")
    for name, p in parameters.items():
        assert_close(p.densify(), numeric_gradient(total, p.data), tolerance, what=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_agrees_with_torch(dtype: str, reduction: str, smoothing: float, ignore_index: int) -> None:
    """torch's cross_entropy; weights by hand, because torch's are one number a class."""
    torch = pytest.importorskip("torch")
    head, parameters = make(dtype, label_smoothing=smoothing)
    targets = [max(t, 0) for t in TARGETS] if ignore_index == 2 else TARGETS
    counted = np.array([t != ignore_index for t in targets])
    h = torch.tensor(HIDDEN.astype(dtype), requires_grad=True)
    w = torch.tensor(parameters["head.weight"].data, requires_grad=True)
    b = torch.tensor(parameters["head.bias"].data, requires_grad=True)
    weights = WEIGHTS.astype(dtype)
    for given in (None, weights):
        how = {"ignore_index": ignore_index, "label_smoothing": smoothing}
        logits = torch.nn.functional.linear(h, w, b)
        if given is None:
            how["reduction"] = reduction
            want = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), **how)
        else:
            each = torch.nn.functional.cross_entropy(
                logits, torch.tensor(targets), **how, reduction="none"
            ) * torch.tensor(given)
            want = {
                "none": each,
                "sum": each.sum(),
                "mean": each.sum() / given[counted].sum(),
            }[reduction]
        upstream = torch.arange(1, N + 1, dtype=h.dtype) if reduction == "none" else torch.tensor(2)
        dh, dw, db = torch.autograd.grad((want * upstream).sum(), [h, w, b])
        parameters.zero_grad()
        value, backprop = head.loss(
            HIDDEN.astype(dtype),
            targets,
            Context(train=True),
            given,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        tolerance = torch_tolerance(dtype)
        assert_close(value, want.detach().numpy(), tolerance, what="loss", terms=N)
        assert backprop is not None
        got = {"h": backprop(upstream.numpy() if reduction == "none" else 2.0)}
        got |= {name: parameters[f"head.{name}"].grad for name in ("weight", "bias")}
        for (name, x), y in zip(got.items(), (dh, dw, db), strict=True):
            assert_close(x, y.numpy(), tolerance, what=f"d{name}", terms=N)


def test_the_mean_is_over_the_weights_of_what_counts(score: Context) -> None:
    head, _ = make()
    nll, _ = head(HIDDEN[[0, 2, 3, 4]], [0, 2, 2, 5], score)
    kept = WEIGHTS[[0, 2, 3, 4]]
    mean, _ = head.loss(HIDDEN, TARGETS, score, WEIGHTS)
    assert isinstance(mean, float)
    assert_close(mean, (kept * nll).sum() / kept.sum(), CLOSED_FORM, what="weighted mean")
    mean, _ = head.loss(HIDDEN, TARGETS, score)
    assert_close(mean, nll.mean(), CLOSED_FORM, what="mean")
    each, _ = head.loss(HIDDEN, TARGETS, score, reduction="none")
    assert isinstance(each, np.ndarray)
    assert_close(each, np.insert(nll, [1, 4], 0), CLOSED_FORM, what="losses")


def test_nothing_to_learn_from(train: Context) -> None:
    """All ignored, no rows, no weight: a loss of 0 and gradients of 0, not NaN."""
    for h, targets, weights in (
        (HIDDEN, [-100] * N, None),
        (HIDDEN, [-100] * N, WEIGHTS),
        (HIDDEN, [0] * N, 0.0),
        (HIDDEN[:0], [], None),
    ):
        for reduction in ("none", "sum", "mean"):
            head, parameters = make(label_smoothing=0.1, z_loss=0.1)
            value, backprop = head.loss(h, targets, train, weights, reduction=reduction)
            assert np.shape(value) == ((len(h),) if reduction == "none" else ())
            assert not np.any(value) and backprop is not None
            dh = backprop(np.ones(len(h)) if reduction == "none" else 1.0)
            assert dh.shape == h.shape and not dh.any()
            assert not any(p.densify().any() for p in parameters.values())


def test_ignoring_can_be_turned_off(score: Context) -> None:
    head, _ = make()
    with pytest.raises(IndexError):
        head.loss(HIDDEN, TARGETS, score, ignore_index=None)
    assert head.loss(HIDDEN, [3] * N, score, ignore_index=None)[0] != 0


@pytest.mark.parametrize("weights", [None, 0.5, WEIGHTS])
def test_upstream_gradients_of_each_token(train: Context, weights: object) -> None:
    """The same as weights at the forward, and as a number where all are equal."""
    targets = [0, 1, 2, 2, 5, 6]
    upstream = np.array([1.0, 0.0, -2.0, 0.5, 0.25, 4.0])

    def gradients(weights: object, scale: Any) -> dict[str, np.ndarray]:
        head, parameters = make()
        _, backprop = head(HIDDEN, targets, train, weights)
        assert backprop is not None
        dh = backprop(scale)
        assert [p.state for p in parameters.values()] == ["dense", "dense"]
        return {"h": dh, **{name: p.grad for name, p in parameters.items()}}

    factors = 1.0 if weights is None else weights
    want, got = gradients(factors * upstream, 1.0), gradients(weights, upstream)
    for name in want:
        assert_same_bits(got[name], want[name], what=name)
    want, got = gradients(weights, 0.5), gradients(weights, np.full(N, 0.5))
    for name in want:
        assert_close(got[name], want[name], CLOSED_FORM, what=name)


def test_recomputed_gradients_are_written_in_place(train: Context) -> None:
    head, parameters = make()
    _, backprop = head(HIDDEN, [1] * N, train)
    assert backprop is not None
    backprop(np.ones(N))
    made = head.pool.allocations
    for _ in range(5):
        parameters.zero_grad()
        _, backprop = head(HIDDEN, [1] * N, train)
        assert backprop is not None
        backprop(np.ones(N))
    assert head.pool.allocations == made


def test_the_nll_of_training_is_plain_whatever_is_minimised(train: Context) -> None:
    plain, _ = make()
    smoothed, _ = make(label_smoothing=0.4, z_loss=1.0)
    targets = [0, 1, 2, 3, 4, 5]
    for ctx in (train, replace(train, train=False)):
        assert_same_bits(
            smoothed(HIDDEN, targets, ctx)[0], plain(HIDDEN, targets, ctx)[0], what="nll"
        )
    assert plain.exact_in_training


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_what_the_head_says_fits_together(
    score: Context, dtype: str, temperature: float, scale: float
) -> None:
    """log_prob, top_k and entropy are of one distribution, which adds up to 1."""
    head, parameters = make(dtype, temperature=temperature)
    for p in parameters.values():
        p.data[3] = p.data[5]  # so that also at +-1e4 there is more than one answer
    h = (HIDDEN * scale).astype(dtype)
    log_prob = head.log_prob(h, score).astype(np.float64)
    assert_close(np.exp(log_prob).sum(1), np.ones(N), PROBABILITY_SUM, what="sum of p")
    tolerance = kernel_tolerance("xent", dtype, "sharp")
    entropy = -(np.exp(log_prob) * log_prob).sum(1)
    assert_close(head.entropy(h, score), entropy, tolerance, what="entropy", terms=V)
    top, ids = head.top_k(h, V, score)
    assert top.dtype == dtype and ids.dtype == np.int32
    assert_close(top, -np.sort(-log_prob, axis=1), tolerance, what="top_k", terms=V)
    assert (np.sort(ids, axis=1) == np.arange(V)).all()
    some, first = head.top_k(h, 3, score)
    assert (first == ids[:, :3]).all() and (some == top[:, :3]).all()


def test_a_sample_is_a_function_of_its_context(score: Context) -> None:
    head, _ = make()
    h = np.repeat(HIDDEN, 50, axis=0)
    drawn = head.sample(h, score)
    assert drawn.dtype == np.int32 and drawn.shape == (len(h),)
    assert (head.sample(h, score) == drawn).all()
    for other in (replace(score, step=6), replace(score, seed=4), replace(score, time0=1)):
        assert (head.sample(h, other) != drawn).any()
    head.temperature = 1e-3
    assert (head.sample(h, score)[:, None] == head.top_k(h, 1, score)[1]).all()


def test_predictions_for_no_rows(score: Context) -> None:
    head, _ = make()
    none = np.empty((0, H))
    assert head.entropy(none, score).shape == head.sample(none, score).shape == (0,)
    assert [x.shape for x in head.top_k(none, 2, score)] == [(0, 2), (0, 2)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reduction": "avg"}, ValueError, "reduction must be one of none, sum, mean, got 'avg'"),
        ({"targets": [0, -100, 2, 2, 7, -100]}, IndexError, r"targets\[4\] must be in \[0, V=7\)"),
        ({"targets": [0, -100, 2, 2, -1, 1]}, IndexError, r"targets\[4\] must be in .* got -1"),
        ({"targets": [0, 1]}, ValueError, r"h must be \[N, H\] and targets \[N\], got \[6, 3\]"),
        ({"targets": [0.5] * N}, TypeError, "targets must be integers, got float64"),
        ({"h": HIDDEN[0]}, ValueError, r"got \[3\] and \[6\]"),
        ({"weights": [1.0, 2.0]}, ValueError, r"weights must be \[N=6\] or a number, got "),
        ({"weights": np.ones(N, np.float32)}, TypeError, "weights must be float64, got float32"),
    ],
)
def test_errors(
    score: Context, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    head, _ = make()
    given: dict[str, Any] = {"h": HIDDEN, "targets": TARGETS, **change}
    with pytest.raises(error, match=f"^Full head loss: .*{message}"):
        head.loss(given.pop("h"), given.pop("targets"), score, **given)


def test_errors_of_backprop_and_predictions(train: Context) -> None:
    head, parameters = make()
    for targets in (TARGETS, [0] * N):
        _, backprop = head.loss(HIDDEN, targets, train, reduction="none")
        assert backprop is not None
        message = r"Full head backprop: scale must be \[N=6\] or a number, got float64 \[2\]"
        with pytest.raises(ValueError, match=message):
            backprop(np.ones(2))
    assert not any(p.densify().any() for p in parameters.values())
    for k in (0, V + 1):
        with pytest.raises(ValueError, match=rf"Full head top_k: k must be in \[1, 7\], got {k}"):
            head.top_k(HIDDEN, k)
    with pytest.raises(TypeError, match="Full head top_k: k must be an integer"):
        head.top_k(HIDDEN, 2.0)  # type: ignore[arg-type]
    broken = HIDDEN.copy()
    broken[2] = math.nan
    with pytest.raises(ValueError, match=r"Full head sample: h\[2\] gives no distribution"):
        head.sample(broken, train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.1}, r"label_smoothing must be in \[0, 1\], got 1.1"),
        ({"z_loss": -1.0}, r"z_loss must be in \[0, inf\), got -1.0"),
        ({"gradient_filter": 1.5}, r"gradient_filter must be in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, r"temperature must be in \(0, inf\), got 0.0"),
    ],
)
def test_option_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Full: {message}"):
        make(**options)
    with pytest.raises(ValueError, match=f"^HeadOptions: {message}"):
        HeadOptions(**options)  # type: ignore[arg-type]


def test_a_gradient_filter_leaves_the_losses(train: Context) -> None:
    """And the gradients of targets; of other words here all are left out."""
    head, _ = make()
    filtered, parameters = make(gradient_filter=1.0)
    value, backprop = filtered.loss(HIDDEN, TARGETS, train)
    assert value == head.loss(HIDDEN, TARGETS, train)[0] and backprop is not None
    backprop()
    rows = np.flatnonzero(parameters["head.weight"].grad.any(axis=1))
    assert rows.tolist() == sorted({t for t in TARGETS if t >= 0})


def test_options_make_the_head() -> None:
    options = HeadOptions(label_smoothing=0.1, z_loss=1e-4, temperature=2.0, gradient_filter=0.5)
    parameters = Parameters(options.specs("head", V, H, bias=False, tied=False))
    head = options.make(parameters, None)
    assert isinstance(head, Full) and head.bias is None
    assert (head.label_smoothing, head.z_loss, head.temperature) == (0.1, 1e-4, 2.0)
    assert head.gradient_filter == 0.5
    with pytest.raises(ValueError, match=r"HeadOptions: kind must be one of full, .*got 'flat'"):
        HeadOptions(kind="flat")
    with pytest.raises(ValueError, match="HeadOptions: unknown option 'smooth'"):
        HeadOptions.from_dict({"smooth": 1})
