"""Bidirectional and reversed layers: gradients, lengths, masks, buffers, errors."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pynlm.layers import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    Context,
    Parameters,
    Pool,
    Recurrent,
    RecurrentOptions,
    Reversed,
    bidirectional,
)
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM

T, B, I, H = 5, 4, 3, 2
CELLS: dict[str, type[Recurrent]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
LENGTHS = {"full": None, "sorted": [5, 3, 1, 0], "unsorted": [3, 0, 5, 1], "zero": [0, 0, 0, 0]}
RAGGED = [3, 0, 5, 1]
PLAIN = RecurrentOptions()
RANDOM = {"recurrent_dropout": 0.4, "weight_drop": 0.3, "zoneout": 0.25}

cells = pytest.mark.parametrize("cell", CELLS)
merges = pytest.mark.parametrize("merge", ["concat", "sum"])


def make(
    cell: str,
    merge: str = "concat",
    options: RecurrentOptions = PLAIN,
    dtype: Any = np.float64,
    first: int = 0,
) -> tuple[Bidirectional, Parameters]:
    kind = CELLS[cell]
    specs = [s for way in ("there", "back") for s in kind.specs(way, I, H, options=options)]
    parameters = Parameters(specs, dtype, Pool())
    rng = np.random.default_rng(0)
    for p in parameters.values():
        p.data[...] = rng.standard_normal(p.data.shape)
    there = kind(parameters, "there", options=options, index=first)
    back = kind(parameters, "back", options=options, index=first + 1)
    return Bidirectional(there, back, merge), parameters


def inputs(layer: Bidirectional | Reversed, seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(layer.dtype)

    return {
        "x": draw(T, B, I),
        "state": tuple(draw(*s.shape) for s in layer.initial_state(B)),
        "dy": draw(T, B, layer.output_size),
        "dstate": tuple(draw(*s.shape) for s in layer.initial_state(B)),
    }


def test_examples() -> None:
    found = doctest.testmod(bidirectional)
    assert found.attempted and not found.failed


@cells
@merges
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_finite_differences(
    cell: str,
    merge: str,
    lengths: list[int] | None,
    check_gradients: Callable[..., None],
    train: Context,
    score: Context,
) -> None:
    layer, parameters = make(cell, merge)
    check_gradients(layer, parameters, inputs(layer), lengths, train=train, loss_in=score)


@cells
@merges
@pytest.mark.parametrize("name", [*RANDOM, "all"])
def test_finite_differences_of_variants(
    cell: str, merge: str, name: str, check_gradients: Callable[..., None]
) -> None:
    """The context fixes what is drawn; rows are sorted inside."""
    options = RecurrentOptions(**(RANDOM if name == "all" else {name: RANDOM[name]}))
    layer, parameters = make(cell, merge, options, first=2)
    ctx = Context(train=True, seed=3, step=5, time0=11)
    check_gradients(layer, parameters, inputs(layer), RAGGED, train=ctx, loss_in=ctx)


@merges
def test_finite_differences_of_states_of_two_sizes(
    merge: str, check_gradients: Callable[..., None]
) -> None:
    """With a projection h is [B, P] and c [B, H]."""
    layer, parameters = make("lstm", merge, RecurrentOptions(projection=3, zoneout=0.25))
    assert layer.output_size == (6 if merge == "concat" else 3)
    ctx = Context(train=True, seed=3)
    check_gradients(layer, parameters, inputs(layer), RAGGED, train=ctx, loss_in=ctx)


@cells
def test_finite_differences_of_a_reversed_layer(
    cell: str, check_gradients: Callable[..., None], train: Context, score: Context
) -> None:
    both, parameters = make(cell)
    layer = Reversed(both.backward_layer)
    own = {name: p for name, p in parameters.items() if name.startswith("back")}
    check_gradients(layer, own, inputs(layer), RAGGED, train=train, loss_in=score)


@cells
@merges
def test_is_two_runs_of_every_row(cell: str, merge: str, score: Context) -> None:
    """Row by row: the layers alone, the second over the row's own steps, last first."""
    layer, _ = make(cell, merge)
    a, half = inputs(layer), layer.states // 2
    (y, state), _ = layer(a["x"], a["state"], score, RAGGED)
    for b, n in enumerate(RAGGED):
        x, start = a["x"][:n, b : b + 1], [s[b : b + 1] for s in a["state"]]
        (there, ends), _ = layer.forward_layer(x, start[:half], score)
        (back, begins), _ = layer.backward_layer(x[::-1], start[half:], score)
        parts = [there[:, 0], back[::-1, 0]]
        expected = parts[0] + parts[1] if merge == "sum" else np.concatenate(parts, axis=1)
        assert_close(y[:n, b], expected, CLOSED_FORM, what="y")
        assert not y[n:, b].any()
        for got, want in zip(state, ends + begins, strict=True):
            assert_close(got[b], want[0], CLOSED_FORM, what="state")


