"""Exact head: torch, reduced losses, gradients in place, smoothing, z-loss, temperature."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pynlm.heads import Full, HeadOptions
from pynlm.layers import Context, Parameters
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM, torch_tolerance

N, H, V = 6, 3, 7
HIDDEN = np.random.default_rng(0).standard_normal((N, H))
TARGETS = [0, -100, 2, 2, 5, -100]
ALL = [0, 6, 2, 2, 5, 1]
WEIGHTS = np.array([0.5, 3.0, 1.5, 0.0, 2.0, 1.0])


def make(dtype: Any = np.float64, **options: float) -> tuple[Full, Parameters]:
    p = Parameters(Full.specs("head", V, H), dtype)
    for q in p.values():
        q.data[...] = np.random.default_rng(1).standard_normal(q.data.shape)
    return Full(p, **options), p


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


def test_the_gradient_is_written_in_place_and_counts_on_backprop(train: Context) -> None:
    head, _ = make()
    _, backprop = head(HIDDEN, ALL, train)
    assert backprop is not None
    assert abs(head.weight.grad).max() > 0 and head.weight.state == "unset"
    before = head.weight.grad.copy()
    backprop()
    assert head.weight.state == "dense"
    assert_same_bits(head.weight.grad, before, what="dw")
    with pytest.raises(RuntimeError, match="Full head: backprop may be called once"):
        backprop()


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


def test_ignoring_can_be_turned_off(score: Context) -> None:
    head, _ = make()
    with pytest.raises(IndexError):
        head.loss(HIDDEN, TARGETS, score, ignore_index=None)
    assert head.loss(HIDDEN, [3] * N, score, ignore_index=None)[0] != 0


def test_the_nll_of_training_is_plain_whatever_is_minimised(train: Context) -> None:
    plain, _ = make()
    smoothed, _ = make(label_smoothing=0.4, z_loss=1.0)
    targets = [0, 1, 2, 3, 4, 5]
    for ctx in (train, replace(train, train=False)):
        assert_same_bits(
            smoothed(HIDDEN, targets, ctx)[0], plain(HIDDEN, targets, ctx)[0], what="nll"
        )
    assert plain.exact_in_training


def test_samples_near_temperature_zero_are_the_most_probable(score: Context) -> None:
    head, _ = make()
    h = np.repeat(HIDDEN, 50, axis=0)
    head.temperature = 1e-3
    assert (head.sample(h, score)[:, None] == head.top_k(h, 1, score)[1]).all()


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
