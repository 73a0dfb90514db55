"""RecurrentLM: gradients, ragged lengths, states, closures, buffers, errors."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pynlm.layers import Context
from pynlm.layers.stack import Stack, StackBackprop
from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import (
    CLOSED_FORM,
    FINITE_DIFFERENCE_STEP,
    finite_difference_tolerance,
)

T, B, V, E = 4, 3, 7, 3
CELLS = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
DROPOUT = {"dropout_input": 0.2, "dropout_between": 0.3, "dropout_output": 0.25}
RNG = np.random.default_rng(0)
IDS, TARGETS = RNG.integers(0, V, (2, T, B))
RAGGED = [2, 4, 0]

cells = pytest.mark.parametrize("cell", CELLS)


def make(cell: str = "lstm", dtype: Any = np.float64, **changes: Any) -> RecurrentLM:
    config = RecurrentLMConfig(
        **{
            "vocab_size": V, "embedding_size": E, "hidden_sizes": (2, 3), "cell": cell,
            "init_scale": 0.8, "init_bias": "uniform", **DROPOUT, **changes,
        }
    )  # fmt: skip
    model = RecurrentLM(config, dtype)
    model.initialise(1)
    return model


def a_state(model: RecurrentLM, seed: int = 2) -> Any:
    rng = np.random.default_rng(seed)
    zeros = model.initial_state(B)
    return tuple(
        tuple(rng.standard_normal(s.shape).astype(model.dtype) for s in entry) for entry in zeros
    )


def gradients(model: RecurrentLM) -> dict[str, np.ndarray]:
    return {name: p.densify().copy() for name, p in model.parameters.items()}


def step(model: RecurrentLM, ctx: Context, scale: float = 1.0, **given: Any) -> np.ndarray:
    """One forward and backward; the loss."""
    ids, targets = given.pop("ids", IDS), given.pop("targets", TARGETS)
    nll, _, backprop = model(ids, targets, given.pop("state", None), ctx, **given)
    assert backprop is not None
    backprop(scale)
    return nll


@cells
@pytest.mark.parametrize(
    ("tied", "locked", "lengths"),
    [(False, False, None), (True, True, None), (False, True, RAGGED), (True, False, RAGGED)],
)
def test_finite_differences(
    train: Context, cell: str, tied: bool, locked: bool, lengths: list[int] | None
) -> None:
    """Every parameter of the whole model, dropout on, per-token weights, a scale."""
    model = make(cell, tied=tied, locked=locked)
    state = a_state(model)
    weights = np.random.default_rng(4).uniform(0.5, 2, (T, B))

    def loss() -> float:
        nll, _, _ = model(IDS, TARGETS, state, train, lengths)
        return 0.7 * float((weights * nll).sum())

    step(model, train, 0.7, state=state, lengths=lengths, weights=weights)
    rng = np.random.default_rng(5)
    for name, gradient in gradients(model).items():
        w = model.parameters[name].data
        old = w.copy()
        for _ in range(3):
            direction = rng.standard_normal(w.shape)
            ends = []
            for sign in (1, -1):
                w[...] = old + sign * FINITE_DIFFERENCE_STEP * direction
                ends.append(loss())
            w[...] = old
            slope = (ends[0] - ends[1]) / (2 * FINITE_DIFFERENCE_STEP)
            # The second number sets the scale: the terms of the inner product may cancel.
            size = float(abs(gradient * direction).sum())
            want = float((gradient * direction).sum())
            assert_close([slope, size], [want, size], finite_difference_tolerance("m"), what=name)


@cells
def test_parameter_names(cell: str) -> None:
    layers = [
        f"recurrent.{i}.{name}"
        for i in (0, 1)
        for name in ("w_ih", "w_hh", "b", *(["b_hn"] if cell == "gru" else []))
    ]
    model = make(cell)
    assert list(model.parameters) == ["embedding.weight", *layers, "head.weight", "head.bias"]
    assert list(model.parameters.groups) == ["embedding", "recurrent", "head"]
    assert model.parameters["embedding.weight"].sparse
    tied = make(cell, tied=True, head_bias=False)
    assert list(tied.parameters) == ["embedding.weight", *layers]
    assert not tied.parameters["embedding.weight"].sparse


@cells
def test_rows_of_a_ragged_batch_are_what_they_are_alone(score: Context, cell: str) -> None:
    model = make(cell)
    state = a_state(model)
    nll, new, none = model(IDS, TARGETS, state, score, RAGGED)
    assert none is None
    hidden, _ = model.hidden(IDS, state, score, RAGGED)
    for b, n in enumerate(RAGGED):
        start = tuple(tuple(s[b : b + 1] for s in entry) for entry in state)
        row = slice(b, b + 1)
        alone, end, _ = model(IDS[:n, row], TARGETS[:n, row], start, score)
        assert_close(nll[:n, row], alone, CLOSED_FORM, what="nll")
        assert (nll[n:, b] == 0).all() and (hidden[n:, b] == 0).all()
        for entry, entry1 in zip(new, end, strict=True):
            for s, s1 in zip(entry, entry1, strict=True):
                assert_close(s[row], s1, CLOSED_FORM, what="state")


@pytest.mark.parametrize("locked", [False, True])
def test_dropout_belongs_to_the_original_row(train: Context, locked: bool) -> None:
    """Padding a batch, in whatever order of lengths, changes neither masks nor gradients."""
    model = make(locked=locked)
    weights = np.zeros((T, B))
    for b, n in enumerate(RAGGED):
        weights[:n, b] = 1
    nll = step(model, train, weights=weights)
    want = gradients(model)
    model.parameters.zero_grad()
    padding = np.array(TARGETS)
    padding[weights == 0] = -100
    ragged = step(model, train, lengths=RAGGED, targets=padding)
    assert_close(ragged, nll * weights, CLOSED_FORM, what="nll")
    for name, gradient in gradients(model).items():
        assert_close(gradient, want[name], CLOSED_FORM, what=name)


def test_weights(train: Context) -> None:
    model = make()
    step(model, train, 0.25)
    want = gradients(model)
    for weights in (0.25, np.full((T, B), 0.25)):
        model.parameters.zero_grad()
        step(model, train, weights=weights)
        for name, gradient in gradients(model).items():
            assert_close(gradient, want[name], CLOSED_FORM, what=name)


@cells
def test_one_row_and_cuts_in_time(score: Context, cell: str) -> None:
    model = make(cell)
    ids = np.random.default_rng(1).integers(0, V, (61, 1))
    nll, _, _ = model(ids[:-1], ids[1:], None, score)
    state: Any = None
    parts = []
    for first, last in ((0, 1), (1, 20), (20, 60)):
        part, state, _ = model(ids[first:last], ids[first + 1 : last + 1], state, score)
        parts.append(part)
    assert_close(np.concatenate(parts), nll, CLOSED_FORM, what="nll")


def test_hidden_and_log_prob_agree_with_the_loss(score: Context) -> None:
    model = make()
    state = a_state(model)
    nll, new, _ = model(IDS, TARGETS, state, score)
    hidden, new2 = model.hidden(IDS, state, score)
    log_prob = model.log_prob(hidden.reshape(-1, E), score)
    assert hidden.shape == (T, B, E) and log_prob.shape == (T * B, V)
    picked = np.take_along_axis(log_prob, TARGETS.reshape(-1, 1), 1)
    assert_close(-picked.reshape(T, B), nll, CLOSED_FORM, what="nll")
    for a, b in zip(new, new2, strict=True):
        for s, t in zip(a, b, strict=True):
            assert_same_bits(s, t, what="state")


def test_dropout_depends_on_train_seed_and_step(train: Context, score: Context) -> None:
    model = make()
    plain = make(**dict.fromkeys(DROPOUT, 0.0))

    def nll(m: RecurrentLM, ctx: Context) -> bytes:
        return m(IDS, TARGETS, None, ctx)[0].tobytes()

    assert nll(model, score) == nll(plain, score)
    assert nll(model, train) == nll(model, train)
    contexts = [train, replace(train, seed=4), replace(train, step=6), replace(train, time0=4)]
    assert len({nll(model, ctx) for ctx in contexts} | {nll(model, score)}) == 5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_in_flight(train: Context, tied: bool, order: tuple[int, int]) -> None:
    model = make(tied=tied)
    contexts = (train, replace(train, step=6))
    want: dict[str, np.ndarray] = {}
    losses = []
    for ctx in contexts:
        model.parameters.zero_grad()
        losses.append(step(model, ctx, 0.5).copy())
        for name, gradient in gradients(model).items():
            want[name] = want.get(name, 0) + gradient
    model.parameters.zero_grad()
    flying = [model(IDS, TARGETS, None, ctx) for ctx in contexts]
    for i in order:
        backprop = flying[i][2]
        assert backprop is not None
        backprop(0.5)
    for (nll, _, _), loss in zip(flying, losses, strict=True):
        assert_same_bits(nll, loss, what="nll")
    for name, gradient in gradients(model).items():
        assert_close(gradient, want[name], CLOSED_FORM, what=name)


@pytest.mark.parametrize("tied", [False, True])
def test_forward_zero_grad_backward(train: Context, tied: bool) -> None:
    model = make(tied=tied)
    step(model, train)
    want = gradients(model)
    _, _, backprop = model(IDS, TARGETS, None, train)
    model.parameters.zero_grad()
    assert backprop is not None
    backprop()
    for name, gradient in gradients(model).items():
        assert_same_bits(gradient, want[name], what=name)


@pytest.mark.parametrize("tied", [False, True])
def test_dropped_closure_leaves_no_trace(train: Context, tied: bool) -> None:
    model = make(tied=tied)
    nll, state, backprop = model(IDS, TARGETS, None, train, RAGGED)
    del nll, state, backprop
    assert model.pool.leased == 0
    assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_backprop_once(train: Context) -> None:
    _, _, backprop = make()(IDS, TARGETS, None, train)
    assert backprop is not None
    backprop()
    with pytest.raises(RuntimeError, match="RecurrentLM: backprop may be called once"):
        backprop()


@pytest.mark.parametrize("lengths", [None, RAGGED])
def test_layers_are_handed_the_only_reference(
    train: Context, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes in from below, and from above, is free as soon as a layer is done with it."""
    model = make("lstm", np.float32)
    freed: list[int] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: object, given: list[Any], *rest: Any) -> Any:
            result = call(self, [given[0].copy()], *rest)
            before = model.pool.leased
            given.pop()
            freed.append(before - model.pool.leased)
            return result

        return run

    for kind in (Stack, StackBackprop):
        monkeypatch.setattr(kind, "__call__", counted(kind.__call__))
    model(IDS, TARGETS, None, replace(train, train=False), lengths)
    _, _, backprop = model(IDS, TARGETS, None, train, lengths)
    assert backprop is not None
    backprop()
    assert freed == [1, 1, 1]