@cells
def test_padding_is_not_seen(cell: str, train: Context) -> None:
    layer, _ = make(cell)
    a = inputs(layer)
    beyond = np.arange(T)[:, None] >= np.array(RAGGED)
    results = []
    for filler in (0.0, 1e3):
        x, dy = a["x"].copy(), a["dy"].copy()
        x[beyond] = dy[beyond] = filler
        (y, state), backprop = layer(x, a["state"], train, RAGGED)
        assert backprop is not None
        dx = backprop(dy, a["dstate"])
        assert not dx[beyond].any()
        results.append([y.copy(), *state, dx.copy(), *backprop.dstart])
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other, what="with other padding")


@cells
@merges
@pytest.mark.parametrize("name", RANDOM)
def test_masks_go_by_the_row_not_by_its_place_or_the_padding(
    cell: str, merge: str, name: str
) -> None:
    layer, _ = make(cell, merge, RecurrentOptions(**{name: RANDOM[name]}))
    a, ctx = inputs(layer), Context(train=True, seed=3)
    (want, _), _ = layer(a["x"], a["state"], ctx, RAGGED)
    want = want.copy()
    # The same rows in a longer batch, then sorted by a caller who says which row is which.
    longer = np.concatenate([a["x"], np.ones((3, B, I))])
    (y, _), _ = layer(longer, a["state"], ctx, RAGGED)
    assert_close(y[:T], want, CLOSED_FORM, what="longer")
    order = np.array([2, 0, 3, 1])
    start = tuple(s[order] for s in a["state"])
    lengths = np.array(RAGGED)[order]
    (y, _), _ = layer(np.ascontiguousarray(a["x"][:, order]), start, ctx, lengths, order)
    assert_close(y, want[:, order], CLOSED_FORM, what="sorted by the caller")


@cells
@pytest.mark.parametrize("name", RANDOM)
def test_directions_draw_different_masks(cell: str, name: str) -> None:
    """With the same weights and a palindrome as input, only the masks tell the ways apart."""
    layer, parameters = make(cell, options=RecurrentOptions(**{name: 0.5}))
    for parameter, p in parameters.items():
        if parameter.startswith("back"):
            p.data[...] = parameters[parameter.replace("back", "there")].data
    x = np.random.default_rng(1).standard_normal((T, B, I))
    x = x + x[::-1]
    state = tuple(np.ones((B, H)) for _ in range(layer.states))
    (same, _), _ = layer(x, state, Context(train=False))
    assert_close(same[::-1, :, H:], same[..., :H], CLOSED_FORM, what="without masks")
    (y, _), _ = layer(x, state, Context(train=True, seed=3))
    assert np.abs(y[::-1, :, H:] - y[..., :H]).max() > 1e-3


@cells
@merges
def test_two_forwards_in_flight(cell: str, merge: str, train: Context) -> None:
    layer, parameters = make(cell, merge)
    a, b = inputs(layer, 1), inputs(layer, 2)

    def alone(c: dict[str, Any]) -> list[np.ndarray]:
        parameters.zero_grad()
        _, backprop = layer(c["x"], c["state"], train, RAGGED)
        assert backprop is not None
        return [backprop(c["dy"]).copy(), *(p.densify().copy() for p in parameters.values())]

    want_a, want_b = alone(a), alone(b)
    parameters.zero_grad()
    _, backprop_a = layer(a["x"], a["state"], train, RAGGED)
    _, backprop_b = layer(b["x"], b["state"], train, RAGGED)
    assert backprop_a is not None and backprop_b is not None
    dx_b, dx_a = backprop_b(b["dy"]), backprop_a(a["dy"])
    assert_same_bits(dx_a, want_a[0], what="dx of the first")
    assert_same_bits(dx_b, want_b[0], what="dx of the second")
    for p, g, h in zip(parameters.values(), want_a[1:], want_b[1:], strict=True):
        assert_close(p.grad, g + h, CLOSED_FORM, what=p.name)


