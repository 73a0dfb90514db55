"""What all heads must satisfy: gradients, one distribution, edges, errors.

A new head is a line in FORMS; what is its own stands in its own file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pynlm
from pynlm.heads import HeadOptions
from pynlm.heads.trees import from_clusters
from pynlm.layers import Context, Embedding, Parameters
from pynlm.testing import assert_close, assert_same_bits, check_samples
from pynlm.testing.tolerances import (
    CLOSED_FORM,
    PROBABILITY_SUM,
    finite_difference_tolerance,
    kernel_tolerance,
)

N, H, V = 10, 4, 11
HIDDEN = np.random.default_rng(0).standard_normal((N, H))
COUNTS = 10_000 // np.arange(1, 10_000)
TARGETS = [0, -100, 4, 8, 9, 10, 10, 3, -100, 5]
ALL = [0, 2, 4, 8, 9, 10, 10, 3, 2, 5]
WEIGHTS = np.array([0.5, 3.0, 1.5, 0.0, 2.0, 1.0, 0.25, 1.0, 2.0, 0.75])
UPSTREAM = np.array([1.0, 2.0, -1.0, 0.5, 0.25, 3.0, 0.0, -2.0, 4.0, 1.5])

FORMS: dict[str, dict[str, Any]] = {
    "full": {},
    "smoothed": {"label_smoothing": 0.2},
    "z-loss": {"z_loss": 0.3},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 4.0},
    "everything": {"label_smoothing": 0.2, "z_loss": 0.3, "temperature": 0.6},
    "adaptive": {"kind": "adaptive", "div_value": 1.5},
    "huffman": {"kind": "hierarchical"},
    "ternary": {"kind": "hierarchical", "arity": 3},
    "balanced": {"kind": "hierarchical", "tree": "balanced"},
    "classes": {"kind": "hierarchical", "tree": "classes"},
    "clusters": {"kind": "hierarchical", "tree": "clusters", "clusters": "given here"},
    "mixture": {"kind": "mixture", "experts": 2},
    "mixture-cold": {"kind": "mixture", "experts": 2, "temperature": 0.5},
    "mixture-hot": {"kind": "mixture", "experts": 3, "temperature": 1.7},
    "sampled": {"kind": "sampled", "samples": 5},
    "nce": {"kind": "nce", "samples": 5},
    "nce-learned": {"kind": "nce", "samples": 5, "log_z": "learned"},
    "negative-sampling": {"kind": "negative-sampling", "samples": 5},
}
# One form of each head, for what its options have no part in.
HEADS = [
    *("full", "everything", "adaptive", "huffman", "mixture"),
    *("sampled", "nce-learned", "negative-sampling"),
]
# Those that are distributions of their own.
SAYING = [form for form in FORMS if form not in ("smoothed", "z-loss", "everything", "nce-learned")]
SAMPLING = ("sampled", "nce", "negative-sampling")
DRAWS: list[dict[str, Any]] = [
    {"unique": False, "sampler": "unigram"},
    {"sampler": "uniform", "temperature": 1.7},
    {"remove_hits": True},
    {"remove_hits": False},
]
DRAWN = {f"{x}-{i}": {**FORMS[x], **how} for x in SAMPLING for i, how in enumerate(DRAWS)}
OPTIONS = FORMS | DRAWN
LOSSES = [
    (reduction, weights)
    for weights in (WEIGHTS, None, 0.5)
    for reduction in ("sum", "none", "mean")
]
every_head = pytest.mark.parametrize("form", HEADS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def make(
    form: str,
    dtype: str = "float64",
    *,
    bias: bool = True,
    vocab_size: int = V,
    size: int = H,
) -> tuple[Any, Parameters]:
    """A head over random weights, and its parameters."""
    cutoffs = (vocab_size // 5, vocab_size // 2, vocab_size * 9 // 10)
    more = {"cutoffs": cutoffs} if form == "adaptive" else {}
    options, rng = HeadOptions(**OPTIONS[form], **more), np.random.default_rng(1)
    parameters = Parameters(options.specs("head", vocab_size, size, bias=bias, tied=False), dtype)
    for p in parameters.values():
        p.data[...] = rng.standard_normal(p.data.shape)
    tree = from_clusters(rng.integers(0, 3, vocab_size)) if form == "clusters" else None
    return options.make(parameters, None, counts=COUNTS[:vocab_size], tree=tree), parameters


def gradients(
    head: Any,
    parameters: Parameters,
    ctx: Context,
    h: np.ndarray = HIDDEN,
    weights: object = None,
    scale: Any = 1.0,
) -> dict[str, np.ndarray]:
    """Those of one call, alone."""
    parameters.zero_grad()
    _, backprop = head(h, ALL, ctx, weights)
    dh = backprop(scale).copy()
    return {"dh": dh, **{name: p.densify().copy() for name, p in parameters.items()}}


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("form", "reduction", "weights"),
    [(form, *loss) for form in OPTIONS for loss in (LOSSES if form in FORMS else LOSSES[:1])],
)
def test_finite_differences(
    train: Context,
    score: Context,
    form: str,
    bias: bool,
    reduction: str,
    weights: object,
    numeric_gradient: Callable[..., np.ndarray],
) -> None:
    head, parameters = make(form, bias=bias)
    h, upstream = HIDDEN.copy(), UPSTREAM if reduction == "none" else 0.3
    # An estimate is differentiated itself: the same samples every time.
    where = score if head.exact_in_training else train

    def loss(ctx: Context) -> Any:
        return head.loss(h, TARGETS, ctx, weights, reduction=reduction)

    def total() -> float:
        return float(np.sum(upstream * loss(where)[0]))

    assert loss(score)[1] is None
    value, backprop = loss(train)
    assert_close(value, loss(where)[0], CLOSED_FORM, what="loss in training")
    dh = backprop(upstream)
    options = HeadOptions(**OPTIONS[form])
    rows = options.sparse or options.kind == "hierarchical"
    states = {"dense", "rows"} if rows and len(parameters) > 1 else {"rows" if rows else "dense"}
    assert {p.state for p in parameters.values()} == states
    tolerance = finite_difference_tolerance("head")
    assert_close(dh, numeric_gradient(total, h), tolerance, what="dh")
    for name, p in parameters.items():
        assert_close(p.densify(), numeric_gradient(total, p.data), tolerance, what=name)


@every_head
@pytest.mark.parametrize("weights", [None, WEIGHTS.tolist(), 0.25], ids=["plain", "list", "number"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_call_has_the_gradients_of_the_summed_loss(
    train: Context, score: Context, form: str, weights: object, scale: float
) -> None:
    head, parameters = make(form)
    got = gradients(head, parameters, train, weights=weights, scale=scale)
    parameters.zero_grad()
    _, backprop = head.loss(HIDDEN, ALL, train, weights, reduction="sum")
    want = {"dh": backprop(scale), **{name: p.densify() for name, p in parameters.items()}}
    for name in want:
        assert_same_bits(got[name], want[name], what=name)
    assert head(HIDDEN, ALL, score, weights)[1] is None
    if head.exact_in_training:
        nll = [head(HIDDEN, ALL, ctx, weights)[0] for ctx in (train, score)]
        assert_close(*nll, CLOSED_FORM, what="nll in training")


@every_head
@pytest.mark.parametrize("weights", [None, 0.5, WEIGHTS], ids=["plain", "halved", "weighted"])
def test_upstream_gradients_of_each_token(train: Context, form: str, weights: object) -> None:
    """The same as weights at the forward, and as a number where all are equal."""
    head, parameters = make(form)
    factors: Any = 1.0 if weights is None else weights
    want = gradients(head, parameters, train, weights=factors * UPSTREAM)
    for scale in (UPSTREAM, UPSTREAM.tolist()):
        got = gradients(head, parameters, train, weights=weights, scale=scale)
        for name in want:
            assert_same_bits(got[name], want[name], what=name)
    got = gradients(head, parameters, train, weights=weights, scale=np.full(N, 0.5))
    want = gradients(head, parameters, train, weights=weights, scale=0.5)
    for name in want:
        assert_close(got[name], want[name], CLOSED_FORM, what=name)


@every_head
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_in_flight_and_two_dropped(
    train: Context, form: str, order: tuple[int, int]
) -> None:
    head, parameters = make(form)
    alone = [gradients(head, parameters, train, x, scale=0.5) for x in (HIDDEN, -HIDDEN)]
    parameters.zero_grad()
    flying = [head(x, ALL, train)[1] for x in (HIDDEN, -HIDDEN, 7 * HIDDEN)]
    del flying[2]
    head(HIDDEN, ALL, train)
    for i in order:
        assert_same_bits(flying[i](0.5), alone[i]["dh"], what="dh")
        with pytest.raises(RuntimeError, match=f"^{head.name}: backprop may be called once"):
            flying[i]()
    for name, p in parameters.items():
        assert_close(p.densify(), alone[0][name] + alone[1][name], CLOSED_FORM, what=name)


@every_head
def test_a_dropped_forward_leaves_no_trace(train: Context, form: str) -> None:
    head, parameters = make(form)
    made = 0
    for step in range(20):
        _, _backprop = head(HIDDEN, ALL, train)
        made = head.pool.allocations if step == 2 else made
    assert head.pool.allocations == made
    assert not any(p.densify().any() for p in parameters.values())


@every_head
@pytest.mark.parametrize("upstream", [1.0, np.ones(N)], ids=["number", "each"])
def test_a_steady_step_allocates_nothing(train: Context, form: str, upstream: object) -> None:
    head, parameters = make(form)
    made = 0
    for step in range(10):
        parameters.zero_grad()
        head(HIDDEN, ALL, train, WEIGHTS)[1](upstream)
        made = head.pool.allocations if step == 1 else made
    assert head.pool.allocations == made


@every_head
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_nothing_to_learn_from(train: Context, form: str, reduction: str) -> None:
    """All ignored, no rows, no weight: a loss of 0 and gradients of 0, not NaN."""
    for h, targets, weights in (
        (HIDDEN, [-100] * N, None),
        (HIDDEN, [-100] * N, WEIGHTS),
        (HIDDEN, ALL, 0.0),
        (HIDDEN[:0], [], None),
    ):
        head, parameters = make(form)
        value, backprop = head.loss(h, targets, train, weights, reduction=reduction)
        assert np.shape(value) == ((len(h),) if reduction == "none" else ())
        assert not np.any(value)
        dh = backprop(np.ones(len(h)) if reduction == "none" else 1.0)
        assert dh.shape == h.shape and not dh.any()
        assert not any(p.densify().any() for p in parameters.values())


@pytest.mark.parametrize("form", [x for x in HEADS if HeadOptions(**FORMS[x]).can_tie])
def test_a_tied_table_has_the_gradient_of_an_own_one(train: Context, form: str) -> None:
    own, parameters = make(form)
    options = HeadOptions(**FORMS[form])
    specs = options.specs("head", V, H, bias=True, tied=True)
    p = Parameters([*Embedding.specs("table", V, H, sparse=options.sparse), *specs], np.float64)
    assert p.keys() - parameters.keys() == {"table.weight"}
    assert parameters.keys() - p.keys() == {"head.weight"}
    names = {name: name if name in p else "table.weight" for name in parameters}
    for name, tied_name in names.items():
        p[tied_name].data[...] = parameters[name].data
    tied = options.make(p, p["table.weight"], counts=COUNTS[:V])
    dh = [head(HIDDEN, ALL, train)[1]() for head in (own, tied)]
    assert_same_bits(*dh, what="dh")
    for name, tied_name in names.items():
        assert_same_bits(p[tied_name].densify(), parameters[name].densify(), what=name)


# --- the distribution --------------------------------------------------------------------------


@pytest.mark.parametrize("form", SAYING)
@every_dtype
@pytest.mark.parametrize(("vocab_size", "bias"), [(V, True), (V, False), (211, True)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_what_the_head_says_fits_together(
    score: Context, form: str, dtype: str, vocab_size: int, bias: bool, scale: float
) -> None:
    """nll, log_prob, top_k and entropy are of one distribution, which adds up to 1."""
    head, parameters = make(form, dtype, bias=bias, vocab_size=vocab_size)
    tables = [p.data for p in parameters.values() if len(p.data) == vocab_size]
    for table in tables:
        table[3] = table[5]  # so that also at +-1e4 there is more than one answer
    h = (HIDDEN * scale).astype(dtype)
    said = head.log_prob(h, score)
    assert (head.log_prob(h, replace(score, train=True)) == said).all()
    assert not tables or (said[:, 3] == said[:, 5]).all()
    assert said.shape == (N, vocab_size) and said.dtype == dtype
    log_prob = said.astype(np.float64)
    assert_close(np.exp(log_prob).sum(1), np.ones(N), PROBABILITY_SUM, what="sum of p")
    kernel = "hsoftmax" if FORMS[form].get("kind") == "hierarchical" else "xent"
    tolerance = kernel_tolerance(kernel, dtype, "sharp" if scale > 1 else "")
    nll, none = head(h, ALL, score)
    assert none is None
    assert_close(nll, -log_prob[np.arange(N), ALL], tolerance, what="nll", terms=vocab_size)
    entropy = -(np.exp(log_prob) * log_prob).sum(1)
    assert_close(head.entropy(h, score), entropy, tolerance, what="entropy", terms=vocab_size)
    falling = -np.sort(-log_prob, axis=1)
    every, order = head.top_k(h, vocab_size, score)
    assert (np.sort(order, axis=1) == np.arange(vocab_size)).all()
    for k in (1, 3, vocab_size // 4, vocab_size):
        top, ids = head.top_k(h, k, score)
        assert top.dtype == dtype and ids.dtype == np.int32
        assert all(len(set(row)) == k for row in ids.tolist())
        if form != "adaptive":  # which opens a cluster for the rows that need it, in other products
            assert (ids == order[:, :k]).all() and (top == every[:, :k]).all()
        picked = np.take_along_axis(log_prob, ids, 1)
        assert_close(top, falling[:, :k], tolerance, what=f"top {k}", terms=vocab_size)
        assert_close(picked, falling[:, :k], tolerance, what="ids", terms=vocab_size)


@pytest.mark.parametrize("form", SAYING)
@every_dtype
def test_samples_follow_the_distribution(score: Context, form: str, dtype: str) -> None:
    head, _ = make(form, dtype, vocab_size=60)
    h = HIDDEN[:1].astype(dtype)
    rows = 100_000
    if score.backend == "reference":  # which walks a tree row by row
        rows = 2_000 if FORMS[form].get("kind") == "hierarchical" else 20_000
    drawn = head.sample(np.repeat(h, rows, axis=0), score)
    check_samples(drawn, np.exp(head.log_prob(h, score)[0].astype(np.float64)))


@every_head
def test_a_sample_is_a_function_of_its_context_and_row(score: Context, form: str) -> None:
    head, _ = make(form)
    h = np.repeat(HIDDEN, 50, axis=0)
    drawn = head.sample(h, score)
    assert drawn.dtype == np.int32 and drawn.shape == (len(h),)
    assert (head.sample(h, score) == drawn).all()
    assert (head.sample(h[:77].copy(), score) == drawn[:77]).all()
    for other in (replace(score, step=6), replace(score, seed=4), replace(score, time0=1)):
        assert (head.sample(h, other) != drawn).any()


@every_head
def test_no_rows(train: Context, score: Context, form: str) -> None:
    head, parameters = make(form)
    none = np.empty((0, H))
    nll, backprop = head(none, np.empty(0, np.int32), train)
    assert nll.shape == (0,) and backprop().shape == (0, H)
    assert not any(p.densify().any() for p in parameters.values())
    assert head.log_prob(none, score).shape == (0, V)
    assert head.entropy(none, score).shape == head.sample(none, score).shape == (0,)
    assert [x.shape for x in head.top_k(none, 2, score)] == [(0, 2), (0, 2)]


# --- bits --------------------------------------------------------------------------------------


def all_it_says(head: Any, h: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
    ctx = Context(train=False, seed=1)
    said = [head(h, targets, ctx)[0], head.log_prob(h), head.entropy(h), *head.top_k(h, 5)]
    return [*said, head.sample(h, ctx)]


@every_head
def test_same_bits_at_any_number_of_threads(form: str) -> None:
    rng, results = np.random.default_rng(4), []
    h = rng.standard_normal((300, 64)).astype(np.float32)
    targets = rng.integers(0, 3000, 300)
    for threads in (1, 2, 3):
        pynlm.set_num_threads(threads)
        head, parameters = make(form, "float32", vocab_size=3000, size=64)
        nll, backprop = head(h, targets, Context(train=True, seed=1))
        dh, grads = backprop(), [p.densify() for p in parameters.values()]
        results.append([nll, dh, *grads, *all_it_says(head, h, targets)])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert_same_bits(got, want, what="result")


@every_head
@pytest.mark.parametrize("rows", [1, 3, 300])
def test_packed_weights_give_the_same_bits(form: str, rows: int) -> None:
    rng = np.random.default_rng(4)
    head, parameters = make(form, "float32", vocab_size=3000, size=64)
    h, targets = rng.standard_normal((rows, 64), np.float32), rng.integers(0, 3000, rows)
    plain = all_it_says(head, h, targets)
    parameters.pack()
    for got, want in zip(all_it_says(head, h, targets), plain, strict=True):
        assert_same_bits(got, want, what="result")


# --- options and errors ------------------------------------------------------------------------


@pytest.mark.parametrize("form", OPTIONS)
def test_options_survive_a_file(form: str) -> None:
    options = HeadOptions(**OPTIONS[form])
    assert HeadOptions.from_dict(options.to_dict()) == options


@every_head
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"h": np.ones((N, H + 1))}, ValueError, "H=[45]"),
        ({"h": HIDDEN[:, :2].copy()}, ValueError, "H=[24]"),
        ({"h": HIDDEN.astype(np.float32)}, TypeError, "float32.* got float64|float64.* float32"),
        ({"targets": [0, 1]}, ValueError, r"targets must be int32 \[N=10\], got int32 \[2\]"),
        ({"targets": [0, V, *ALL[2:]]}, IndexError, r"targets\[1\] must be in .*=11\), got 11"),
        ({"targets": [0, -1, *ALL[2:]]}, IndexError, r"targets\[1\] must be in .*=11\), got -1"),
        ({"targets": [0.5] * N}, TypeError, "targets must be integers, got float64"),
        ({"weights": [1.0]}, ValueError, r"weights must be \[N=10\] or a number"),
    ],
)
def test_errors_of_a_call(
    train: Context,
    form: str,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    mode: bool,
) -> None:
    """Named by the head, or where a kernel checks alone by the kernel."""
    if "weights" in change and not mode:
        return
    head, parameters = make(form)
    ctx = replace(train, train=mode)
    given = {"h": HIDDEN, "targets": ALL, "weights": None, **change}
    own = form == "mixture" or (mode and error is IndexError and FORMS[form].get("kind"))
    who = head.name if own else f"({head.name}|xent|hsoftmax|candidates)"
    with pytest.raises(error, match=f"^{who}.*: .*{message}"):
        head(given["h"], given["targets"], ctx, given["weights"])
    with pytest.raises(error):
        head.loss(given["h"], given["targets"], ctx, given["weights"])
    assert not any(p.densify().any() for p in parameters.values())


@every_head
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reduction": "avg"}, ValueError, "reduction must be one of none, sum, mean, got 'avg'"),
        ({"targets": [*TARGETS[:-1], V]}, IndexError, r"targets\[9\] must be in \[0, V=11\)"),
        ({"targets": [*TARGETS[:-1], -1]}, IndexError, r"targets\[9\] must be in .* got -1"),
        ({"targets": [0, 1]}, ValueError, r"h must be \[N, H\] and targets \[N\], got \[10, 4\]"),
        ({"targets": [0.5] * N}, TypeError, "targets must be integers, got float64"),
        ({"h": HIDDEN[0]}, ValueError, r"got \[4\] and \[10\]"),
        ({"weights": [1.0, 2.0]}, ValueError, r"weights must be \[N=10\] or a number, got "),
        ({"weights": np.ones(N, np.float32)}, TypeError, "weights must be float64, got float32"),
    ],
)
def test_errors_of_the_loss(
    score: Context, form: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    head, _ = make(form)
    given: dict[str, Any] = {"h": HIDDEN, "targets": TARGETS, **change}
    with pytest.raises(error, match=f"^{head.name} loss: .*{message}"):
        head.loss(given.pop("h"), given.pop("targets"), score, **given)


@every_head
@pytest.mark.parametrize("targets", [TARGETS, ALL], ids=["some", "all"])
def test_errors_of_backprop(train: Context, form: str, targets: list[int]) -> None:
    head, parameters = make(form)
    _, backprop = head.loss(HIDDEN, targets, train, reduction="none")
    message = rf"^{head.name} backprop: scale must be \[N=10\] or a number, got float64 \[2\]"
    with pytest.raises(ValueError, match=message):
        backprop(np.ones(2))
    assert not any(p.densify().any() for p in parameters.values())


@every_head
def test_errors_of_predictions(score: Context, form: str) -> None:
    head, _ = make(form)
    who = head.name if form == "mixture" else "(xent|hsoftmax)"
    for predict in (head.log_prob, head.entropy, head.sample):
        with pytest.raises(ValueError, match=f"^{who}.*: .*H=[45]"):
            predict(np.ones((N, H + 1)), score)
    for k in (0, V + 1):
        message = rf"^{head.name} top_k: k must be in \[1, 11\], got {k}"
        with pytest.raises(ValueError, match=message):
            head.top_k(HIDDEN, k, score)
    with pytest.raises(TypeError, match=f"^{head.name} top_k: k must be an integer"):
        head.top_k(HIDDEN, 2.0, score)
    broken = HIDDEN.copy()
    broken[7] = np.nan
    message = rf"^{head.name} sample: h\[7\] gives no distribution"
    with pytest.raises(ValueError, match=message), np.errstate(invalid="ignore"):
        head.sample(broken, score)