@cells
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lengths", [None, RAGGED])
def test_buffers_do_not_grow(
    train: Context, cell: str, tied: bool, lengths: list[int] | None
) -> None:
    """20 steps as a trainer makes them, no garbage collector: leases end by reference counts."""
    model = make(cell, np.float32, tied=tied)
    state = model.initial_state(B)
    gc.disable()
    try:
        for i in range(20):
            model.parameters.zero_grad()
            ctx = replace(train, step=i)
            nll, state, backprop = model(IDS, TARGETS, state, ctx, lengths, 1 / B)
            assert backprop is not None
            backprop()
            if i == 2:
                made, size = model.pool.allocations, model.pool.nbytes
    finally:
        gc.enable()
    assert (model.pool.allocations, model.pool.nbytes) == (made, size)
    del nll, backprop
    model.parameters.zero_grad()
    assert model.pool.leased == 0


@cells
def test_states_are_never_mutated_nor_aliased(train: Context, cell: str) -> None:
    model = make(cell)
    state = a_state(model)
    for entry in state:
        for s in entry:
            s.flags.writeable = False
    _, new, backprop = model(IDS, TARGETS, state, train, RAGGED)
    kept = [[s.copy() for s in entry] for entry in new]
    assert backprop is not None
    backprop()
    for _ in range(3):
        model(IDS, TARGETS, new, train)
    for entry, old in zip(new, kept, strict=True):
        for s, k in zip(entry, old, strict=True):
            assert_same_bits(s, k, what="state")
            assert s.base is None