@cells
@merges
def test_nothing_is_mutated_or_aliased(cell: str, merge: str, train: Context) -> None:
    layer, _ = make(cell, merge)
    a = inputs(layer)
    for x in (a["x"], *a["state"], a["dy"], *a["dstate"]):
        x.flags.writeable = False
    (y, state), backprop = layer(a["x"], a["state"], train)
    assert backprop is not None
    kept = [s.copy() for s in state]
    assert not any(np.shares_memory(s, t) for s in state for t in (y, *a["state"]))
    y.fill(7)  # merged outputs are the caller's
    dx = backprop(a["dy"], a["dstate"]).copy()
    for _ in range(3):
        layer(a["x"], state, train)
    for s, k in zip(state, kept, strict=True):
        assert_same_bits(s, k, what="state")
    _, again = layer(a["x"], a["state"], train)
    assert again is not None
    assert_same_bits(again(a["dy"], a["dstate"]), dx, what="dx")


@cells
@merges
def test_buffers_come_back(cell: str, merge: str, train: Context) -> None:
    layer, _ = make(cell, merge, dtype=np.float32)
    a, made = inputs(layer), 0
    for step in range(20):
        (y, state), backprop = layer(a["x"], a["state"], train, RAGGED)
        assert backprop is not None
        if step % 2:
            backprop(a["dy"])
        del y, state, backprop
        assert layer.pool.leased == 0
        if step == 3:
            made = layer.pool.allocations
    assert layer.pool.allocations == made


@cells
@merges
@pytest.mark.parametrize("shape", [(1, B), (T, 1), (1, 1), (T, 0), (0, B), (0, 0)])
@pytest.mark.parametrize("ragged", [False, True])
def test_edge_sizes(
    cell: str, merge: str, shape: tuple[int, int], ragged: bool, train: Context
) -> None:
    layer, parameters = make(cell, merge)
    x = np.ones((*shape, I))
    state = tuple(s + 0.5 for s in layer.initial_state(shape[1]))
    lengths = [min(shape[0], b) for b in range(shape[1])] if ragged else None
    (y, last), backprop = layer(x, state, train, lengths)
    assert backprop is not None
    assert y.shape == (*shape, layer.output_size)
    assert backprop(y).shape == x.shape
    assert len(backprop.dstart) == layer.states
    if 0 in shape:
        assert all((p.densify() == 0).all() for p in parameters.values())
        for s, t in zip(last, state, strict=True):
            assert_same_bits(s, t, what="state")


def test_evaluation_returns_no_backprop(score: Context) -> None:
    layer, _ = make("gru")
    a = inputs(layer)
    assert layer(a["x"], a["state"], score)[1] is None
    assert Reversed(layer.backward_layer)(a["x"], a["state"][:1], score)[1] is None


@merges
def test_backprop_once(merge: str, train: Context) -> None:
    layer, _ = make("gru", merge)
    a = inputs(layer)
    _, backprop = layer(a["x"], a["state"], train)
    assert backprop is not None
    backprop(a["dy"])
    with pytest.raises(RuntimeError, match=r"Bidirectional .*: backprop may be called once"):
        backprop(a["dy"])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.ones((T, B))}, ValueError, r"x must be \[T, B, I=3\], got \[5, 4\]"),
        ({"x": np.ones((T, B, 7))}, ValueError, r"x must be \[T, B, I=3\], got \[5, 4, 7\]"),
        (
            {"x": np.ones((T, B, I), np.float32)},
            TypeError,
            r"x must be float64, got float32 \[5, 4, 3\]",
        ),
        ({"state": ()}, ValueError, r"state must have [24] array\(s\) \[B, H\], got 0"),
        ({"state": 7}, ValueError, r"arrays of state must be \[B=4, H=2\], got \[4, 7\]"),
        ({"lengths": [1, 2]}, ValueError, r"lengths must be int32 \[B=4\], got \[2\]"),
        ({"lengths": [1, 2, 6, 0]}, ValueError, r"lengths must be in \[0, T=5\], got 6"),
        ({"lengths": [1.0, 2.0, 1.0, 0.0]}, TypeError, "lengths must be integers, got float64"),
    ],
)
def test_forward_errors(
    change: dict[str, Any], error: type[Exception], message: str, reverse: bool, train: Context
) -> None:
    both, _ = make("lstm")
    layer = Reversed(both.backward_layer) if reverse else both
    a = {"x": np.ones((T, B, I)), "state": layer.initial_state(B), "lengths": None, **change}
    if a["state"] == 7:
        a["state"] = (np.ones((B, 7)),) * layer.states
    name = r"Reversed LSTM back: " if reverse else r"Bidirectional \(LSTM there, LSTM back\): "
    with pytest.raises(error, match=name + message):
        layer(a["x"], a["state"], train, a["lengths"])


