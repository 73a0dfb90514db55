"""Mixture of softmaxes: against its definition, extreme logits, options, memory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pynlm.heads import HeadOptions, Mixture
from pynlm.layers import Context, Parameters
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM, PROBABILITY_SUM, kernel_tolerance

N, H, V, K = 6, 3, 7, 2
HIDDEN = np.random.default_rng(0).standard_normal((N, H))
ALL = [0, 6, 2, 2, 5, 1]


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


def test_one_word(train: Context) -> None:
    head, _ = make(size=1)
    nll, backprop = head(HIDDEN, [0] * N, train)
    assert_close(nll, np.zeros(N), CLOSED_FORM, what="nll of the only word")
    assert backprop is not None
    assert_close(backprop(), np.zeros((N, H)), CLOSED_FORM, what="dh")
    assert head.top_k(HIDDEN, 1, train)[1].tolist() == head.sample(HIDDEN, train)[:, None].tolist()


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