def test_same_bits_for_kept_and_new_buffers(train: Context) -> None:
    """Leftovers in reused memory never show."""
    model = make(dtype=np.float32)
    wanted = None
    for lengths in (None, RAGGED, None, [4, 3, 1], None):
        model.parameters.zero_grad()
        nll = step(model, train, lengths=lengths)
        if lengths is None:
            found = [nll.copy(), *gradients(model).values()]
            for a, b in zip(found, wanted or found, strict=True):
                assert_same_bits(a, b, what="step")
            wanted = found


@pytest.mark.parametrize("shape", [(1, 1), (1, B), (T, 1), (T, 0), (0, B)])
def test_edge_sizes(train: Context, shape: tuple[int, int]) -> None:
    model = make()
    ids = np.zeros(shape, np.int64)
    nll = step(model, train, ids=ids, targets=ids)
    assert nll.shape == shape
    if 0 in shape:
        assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_all_rows_empty(train: Context) -> None:
    model = make()
    nll = step(model, train, lengths=[0, 0, 0])
    assert (nll == 0).all()
    assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_lists_are_converted(score: Context) -> None:
    model = make()
    want = model(IDS, TARGETS, None, score)[0]
    got = model(IDS.tolist(), TARGETS.astype(np.uint8).tolist(), None, score)[0]
    assert_same_bits(got, want, what="nll")


