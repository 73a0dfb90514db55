"""Variants of the recurrent layers: gradients, rows in any order, evaluation, what is undefined."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from pynlm.kernels import dropout
from pynlm.layers import GRU, LSTM, RNN, Context, Parameters, Pool, Recurrent, RecurrentOptions
from pynlm.layers.context import Site
from pynlm.models import RecurrentLMConfig
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM

T, B, I, H = 5, 4, 3, 5
CELLS: dict[str, type[Recurrent]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
DRAWN = {"recurrent_dropout": 0.4, "weight_drop": 0.3, "zoneout": 0.25}
EVERY: dict[str, Any] = {**DRAWN, "layer_norm": True, "state_clip": 0.5}
LSTM_TOO: dict[str, Any] = {
    "zoneout_cell": 0.2,
    "peephole": True,
    "cell_clip": 0.7,
    "coupled_gates": True,
    "projection": 7,
}
GRU_TOO = {"reset_before": True}
RAGGED = [3, 0, 5, 4]


def choices(cell: str) -> list[dict[str, Any]]:
    """Each option, each pair of them, and all."""
    have = {**EVERY, **{"lstm": LSTM_TOO, "gru": GRU_TOO}.get(cell, {})}
    together = [have, {name: have[name] for name in have if name != "layer_norm"}]
    if cell == "lstm":
        together = [have, {**have, "layer_norm_state": True}]
    pairs = [{one: have[one], two: have[two]} for one, two in combinations(have, 2)]
    found = [*({name: value} for name, value in have.items()), *pairs, *together]
    return [c for c in found if not ("layer_norm" in c and "reset_before" in c)]


ALL = [
    pytest.param(cell, RecurrentOptions(**chosen), id=f"{cell}-{'+'.join(chosen)}")
    for cell in CELLS
    for chosen in choices(cell)
]


def make(cell: str, options: RecurrentOptions, index: int = 0) -> tuple[Recurrent, Parameters]:
    parameters = Parameters(CELLS[cell].specs("r", I, H, options=options), np.float64, Pool())
    rng = np.random.default_rng(0)
    for p in parameters.values():
        p.data[...] = 0.5 * rng.standard_normal(p.data.shape)
    return CELLS[cell](parameters, "r", options=options, index=index), parameters


def inputs(layer: Recurrent) -> dict[str, Any]:
    rng = np.random.default_rng(1)

    def states() -> tuple[np.ndarray, ...]:
        return tuple(rng.standard_normal((B, size)) for size in layer.state_sizes)

    x, dy = rng.standard_normal((T, B, I)), rng.standard_normal((T, B, layer.output_size))
    return {"x": x, "dy": dy, "state": states(), "dstate": states()}


@pytest.mark.parametrize(("cell", "options"), ALL)
def test_finite_differences(
    cell: str, options: RecurrentOptions, check_gradients: Callable[..., None]
) -> None:
    """Rows unsorted; the context fixes what is drawn."""
    layer, parameters = make(cell, options)
    ctx = Context(train=True, seed=3, step=5, time0=11)
    check_gradients(layer, parameters, inputs(layer), RAGGED, train=ctx, loss_in=ctx)


@pytest.mark.parametrize(("cell", "options"), ALL)
def test_a_row_does_not_see_how_long_others_are(cell: str, options: RecurrentOptions) -> None:
    """What is drawn goes by the caller's rows, however they are sorted."""
    layer, _ = make(cell, options)
    a, ctx = inputs(layer), Context(train=True, seed=3)
    (full, _), _ = layer(a["x"], a["state"], ctx)
    full = full.copy()
    (ragged, _), _ = layer(a["x"], a["state"], ctx, RAGGED)
    for row, n in enumerate(RAGGED):
        assert_close(ragged[:n, row], full[:n, row], CLOSED_FORM, what=f"row {row}")
        assert not ragged[n:, row].any()


@pytest.mark.parametrize(("cell", "options"), ALL)
def test_draws_change_with_seed_step_and_layer_only(cell: str, options: RecurrentOptions) -> None:
    drawn = any(getattr(options, name) for name in (*DRAWN, "zoneout_cell"))
    first, _ = make(cell, options)
    a = inputs(first)
    (y, _), _ = first(a["x"], a["state"], Context(train=True, seed=3, step=1))
    y = y.copy()
    (again, _), _ = first(a["x"], a["state"], Context(train=True, seed=3, step=1))
    assert_same_bits(again, y, what="y")
    seeds = [Context(train=True, seed=s, step=1) for s in range(8)]
    steps = [Context(train=True, seed=3, step=s) for s in range(8)]
    for contexts in (seeds, steps):
        found = {first(a["x"], a["state"], ctx)[0][0].tobytes() for ctx in contexts}
        assert (len(found) > 1) == drawn
    found = {
        make(cell, options, index)[0](a["x"], a["state"], seeds[3])[0][0].tobytes()
        for index in range(8)
    }
    assert (len(found) > 1) == drawn


@pytest.mark.parametrize("cell", CELLS)
def test_evaluation_draws_nothing(cell: str, score: Context) -> None:
    """Dropout of weights and states is training's; zoneout mixes by its probability."""
    plain, _ = make(cell, RecurrentOptions())
    a = inputs(plain)
    (y, _), _ = plain(a["x"], a["state"], score)
    dropped, _ = make(cell, RecurrentOptions(recurrent_dropout=0.5, weight_drop=0.5))
    (same, _), _ = dropped(a["x"], a["state"], score)
    assert_same_bits(same, y, what="y")
    zoned, _ = make(cell, RecurrentOptions(zoneout=0.25))
    (mixed, _), _ = zoned(a["x"], a["state"], score)
    expected = 0.25 * a["state"][0] + 0.75 * y[0]
    assert_close(mixed[0], expected, CLOSED_FORM, what="the first step")