@merges
def test_backward_errors_leave_no_gradient(merge: str, train: Context) -> None:
    """Not even that of the direction that could have been computed."""
    layer, parameters = make("lstm", merge)
    a = inputs(layer)
    narrow = a["dstate"][3].astype(np.float32)
    for args, error, message in (
        ((a["dy"][1:],), ValueError, rf"dy must be \[5, 4, {layer.output_size}\], got \[4, 4, "),
        ((a["dy"].astype(np.float32),), TypeError, "dy must be float64, got float32"),
        ((a["dy"], a["dstate"][:2]), ValueError, r"dstate must have 4 array\(s\) \[B, H\], got 2"),
        (
            (a["dy"], (*a["dstate"][:3], np.ones((B, 7)))),
            ValueError,
            r"arrays of dstate must be \[B=4, H=2\], got \[4, 7\]",
        ),
        ((a["dy"], (*a["dstate"][:3], narrow)), TypeError, "dstate must be float64, got float32"),
    ):
        _, backprop = layer(a["x"], a["state"], train)
        assert backprop is not None
        with pytest.raises(error, match=r"Bidirectional \(.*\): .*" + message):
            backprop(*args)
    assert all(p.state == "unset" for p in parameters.values())


def test_construction_errors() -> None:
    def layer(
        kind: type[Recurrent] = LSTM,
        sizes: tuple[int, int] = (I, H),
        dtype: Any = np.float64,
        index: int = 0,
        **chosen: float,
    ) -> Recurrent:
        options = RecurrentOptions(**chosen)
        parameters = Parameters(kind.specs("r", *sizes, options=options), dtype)
        return kind(parameters, "r", options=options, index=index)

    name = r"Bidirectional \(LSTM r, LSTM r\): "
    for other, error, message in (
        (layer(GRU), TypeError, r"\(LSTM r, GRU r\): layers must be of one kind"),
        (layer(dtype=np.float32), TypeError, name + "layers must have one dtype, got float64 and "),
        (
            layer(sizes=(I, 7)),
            ValueError,
            name + ".*the same sizes .*, got .3, 2, 2. and .3, 7, 7.",
        ),
        (
            layer(sizes=(7, H)),
            ValueError,
            name + ".*the same sizes .*, got .3, 2, 2. and .7, 2, 2.",
        ),
        (layer(zoneout=0.1), ValueError, name + ".*must differ in index, got 0 twice"),
        (layer(weight_drop=0.1), ValueError, name + ".*must differ in index, got 0 twice"),
        (None, TypeError, "Bidirectional: layers must be recurrent layers, got NoneType"),
    ):
        with pytest.raises(error, match=message):
            Bidirectional(layer(), other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name + "merge must be concat or sum, got 'mean'"):
        Bidirectional(layer(), layer(), "mean")
    Bidirectional(layer(), layer(zoneout=0.1, index=1))


@pytest.mark.parametrize("wrong", ["Reversed", "Bidirectional", None])
def test_reversed_construction_errors(wrong: str | None) -> None:
    both, _ = make("gru")
    other: Any = {"Reversed": Reversed(both.forward_layer), "Bidirectional": both}.get(wrong or "")
    name = wrong or "NoneType"
    with pytest.raises(TypeError, match=f"Reversed: layer must be a recurrent layer, got {name}"):
        Reversed(other)
    if other is not None:
        with pytest.raises(TypeError, match=f"layers must be recurrent layers, got {name}"):
            Bidirectional(both.forward_layer, other)