def test_state_dict_round_trip(score: Context) -> None:
    a, b = make(), make()
    b.initialise(2)
    b.load_state_dict(a.state_dict())
    assert_same_bits(a(IDS, TARGETS, None, score)[0], b(IDS, TARGETS, None, score)[0], what="nll")
    with pytest.raises(ValueError, match=r"load_state_dict: head.bias must be float64 \[7\]"):
        b.load_state_dict({**a.state_dict(), "head.bias": np.zeros(8)})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": [1, 2]}, ValueError, r"RecurrentLM: ids must be \[T, B\], got \[2\]"),
        ({"ids": np.full((T, B), 7)}, IndexError, "targets|ids"),
        ({"ids": np.full((T, B), -1)}, IndexError, "targets|ids"),
        ({"ids": np.full((T, B), 0.5)}, TypeError, "ids must be integers, got float64"),
        ({"targets": IDS[1:]}, ValueError, r"targets must be \[T, B\] = \[4, 3\], got \[3, 3\]"),
        ({"targets": np.full((T, B), 7)}, IndexError, "targets|ids"),
        ({"state": ()}, ValueError, "one entry for each of 2 layers, got 0"),
        ({"state": ((np.zeros((B, 2)),),) * 2}, ValueError, r"state must have 2 array\(s\)"),
        ({"state": ((np.zeros((B, 5)),) * 2,) * 2}, ValueError, r"state must be \[B=3, H=2\]"),
        ({"lengths": [5, 1, 1]}, ValueError, r"lengths must be in \[0, T=4\], got 5"),
        ({"lengths": [1, 1]}, ValueError, r"lengths must be int32 \[B=3\], got \[2\]"),
        ({"weights": np.ones(T)}, ValueError, r"weights must be \[T, B\] = \[4, 3\] or a number"),
    ],
)
def test_call_errors(
    train: Context, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = make()
    given = {
        "ids": IDS, "targets": TARGETS, "state": None, "ctx": train, "lengths": None,
        "weights": None, **change,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        model(**given)
    assert all((gradient == 0).all() for gradient in gradients(model).values())
    model.parameters.zero_grad()
    assert model.pool.leased == 0


def test_a_steady_step_allocates_no_array() -> None:
    """Peak of a step's new memory: small objects only, no [T, B, H], no [V, H]."""
    model = make(dtype=np.float32, vocab_size=1000, embedding_size=64, hidden_sizes=(64, 64))
    ids = np.random.default_rng(0).integers(0, 1000, (20, 8)).astype(np.int32)
    state = model.initial_state(8)
    tracemalloc.start()
    try:
        for i in range(8):
            if i == 5:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
            model.parameters.zero_grad()
            ctx = Context(train=True, seed=1, step=i)
            _, state, backprop = model(ids, ids, state, ctx, weights=1 / 8)
            assert backprop is not None
            backprop()
            del backprop
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest_state = 2 * 2 * 8 * 64 * 4
    assert peak - before < 3 * largest_state + 16_000 < 20 * 8 * 64 * 4
    assert after - before < 4_000