def test_evaluation_mixes_cell_states_by_the_probability(score: Context) -> None:
    plain, _ = make("lstm", RecurrentOptions())
    zoned, _ = make("lstm", RecurrentOptions(zoneout_cell=0.25))
    a = inputs(plain)
    (_, (_, c)), _ = plain(a["x"][:1], a["state"], score)
    (_, (_, mixed)), _ = zoned(a["x"][:1], a["state"], score)
    expected = 0.25 * a["state"][1] + 0.75 * c
    assert_close(mixed, expected, CLOSED_FORM, what="c after one step")


@pytest.mark.parametrize("cell", CELLS)
def test_weight_drop_is_the_plain_layer_with_dropped_weights(cell: str) -> None:
    p = 0.4
    layer, parameters = make(cell, RecurrentOptions(weight_drop=p), index=2)
    a, ctx = inputs(layer), Context(train=True, seed=3, step=4)
    (y, _), _ = layer(a["x"], a["state"], ctx)
    plain, weights = make(cell, RecurrentOptions())
    w = np.empty_like(parameters["r.w_hh"].data)[None]
    dropout(
        y=w, x=parameters["r.w_hh"].data[None], p=p, seed=3, step=4, site=Site.WEIGHT, layer=2,
        locked=True,
    )  # fmt: skip
    weights["r.w_hh"].data[...] = w[0]
    (expected, _), _ = plain(a["x"], a["state"], ctx)
    assert_same_bits(y, expected, what="y")


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        *((cell, name) for cell in ("gru", "rnn") for name in LSTM_TOO),
        *(("lstm", name) for name in GRU_TOO),
        *(("rnn", name) for name in GRU_TOO),
    ],
)
def test_undefined_pairs_are_named(cell: str, name: str) -> None:
    chosen = {name: (LSTM_TOO | GRU_TOO)[name]}
    own = "LSTM" if name in LSTM_TOO else "GRU"
    found = f"{cell.upper()}: {name} is not defined for this cell, only for {own}"
    with pytest.raises(ValueError, match=found):
        CELLS[cell].specs("r", I, H, options=RecurrentOptions(**chosen))
    model = {"gru": "gru", "rnn": "rnn_tanh", "lstm": "lstm"}[cell]
    found = f"{name} is not defined for cell '{model}', only for '{own.lower()}'"
    with pytest.raises(ValueError, match=found):
        RecurrentLMConfig(10, 4, (4,), cell=model, **chosen)


def test_options_that_contradict_each_other_are_named() -> None:
    with pytest.raises(ValueError, match="layer_norm and reset_before are not defined together"):
        RecurrentOptions(layer_norm=True, reset_before=True)
    with pytest.raises(ValueError, match="layer_norm_state must be False without layer_norm"):
        RecurrentOptions(layer_norm_state=True)
    with pytest.raises(ValueError, match="projection must be 0 or more, got -1"):
        RecurrentOptions(projection=-1)
    with pytest.raises(ValueError, match="forget_bias must be 0 for coupled gates"):
        RecurrentLMConfig(10, 4, (4,), coupled_gates=True, forget_bias=1.0)
    with pytest.raises(ValueError, match="projection must be embedding_size=4 when tied, got 3"):
        RecurrentLMConfig(10, 4, (4,), projection=3, tied=True)


def test_ranges() -> None:
    for name in (*DRAWN, "zoneout_cell"):
        with pytest.raises(ValueError, match=rf"RecurrentOptions: {name} must be in \[0, 1\)"):
            RecurrentOptions(**{name: 1.0})
    with pytest.raises(ValueError, match="cell_clip must be 0 or more, got -1"):
        RecurrentOptions(cell_clip=-1.0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("projection", 2.5, "projection must be an integer, got float 2.5"),
        ("projection", True, "projection must be an integer, got bool True"),
        ("projection", "3", "projection must be an integer, got str '3'"),
        ("layer_norm", "no", "layer_norm must be a bool, got str 'no'"),
        ("layer_norm_state", None, "layer_norm_state must be a bool, got NoneType"),
        ("peephole", 1, "peephole must be a bool, got int 1"),
        ("coupled_gates", 0, "coupled_gates must be a bool, got int 0"),
        ("reset_before", 0.0, "reset_before must be a bool, got float 0.0"),
        ("zoneout", "0.1", "zoneout must be a number, got str '0.1'"),
        ("weight_drop", False, "weight_drop must be a number, got bool False"),
        ("cell_clip", None, "cell_clip must be a number, got NoneType"),
        ("state_clip", True, "state_clip must be a number, got bool True"),
    ],
)
def test_types_of_options(name: str, value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"RecurrentOptions: {message}"):
        RecurrentOptions(**{name: value})


def test_numpy_numbers_are_options() -> None:
    options = RecurrentOptions(
        projection=np.int64(3),  # type: ignore[arg-type]
        zoneout=np.float32(0.5),  # type: ignore[arg-type]
        peephole=np.bool_(True),  # type: ignore[arg-type]
    )
    assert options == RecurrentOptions(projection=3, zoneout=0.5, peephole=True)