@merges
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_all_cell_states(merge: str, training: bool, lengths: list[int] | None) -> None:
    """Those of each layer alone on each row alone, at their own times."""
    options = RecurrentOptions(projection=3, peephole=True)
    layer, _ = make("lstm", merge, options)
    a, ctx = inputs(layer), Context(train=training)
    there, back, alone = (np.full((T, B, H), np.nan) for _ in range(3))
    (y, last), _ = layer(a["x"], a["state"], ctx, lengths, cells=(there, back))
    y, plain = y.copy(), layer(a["x"], a["state"], ctx, lengths)[0][0]
    assert_same_bits(y, plain, what="y")
    Reversed(layer.backward_layer)(a["x"], a["state"][2:], ctx, lengths, cells=alone)
    assert_same_bits(alone, back, what="cells of Reversed")
    for b, n in enumerate([T] * B if lengths is None else lengths):
        x, start = a["x"][:n, b : b + 1], [s[b : b + 1] for s in a["state"]]
        want = np.empty((n, 1, H))
        layer.forward_layer(x, start[:2], ctx, cells=want)
        assert_close(there[:n, b], want[:, 0], CLOSED_FORM, what=f"forward, row {b}")
        layer.backward_layer(x[::-1], start[2:], ctx, cells=want)
        assert_close(back[:n, b], want[::-1, 0], CLOSED_FORM, what=f"backward, row {b}")
        assert not there[n:, b].any() and not back[n:, b].any()
        if n:
            assert_same_bits(last[1][b], there[n - 1, b], what="c_last, forward")
            assert_same_bits(last[3][b], back[0, b], what="c_last, backward")


def test_cell_states_in_two_halves_of_an_array(score: Context) -> None:
    layer, _ = make("lstm")
    a, whole = inputs(layer), np.empty((T, B, 2 * H))
    apart = np.empty((T, B, H)), np.empty((T, B, H))
    layer(a["x"], a["state"], score, RAGGED, cells=(whole[..., :H], whole[..., H:]))
    layer(a["x"], a["state"], score, RAGGED, cells=apart)
    assert_same_bits(whole, np.concatenate(apart, axis=2), what="cells")


def test_cell_state_errors(score: Context) -> None:
    both, gru = make("lstm")[0], make("gru")[0]
    good, fixed = np.empty((T, B, H)), np.empty((T, B, H))
    fixed.flags.writeable = False
    wanted = r"must be float64 \[T, B, H\] = \[5, 4, 2\], got "
    for layer, cells, error, message in (
        (both, good, TypeError, r"cells must be two arrays .*, got float64 \[5, 4, 2\]"),
        (both, (good,), TypeError, "cells must be two arrays .*, got tuple"),
        (both, (good, good[1:]), ValueError, r"cells\[1\] " + wanted),
        (both, (None, good), ValueError, r"cells\[0\] " + wanted + "NoneType"),
        (both, (good, fixed), ValueError, r"cells\[1\] must be writeable, got a read-only"),
        (both, (good, good), ValueError, "cells must be two arrays, got one twice"),
        (gru, (good, good.copy()), ValueError, r"cells\[0\] must be None: only an LSTM"),
        (Reversed(both.backward_layer), good[1:], ValueError, "cells " + wanted),
        (Reversed(both.backward_layer), fixed, ValueError, "cells must be writeable, got a read-"),
        (Reversed(gru.backward_layer), good, ValueError, "cells must be None: only an LSTM"),
    ):
        x, state = np.ones((T, B, I)), layer.initial_state(B)
        name = r"(Bidirectional \(.*\)|Reversed \w+ back): "
        with pytest.raises(error, match=name + message):
            layer(x, state, score, RAGGED, cells=cells)  # type: ignore[arg-type]


def test_language_models_do_not_offer_it() -> None:
    """It would see the token that it predicts."""
    from pynlm.models import RecurrentLMConfig

    with pytest.raises(ValueError, match="cell"):
        RecurrentLMConfig(10, 4, (4,), cell="bidirectional")
