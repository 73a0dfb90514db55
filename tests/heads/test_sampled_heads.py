"""Heads that learn from samples: exact evaluation, tying, log Z, options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pynlm.heads import NCE, Full, HeadOptions, NegativeSampling, Sampled, SampledHead
from pynlm.layers import Context, Embedding, Parameters
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM, finite_difference_tolerance
from pynlm.train.config import OptimiserConfig
from pynlm.train.optimisers import clip_gradient_values, gradient_norm, make_optimiser

N, H, V = 6, 3, 11
HIDDEN = np.random.default_rng(0).standard_normal((N, H))
TARGETS = [0, 4, 2, 2, 10, 5]
COUNTS = 100 // np.arange(1, V + 1)
KINDS: dict[str, type[SampledHead]] = {
    "sampled": Sampled,
    "nce": NCE,
    "negative-sampling": NegativeSampling,
}


def make(kind: str, bias: bool = True, dtype: Any = np.float64, **options: Any) -> Any:
    """A head of that kind over random weights, and its parameters."""
    chosen = HeadOptions(kind=kind, **{"samples": 5, **options})
    p = Parameters(chosen.specs("head", V, H, bias=bias, tied=False), dtype)
    for q in p.values():
        q.data[...] = np.random.default_rng(1).standard_normal(q.data.shape)
    head = chosen.make(p, None, counts=COUNTS)
    assert type(head) is KINDS[kind]
    return head, p


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_of_a_learned_log_z(
    train: Context, temperature: float, numeric_gradient: Callable[..., np.ndarray]
) -> None:
    for bias in (True, False):
        head, parameters = make("nce", bias, log_z="learned", temperature=temperature)
        log_z = parameters["head.log_z"]
        _, backprop = head(HIDDEN, TARGETS, train, 0.25)
        backprop(2.0)

        def loss(head: Any = head) -> float:
            return 0.5 * float(head(HIDDEN, TARGETS, train)[0].sum())

        tolerance = finite_difference_tolerance("head")
        assert_close(log_z.grad, numeric_gradient(loss, log_z.data), tolerance, what="log_z")


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_every_reduction_are_the_same(train: Context, kind: str) -> None:
    head, _ = make(kind)
    targets = [0, -100, *TARGETS[2:]]
    each, _ = head.loss(HIDDEN, targets, train, reduction="none")
    called, _ = head(HIDDEN, TARGETS, train)
    kept = [0, 2, 3, 4, 5]
    assert_same_bits(each[kept], called[kept], what="loss")
    assert each[1] == 0
    mean, _ = head.loss(HIDDEN, targets, train)
    assert_close(mean, each[kept].mean(), CLOSED_FORM, what="mean")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_outside_training_all_is_exact(score: Context, kind: str, dtype: str) -> None:
    head, parameters = make(kind, dtype=dtype, temperature=0.8)
    full = Full(parameters, temperature=0.8)
    h = HIDDEN.astype(dtype)
    assert full.exact_in_training and not head.exact_in_training
    nll, none = head(h, TARGETS, score)
    assert none is None
    assert_same_bits(nll, full(h, TARGETS, score)[0], what="nll")
    for what in ("log_prob", "entropy"):
        assert_same_bits(getattr(head, what)(h, score), getattr(full, what)(h, score), what=what)
    assert (head.sample(h, score) == full.sample(h, score)).all()
    for got, want in zip(head.top_k(h, 4, score), full.top_k(h, 4, score), strict=True):
        assert_same_bits(got, want, what="top_k")


@pytest.mark.parametrize("sampler", ["log-uniform", "unigram", "uniform"])
def test_with_all_tokens_sampled_softmax_is_the_exact_one(train: Context, sampler: str) -> None:
    head, parameters = make("sampled", samples=V, sampler=sampler)
    exact = {}
    _, backprop = Full(parameters)(HIDDEN, TARGETS, train)
    assert backprop is not None
    exact["dh"] = backprop()
    exact |= {name: p.densify().copy() for name, p in parameters.items()}
    parameters.zero_grad()
    nll, _ = head(HIDDEN, TARGETS, replace(train, train=False))
    loss, backprop = head(HIDDEN, TARGETS, train)
    assert backprop is not None
    assert_close(loss, nll, CLOSED_FORM, what="loss")
    assert_close(backprop(), exact.pop("dh"), CLOSED_FORM, what="dh")
    for name, want in exact.items():
        assert_close(parameters[name].densify(), want, CLOSED_FORM, what=name)


def test_the_estimate_gets_better_with_more_samples(score: Context) -> None:
    """Mean gradients of sampled softmax approach the exact ones as K grows."""
    _, parameters = make("sampled")
    _, backprop = Full(parameters)(HIDDEN, TARGETS, replace(score, train=True))
    assert backprop is not None
    want, far = backprop(), []
    forms: list[dict[str, Any]] = [
        {"samples": 2},
        {"samples": 10},
        {"samples": 10_000, "unique": False},
    ]
    for options in forms:
        head, _ = make("sampled", **options)
        mean = np.zeros_like(HIDDEN)
        for step in range(200):
            ctx = replace(score, train=True, step=step)
            mean += head(HIDDEN, TARGETS, ctx)[1](1 / 200)
        far.append(np.abs(mean - want).max())
    assert far[1] < 0.3 * far[0] and far[2] < 0.01 * far[0]


def make_tied(kind: str, *, sparse: bool) -> tuple[Embedding, Any, Parameters]:
    """An embedding, a head on its table, and their parameters."""
    chosen = HeadOptions(kind=kind, samples=5)
    p = Parameters(
        [
            *Embedding.specs("embedding", V, H, sparse=sparse),
            *chosen.specs("head", V, H, bias=True, tied=True),
        ],
        np.float64,
    )
    p["embedding.weight"].data[...] = np.random.default_rng(1).standard_normal((V, H))
    assert list(p) == ["embedding.weight", "head.bias"]
    return Embedding(p, "embedding"), chosen.make(p, p["embedding.weight"], counts=COUNTS), p


@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_table(train: Context, kind: str) -> None:
    """Rows of the embedding and of the head add up, and densely give the same."""
    got = []
    for sparse in (True, False):
        embedding, head, p = make_tied(kind, sparse=sparse)
        h, below = embedding([1, 3, 3, 5, 0, 9], train)
        _, backprop = head(h, TARGETS, train)
        assert below is not None and backprop is not None
        below(backprop())
        assert p["embedding.weight"].state == ("rows" if sparse else "dense")
        got.append(p["embedding.weight"].densify().copy())
    assert_close(got[0], got[1], CLOSED_FORM, what="dw")


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam", "adamw", "adagrad"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_of_a_tied_table_is_the_dense_one(train: Context, kind: str, rule: str) -> None:
    """Clipped both ways and with decay, in steps on other rows: also what no token touched moves.

    The dense gradient is not the layers' own but put together here from their rows.
    """
    found: list[list[np.ndarray]] = []
    for sparse in (True, False):
        embedding, head, p = make_tied(kind, sparse=sparse)
        table = p["embedding.weight"]
        optimiser = make_optimiser(OptimiserConfig(kind=rule, weight_decay=0.1), p)
        norms = []
        for step, ids in enumerate(([1, 3, 3], [0, 9, 3], [4, 4, 4])):
            p.zero_grad()
            ctx = replace(train, step=step)
            h, below = embedding(ids, ctx)
            _, backprop = head(h, [2, 0, 2], ctx)
            assert below is not None and backprop is not None
            below(backprop())
            if not sparse:
                again, own, other = make_tied(kind, sparse=True)
                other.data[...] = p.data
                h, below = again(ids, ctx)
                _, backprop = own(h, [2, 0, 2], ctx)
                assert below is not None and backprop is not None
                below(backprop())
                rows, drows = other["embedding.weight"].rows
                assert 3 <= len(rows) < V
                table.grad.fill(0)
                np.add.at(table.grad, rows, drows)
            assert table.state == ("rows" if sparse else "dense")
            clip_gradient_values(p, 0.4)
            norms.append(gradient_norm(p))
            optimiser.step(lr=0.1, scale=0.5 / norms[-1])
        found.append([np.array(norms), table.data.copy(), p["head.bias"].data.copy()])
    for got, want in zip(*found, strict=True):
        assert_close(got, want, CLOSED_FORM, what="norms and weights")


def test_decay_leaves_a_learned_log_z() -> None:
    _, parameters = make("nce", log_z="learned")
    before = {name: p.data.copy() for name, p in parameters.items()}
    rule = OptimiserConfig(kind="sgd", weight_decay=0.5)
    make_optimiser(rule, parameters).step(lr=0.1)
    assert parameters["head.log_z"].data == before["head.log_z"] != 0
    assert_close(
        parameters["head.bias"].data, 0.95 * before["head.bias"], CLOSED_FORM, what="head.bias"
    )


def test_log_z_comes_with_the_exact_nll_in_training(train: Context) -> None:
    head, _ = make("nce")
    plain = head.nll_and_log_z(HIDDEN, TARGETS, replace(train, train=False))
    for got, want in zip(head.nll_and_log_z(HIDDEN, TARGETS, train), plain, strict=True):
        assert_same_bits(got, want, what="nll and log Z")


def test_estimates_pack_no_weights(train: Context) -> None:
    """They read rows of them as they stand; what is exact has panels."""
    head, parameters = make("sampled")
    want, _ = head.loss(HIDDEN, TARGETS, train)
    parameters.pack()
    got, _ = head.loss(HIDDEN, TARGETS, train, reduction="none")
    assert parameters["head.weight"]._packed == {}
    assert_close(got.mean(), want, CLOSED_FORM, what="loss")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("log_z", [None, 2.5, "learned"])
def test_log_z_is_that_of_the_logits(score: Context, log_z: object, bias: bool) -> None:
    head, parameters = make("nce", bias, log_z=log_z, temperature=1.3)
    z = HIDDEN @ parameters["head.weight"].data.T
    if bias:
        z = z + parameters["head.bias"].data
    constant = np.log(V) if log_z is None else log_z
    if log_z == "learned":
        constant = float(parameters["head.log_z"].data[0])
    want = np.log(np.exp(z / 1.3).sum(axis=1)) - constant
    nll, got = head.nll_and_log_z(HIDDEN, TARGETS, score)
    assert_close(got, want, CLOSED_FORM, what="log Z")
    assert_same_bits(nll, head(HIDDEN, TARGETS, score)[0], what="nll")
    assert head.log_z == constant


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_of_one_word(train: Context, kind: str) -> None:
    chosen = HeadOptions(kind=kind, samples=1, remove_hits=True)
    p = Parameters(chosen.specs("head", 1, H, bias=True, tied=False), np.float64)
    head = chosen.make(p, None)
    loss, backprop = head(HIDDEN, [0] * N, train)
    assert backprop is not None and np.isfinite(backprop()).all()
    if kind == "sampled":
        assert not loss.any()
    assert not head(HIDDEN, [0] * N, replace(train, train=False))[0].any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": V + 1}, ValueError, "Sampled: samples must be at most V=11 when they are uni"),
        ({"sampler": "zipf"}, ValueError, "HeadOptions: sampler must be one of log-uniform, "),
        ({"alpha": -1.0}, ValueError, "HeadOptions: alpha must be in"),
        ({"alpha": 0.3}, ValueError, "alpha is not defined for sampler 'log-uniform', got 0.3"),
        (
            {"kind": "nce", "alpha": 0.3, "sampler": "uniform"},
            ValueError,
            "alpha is not defined for sampler 'uniform', got 0.3",
        ),
        ({"samples": 0}, ValueError, "HeadOptions: samples must be in"),
        ({"remove_hits": 3}, TypeError, "Sampled: remove_hits must be True, False or None, got"),
        ({"log_z": 0.0}, ValueError, "log_z is not defined for kind 'sampled', got 0.0"),
        ({"z_loss": 0.1}, ValueError, "z_loss is not defined for kind 'sampled', got 0.1"),
        ({"kind": "nce", "log_z": "x"}, ValueError, "log_z must be a number or 'learned', got 'x'"),
        ({"kind": "full", "samples": 9}, ValueError, "samples is not defined for kind 'full'"),
    ],
)
def test_option_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**{"kind": "sampled", **options})


def test_counts_that_do_not_match(train: Context) -> None:
    chosen = HeadOptions(kind="nce", samples=2, sampler="unigram")
    p = Parameters(chosen.specs("head", V, H, bias=True, tied=False), np.float64)
    with pytest.raises(ValueError, match=r"^NCE: counts must be \[V=11\], got \[10\]"):
        chosen.make(p, None, counts=COUNTS[:-1])
    with pytest.raises(ValueError, match=r"^NCE: sampler 'unigram' needs counts"):
        chosen.make(p, None)
