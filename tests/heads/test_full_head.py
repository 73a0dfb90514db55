"""Exact head: loss, gradients committed by claims, log-probabilities, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pynlm.heads import Full
from pynlm.layers import Context, Embedding, Parameters
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import (
    CLOSED_FORM,
    PROBABILITY_SUM,
    finite_difference_tolerance,
    kernel_tolerance,
)

N, H, V = 5, 3, 7
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((N, H))
TARGETS = [0, 6, 2, 2, 5]


def make(bias: bool = True, dtype: Any = np.float64) -> tuple[Full, Parameters]:
    p = Parameters(Full.specs("head", V, H, bias=bias), dtype)
    for q in p.values():
        q.data[...] = np.random.default_rng(1).standard_normal(q.data.shape)
    return Full(p), p


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", [None, 0.25, [0.0, 1.0, 0.5, 2.0, 0.0]])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_finite_differences(
    train: Context,
    bias: bool,
    weights: object,
    scale: float,
    numeric_gradient: Callable[..., np.ndarray],
) -> None:
    head, parameters = make(bias)
    h = HIDDEN.copy()
    factor = np.ones(N) if weights is None else np.broadcast_to(np.asarray(weights), (N,))

    def loss() -> float:
        nll, none = head(h, TARGETS, replace(train, train=False), weights)
        assert none is None
        return scale * float((factor * nll).sum())

    nll, backprop = head(h, TARGETS, train, weights)
    assert backprop is not None
    assert_close(
        nll, head(h, TARGETS, replace(train, train=False))[0], CLOSED_FORM, what="training loss"
    )
    dh = backprop(scale)
    tolerance = finite_difference_tolerance("head")
    assert_close(dh, numeric_gradient(loss, h), tolerance, what="dh")
    for name, p in parameters.items():
        assert_close(p.densify(), numeric_gradient(loss, p.data), tolerance, what=name)


def test_the_gradient_is_written_in_place_and_counts_on_backprop(train: Context) -> None:
    head, _ = make()
    _, backprop = head(HIDDEN, TARGETS, train)
    assert backprop is not None
    assert abs(head.weight.grad).max() > 0 and head.weight.state == "unset"
    before = head.weight.grad.copy()
    backprop()
    assert head.weight.state == "dense"
    assert_same_bits(head.weight.grad, before, what="dw")
    with pytest.raises(RuntimeError, match="Full head: backprop may be called once"):
        backprop()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_in_flight(train: Context, order: tuple[int, int]) -> None:
    head, parameters = make()
    want = {name: np.zeros(p.data.shape) for name, p in parameters.items()}
    dh = []
    for sign in (1, -1):
        parameters.zero_grad()
        _, backprop = head(sign * HIDDEN, TARGETS, train)
        assert backprop is not None
        dh.append(backprop(0.5).copy())
        for name, p in parameters.items():
            want[name] += p.densify()
    parameters.zero_grad()
    flying = [head(sign * HIDDEN, TARGETS, train)[1] for sign in (1, -1)]
    for i in order:
        backprop = flying[i]
        assert backprop is not None
        assert_same_bits(backprop(0.5), dh[i], what="dh")
    for name, p in parameters.items():
        assert_close(p.grad, want[name], CLOSED_FORM, what=name)


def test_dropped_forward_leaves_no_trace(train: Context) -> None:
    head, parameters = make()
    nll, backprop = head(HIDDEN, TARGETS, train)
    del backprop
    assert all((p.densify() == 0).all() for p in parameters.values())
    parameters.zero_grad()
    made = 0
    for step in range(20):
        nll, _backprop = head(HIDDEN, TARGETS, train)
        if step == 2:
            made = head.pool.allocations
    assert head.pool.allocations == made
    assert nll.shape == (N,)


def test_tied_table(train: Context) -> None:
    specs = [
        *Embedding.specs("embedding", V, H, sparse=False),
        *Full.specs("head", V, H, tied=True),
    ]
    p = Parameters(specs, np.float64)
    assert list(p) == ["embedding.weight", "head.bias"]
    own, _ = make()
    p["embedding.weight"].data[...] = own.weight.data
    assert own.bias is not None
    p["head.bias"].data[...] = own.bias.data
    tied = Full(p, tied=p["embedding.weight"])
    for head in (tied, own):
        _, backprop = head(HIDDEN, TARGETS, train)
        assert backprop is not None
        backprop()
    assert_same_bits(p["embedding.weight"].grad, own.weight.grad, what="dw")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_log_prob_adds_up_to_one_and_agrees_with_the_loss(
    train: Context, bias: bool, dtype: Any
) -> None:
    head, _ = make(bias, dtype)
    h = HIDDEN.astype(dtype)
    log_prob = head.log_prob(h, train)
    assert log_prob.shape == (N, V) and log_prob.dtype == dtype
    total = np.exp(log_prob.astype(np.float64)).sum(axis=1)
    assert_close(total, np.ones(N), PROBABILITY_SUM, what="sum")
    tolerance = kernel_tolerance("xent", dtype)
    nll, _ = head(h, TARGETS, replace(train, train=False))
    assert_close(-log_prob[np.arange(N), TARGETS], nll, tolerance, what="nll", terms=H)


def test_no_rows(train: Context) -> None:
    head, parameters = make()
    nll, backprop = head(np.empty((0, H)), np.empty(0, np.int32), train)
    assert nll.shape == (0,) and backprop is not None
    assert backprop().shape == (0, H)
    assert all((p.densify() == 0).all() for p in parameters.values())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"h": np.ones((N, 4))}, ValueError),
        ({"h": np.ones((N, H), np.float32)}, TypeError),
        ({"targets": [0, 1]}, ValueError),
        ({"targets": [0, 1, 2, 3, 7]}, IndexError),
        ({"targets": [0, 1, 2, 3, -1]}, IndexError),
        ({"targets": [0.0] * N}, TypeError),
        ({"weights": [1.0]}, ValueError),
    ],
)
@pytest.mark.parametrize("mode", [True, False])
def test_errors(train: Context, change: dict[str, Any], error: type[Exception], mode: bool) -> None:
    head, parameters = make()
    given: dict[str, Any] = {"h": HIDDEN, "targets": TARGETS, "weights": None, **change}
    if "weights" in change and not mode:
        return
    with pytest.raises(error):
        head(given["h"], given["targets"], replace(train, train=mode), given["weights"])
    assert all((p.densify() == 0).all() for p in parameters.values())
