"""LSTM, GRU and RNN layers: gradients, lengths in any order, states, buffers, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pynlm.layers import (
    GRU,
    LSTM,
    RNN,
    Context,
    Parameters,
    Pool,
    Recurrent,
    RecurrentOptions,
)
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM

T, B, I, H = 5, 4, 3, 2
KINDS: dict[str, tuple[type[Recurrent], dict[str, str]]] = {
    "lstm": (LSTM, {}),
    "gru": (GRU, {}),
    "rnn_tanh": (RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (RNN, {"nonlinearity": "relu"}),
}
LENGTHS = {"full": None, "sorted": [5, 3, 3, 0], "unsorted": [3, 0, 5, 4], "zero": [0, 0, 0, 0]}

kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, dtype: Any = np.float64, seed: int = 0) -> tuple[Recurrent, Parameters]:
    cell, options = KINDS[kind]
    parameters = Parameters(cell.specs("r", I, H), dtype, Pool())
    rng = np.random.default_rng(seed)
    for p in parameters.values():
        p.data[...] = rng.standard_normal(p.data.shape)
    return cell(parameters, "r", **options), parameters


def inputs(layer: Recurrent, seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((T, B, I)).astype(layer.dtype),
        "state": tuple(
            rng.standard_normal((B, H)).astype(layer.dtype) for _ in range(layer.states)
        ),
        "dy": rng.standard_normal((T, B, H)).astype(layer.dtype),
        "dstate": tuple(
            rng.standard_normal((B, H)).astype(layer.dtype) for _ in range(layer.states)
        ),
    }


@kinds
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_finite_differences(
    kind: str,
    lengths: list[int] | None,
    check_gradients: Callable[..., None],
    train: Context,
    score: Context,
) -> None:
    layer, parameters = make(kind)
    check_gradients(layer, parameters, inputs(layer), lengths, train=train, loss_in=score)


@kinds
def test_rows_do_not_depend_on_their_neighbours(kind: str, score: Context) -> None:
    """A row of a ragged batch is what it is alone, whatever the order."""
    layer, _ = make(kind)
    a = inputs(layer)
    lengths = LENGTHS["unsorted"]
    assert lengths is not None
    (y, state), _ = layer(a["x"], a["state"], score, lengths)
    for b, n in enumerate(lengths):
        start = tuple(s[b : b + 1] for s in a["state"])
        (y1, state1), _ = layer(a["x"][:n, b : b + 1], start, score)
        assert_close(y[:n, b], y1[:, 0], CLOSED_FORM, what="layer")
        assert (y[n:, b] == 0).all()
        for s, s1 in zip(state, state1, strict=True):
            assert_close(s[b], s1[0], CLOSED_FORM, what="layer")


@kinds
def test_train_and_eval_agree_and_time_can_be_cut(
    kind: str, train: Context, score: Context
) -> None:
    layer, _ = make(kind)
    a = inputs(layer)
    (y, state), backprop = layer(a["x"], a["state"], train)
    (y2, middle), none = layer(a["x"][:2], a["state"], score)
    (y3, end), _ = layer(a["x"][2:], middle, score)
    assert backprop is not None and none is None
    assert_close(y, np.concatenate([y2, y3]), CLOSED_FORM, what="layer")
    for s, s2 in zip(state, end, strict=True):
        assert_close(s, s2, CLOSED_FORM, what="layer")


@kinds
def test_gradients_accumulate(kind: str, train: Context) -> None:
    layer, parameters = make(kind)
    a = inputs(layer)
    for _ in range(2):
        _, backprop = layer(a["x"], a["state"], train)
        assert backprop is not None
        backprop(a["dy"])
    twice = {n: p.densify().copy() for n, p in parameters.items()}
    parameters.zero_grad()
    _, backprop = layer(a["x"], a["state"], train)
    assert backprop is not None
    backprop(a["dy"])
    for n, p in parameters.items():
        assert_close(twice[n], 2 * p.densify(), CLOSED_FORM, what="layer")


@kinds
def test_two_forwards_in_flight(kind: str, train: Context) -> None:
    layer, parameters = make(kind)
    a, b = inputs(layer, 1), inputs(layer, 2)

    def alone(c: dict[str, Any]) -> list[np.ndarray]:
        parameters.zero_grad()
        _, backprop = layer(c["x"], c["state"], train)
        assert backprop is not None
        return [backprop(c["dy"]).copy(), *(p.densify().copy() for p in parameters.values())]

    want_a, want_b = alone(a), alone(b)
    parameters.zero_grad()
    _, backprop_a = layer(a["x"], a["state"], train)
    _, backprop_b = layer(b["x"], b["state"], train)
    assert backprop_a is not None and backprop_b is not None
    dx_a, dx_b = backprop_a(a["dy"]), backprop_b(b["dy"])
    np.testing.assert_array_equal(dx_a, want_a[0])
    np.testing.assert_array_equal(dx_b, want_b[0])
    for p, g, h in zip(parameters.values(), want_a[1:], want_b[1:], strict=True):
        assert_close(p.grad, g + h, CLOSED_FORM, what="layer")


@kinds
@pytest.mark.parametrize("lengths", [None, [3, 0, 5, 4]])
def test_inputs_are_not_mutated_and_states_not_aliased(
    kind: str, lengths: list[int] | None, train: Context
) -> None:
    layer, _ = make(kind)
    a = inputs(layer)
    for x in (a["x"], *a["state"], a["dy"], *a["dstate"]):
        x.flags.writeable = False
    (y, state), backprop = layer(a["x"], a["state"], train, lengths)
    assert backprop is not None
    kept = [s.copy() for s in state]
    assert not any(np.shares_memory(s, t) for s in state for t in (y, *a["state"]))
    backprop(a["dy"], a["dstate"])
    for _ in range(3):
        layer(a["x"], state, train, lengths)
    for s, k in zip(state, kept, strict=True):
        np.testing.assert_array_equal(s, k)


@kinds
def test_buffers_come_back(kind: str, train: Context) -> None:
    layer, _ = make(kind, np.float32)
    a = inputs(layer)
    for step in range(20):
        (y, state), backprop = layer(a["x"], a["state"], train)
        assert backprop is not None
        if step % 2:
            backprop(a["dy"])
        del y, state, backprop
        assert layer.pool.leased == 0
        if step == 3:
            made = layer.pool.allocations
    assert layer.pool.allocations == made


@kinds
def test_backprop_once(kind: str, train: Context) -> None:
    layer, _ = make(kind)
    a = inputs(layer)
    _, backprop = layer(a["x"], a["state"], train)
    assert backprop is not None
    backprop(a["dy"])
    with pytest.raises(RuntimeError, match=r" r: backprop may be called once"):
        backprop(a["dy"])


@kinds
@pytest.mark.parametrize("shape", [(1, B), (T, 1), (1, 1), (T, 0), (0, B)])
def test_edge_sizes(kind: str, shape: tuple[int, int], train: Context) -> None:
    layer, parameters = make(kind)
    x = np.ones((*shape, I))
    state = layer.initial_state(shape[1])
    (y, last), backprop = layer(x, state, train)
    assert backprop is not None
    assert y.shape == (*shape, H)
    assert backprop(y).shape == x.shape
    if 0 in shape:
        assert all((p.densify() == 0).all() for p in parameters.values())
        for s, t in zip(last, state, strict=True):
            np.testing.assert_array_equal(s, t)


def test_lists_and_layouts_are_converted(score: Context) -> None:
    layer, _ = make("gru")
    a = inputs(layer)
    want = layer(a["x"], a["state"], score)[0][0]
    for x in (a["x"].tolist(), np.asfortranarray(a["x"])):
        np.testing.assert_array_equal(layer(x, a["state"], score)[0][0], want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.ones((T, B))}, ValueError, r"LSTM r: x must be \[T, B, I=3\], got \[5, 4\]"),
        ({"x": np.ones((T, B, 7))}, ValueError, r"x must be \[T, B, I=3\], got \[5, 4, 7\]"),
        (
            {"x": np.ones((T, B, I), np.float32)},
            TypeError,
            r"LSTM r: x must be float64, got float32 \[5, 4, 3\]",
        ),
        ({"x": "words"}, TypeError, "LSTM r: x must be float64, got str 'words'"),
        ({"x": np.ones((T, B, I), object)}, TypeError, "LSTM r: x must be float64, got object"),
        ({"state": [[[1.0], [2.0, 3.0]]] * 2}, TypeError, "arrays of state must be float64, got l"),
        ({"state": ()}, ValueError, r"state must have 2 array\(s\) \[B, H\], got 0"),
        ({"state": (np.ones((B, 7)),) * 2}, ValueError, r"arrays of state must be \[B=4, H=2\]"),
        ({"lengths": [1, 2]}, ValueError, r"lengths must be int32 \[B=4\], got \[2\]"),
        ({"lengths": [1, 2, 6, 0]}, ValueError, r"lengths must be in \[0, T=5\], got 6"),
        ({"lengths": [1, 2, -1, 0]}, ValueError, r"lengths must be in \[0, T=5\], got -1"),
        ({"lengths": [1.0, 2.0, 1.0, 0.0]}, TypeError, "lengths must be integers, got float64"),
    ],
)
def test_forward_errors(
    change: dict[str, Any], error: type[Exception], message: str, train: Context
) -> None:
    layer, _ = make("lstm")
    a = {"x": np.ones((T, B, I)), "state": layer.initial_state(B), "lengths": None, **change}
    with pytest.raises(error, match=message):
        layer(a["x"], a["state"], train, a["lengths"])


def test_backward_errors(train: Context) -> None:
    layer, parameters = make("lstm")
    a = inputs(layer)
    for args, message in (
        ((a["dy"][1:],), r"dy must be \[T, B, H\] = \[5, 4, 2\], got \[4, 4, 2\]"),
        ((a["dy"], a["dstate"][:1]), r"dstate must have 2 array\(s\) \[B, H\], got 1"),
        (
            (a["dy"], [np.ones((B + 1, H))] * 2),
            r"arrays of dstate must be \[B=4, H=2\], got \[5, 2\]",
        ),
    ):
        # Rows that must be sorted: nothing may be picked from arrays that do not fit.
        _, backprop = layer(a["x"], a["state"], train, LENGTHS["unsorted"])
        assert backprop is not None
        with pytest.raises(ValueError, match=message):
            backprop(*args)
    assert all(p.state == "unset" for p in parameters.values())
    with pytest.raises(ValueError, match="nonlinearity must be tanh or relu, got 'elu'"):
        RNN(parameters, "r", nonlinearity="elu")


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("lengths", [None, [2, 0, 4, 3]])
def test_all_cell_states(train: bool, lengths: list[int] | None) -> None:
    options = RecurrentOptions(projection=3, peephole=True)
    layer = LSTM(Parameters(LSTM.specs("l", 5, 7, options=options), np.float64), "l", options)
    rng = np.random.default_rng(0)
    for p in (*layer.extra.values(), layer.w_ih, layer.w_hh, layer.b):
        p.data[...] = rng.standard_normal(p.data.shape)
    x, state = rng.standard_normal((4, 4, 5)), layer.initial_state(4)
    cells = np.full((4, 4, 7), np.nan)
    ctx = Context(train=train)
    (_, (_, last)), _ = layer(x, state, ctx, lengths, cells=cells)
    for row in range(4):
        n = 4 if lengths is None else lengths[row]
        for t in range(n):
            (_, (_, c)), _ = layer(x[: t + 1], state, ctx)
            assert_close(cells[t, row], c[row], CLOSED_FORM, what=f"c of row {row}, step {t}")
        assert not cells[n:, row].any()
        if n:
            assert_same_bits(last[row], cells[n - 1, row], what="c_last")


def test_cell_states_where_there_are_none() -> None:
    layer = GRU(Parameters(GRU.specs("g", 5, 7)), "g")
    x, state = np.ones((4, 2, 5), np.float32), layer.initial_state(2)
    with pytest.raises(ValueError, match="GRU g: cells must be None: only an LSTM has cell states"):
        layer(x, state, Context(train=False), cells=np.empty((4, 2, 7), np.float32))
    lstm = LSTM(Parameters(LSTM.specs("l", 5, 7)), "l")
    wanted = r"LSTM l: cells must be float32 \[T, B, H\] = \[4, 2, 7\]"
    with pytest.raises(ValueError, match=wanted):
        lstm(x, lstm.initial_state(2), Context(train=False), cells=np.empty((4, 2, 7)))


def test_cell_states_into_a_read_only_array() -> None:
    """Named before anything is computed."""
    layer = LSTM(Parameters(LSTM.specs("l", 5, 7)), "l")
    x, cells = np.ones((4, 2, 5), np.float32), np.zeros((4, 2, 7), np.float32)
    cells.flags.writeable = False
    message = r"LSTM l: cells must be writeable, got a read-only float32 \[4, 2, 7\]"
    with pytest.raises(ValueError, match=message):
        layer(x, layer.initial_state(2), Context(train=False), cells=cells)


VARIED: dict[str, tuple[type[Recurrent], dict[str, Any]]] = {
    "lstm": (LSTM, {}),
    "lstm-projection": (LSTM, {"projection": 9, "peephole": True}),
    "lstm-coupled": (LSTM, {"coupled_gates": True, "layer_norm": True}),
    "gru": (GRU, {}),
    "gru-before": (GRU, {"reset_before": True, "zoneout": 0.2}),
    "rnn": (RNN, {"layer_norm": True}),
}


@pytest.mark.parametrize("varied", VARIED.values(), ids=VARIED)
@pytest.mark.parametrize("batch", [2, 7])
def test_packed_parameters_give_the_same_bits(
    varied: tuple[type[Recurrent], dict[str, Any]], batch: int, score: Context
) -> None:
    cell, chosen = varied
    options = RecurrentOptions(**chosen)
    parameters = Parameters(cell.specs("0", 23, 37, options=options))
    rng = np.random.default_rng(3)
    parameters.data[:] = rng.standard_normal(parameters.data.size) * 0.3
    layer = cell(parameters, "0", options=options)
    x = rng.standard_normal((3, batch, 23)).astype(np.float32)
    state = tuple(s + np.float32(0.1) for s in layer.initial_state(batch))
    (y, last), _ = layer(x, state, score)
    before = [np.array(a) for a in (y, *last)]
    parameters.pack()
    (y, last), _ = layer(x, state, score)
    for a, b in zip((y, *last), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert bool(layer.w_hh._packed) == (batch > 4)  # few rows read weights as they stand
    assert layer.w_ih._packed  # its product has a row for each step
