"""torch's side of variants beside the same equations in NumPy, one row and step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.cases import CLIP_C, CLIP_H, VARIANTS, Recurrent, cells_of
from bench.inputs import recurrent_inputs
from bench.peers import TORCH
from pynlm.testing.checks import assert_close
from pynlm.testing.tolerances import torch_tolerance

pytest.importorskip("torch")

from bench.peers import with_torch

Array = NDArray[Any]
Weights = dict[str, Array]
CASES = [
    Recurrent(cell, 9, 5, 6, 8, variant=variant)
    for variant in VARIANTS
    if not VARIANTS[variant]
    for cell in cells_of(variant)
]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def normed(x: Array, gain: Array, bias: Array | float) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * gain + bias


def layer_norm_lstm(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    of_x = normed(w["w_ih"] @ x, w["ln_gates"][0], w["b"])
    i, f, g, o = np.split(of_x + normed(w["w_hh"] @ h, w["ln_gates"][1], 0.0), 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(normed(c, w["ln_cell"][0], w["ln_cell"][1])), c


def layer_norm_lstm_of_the_state(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    of_x = normed(w["w_ih"] @ x, w["ln_gates"][0], w["b"])
    i, f, g, o = np.split(of_x + normed(w["w_hh"] @ h, w["ln_gates"][1], 0.0), 4)
    c = normed(sigmoid(f) * c + sigmoid(i) * np.tanh(g), w["ln_cell"][0], w["ln_cell"][1])
    return sigmoid(o) * np.tanh(c), c


def layer_norm_gru(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    a_r, a_z, a_n = np.split(normed(w["w_ih"] @ x, w["ln_gates"][0], w["b"]), 3)
    u_r, u_z, u_n = np.split(normed(w["w_hh"] @ h, w["ln_gates"][1], 0.0), 3)
    r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
    return (1 - z) * np.tanh(a_n + r * (u_n + w["b_hn"])) + z * h, c


def layer_norm_rnn(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    of_x = normed(w["w_ih"] @ x, w["ln_gates"][0], w["b"])
    return np.tanh(of_x + normed(w["w_hh"] @ h, w["ln_gates"][1], 0.0)), c


def lstm(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = np.split(w["w_ih"] @ x + w["w_hh"] @ h + w["b"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    a_r, a_z, a_n = np.split(w["w_ih"] @ x + w["b"], 3)
    u_r, u_z, u_n = np.split(w["w_hh"] @ h, 3)
    r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
    return (1 - z) * np.tanh(a_n + r * (u_n + w["b_hn"])) + z * h, c


def clipped_lstm(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = np.split(w["w_ih"] @ x + w["w_hh"] @ h + w["b"], 4)
    c = np.clip(sigmoid(f) * c + sigmoid(i) * np.tanh(g), -CLIP_C, CLIP_C)
    return np.clip(sigmoid(o) * np.tanh(c), -CLIP_H["lstm"], CLIP_H["lstm"]), c


def clipped_gru(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    h, c = gru(w, x, h, c)
    return np.clip(h, -CLIP_H["gru"], CLIP_H["gru"]), c


def clipped_rnn(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    h = np.tanh(w["w_ih"] @ x + w["w_hh"] @ h + w["b"])
    return np.clip(h, -CLIP_H["rnn"], CLIP_H["rnn"]), c


def coupled_lstm(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, g, o = np.split(w["w_ih"] @ x + w["w_hh"] @ h + w["b"], 3)
    c = (1 - sigmoid(i)) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def projected_lstm(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = np.split(w["w_ih"] @ x + w["w_hh"] @ h + w["b"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return w["w_hr"] @ (sigmoid(o) * np.tanh(c)), c


def reset_before_gru(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    w_r, w_z, w_n = np.split(w["w_hh"], 3)
    a_r, a_z, a_n = np.split(w["w_ih"] @ x + w["b"], 3)
    r, z = sigmoid(a_r + w_r @ h), sigmoid(a_z + w_z @ h)
    return (1 - z) * np.tanh(a_n + w_n @ (r * h)) + z * h, c


def peephole_lstm(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = np.split(w["w_ih"] @ x + w["w_hh"] @ h + w["b"], 4)
    p_i, p_f, p_o = np.split(w["peephole"], 3)
    c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * np.tanh(g)
    return sigmoid(o + p_o * c) * np.tanh(c), c


Step = Callable[[Weights, Array, Array, Array], tuple[Array, Array]]
STEPS: dict[tuple[str, str], Step] = {
    ("lstm", "layer norm"): layer_norm_lstm,
    ("lstm", "layer norm of the state"): layer_norm_lstm_of_the_state,
    ("gru", "layer norm"): layer_norm_gru,
    ("rnn", "layer norm"): layer_norm_rnn,
    ("lstm", "bidirectional"): lstm,
    ("gru", "bidirectional"): gru,
    ("lstm", "clipping"): clipped_lstm,
    ("gru", "clipping"): clipped_gru,
    ("rnn", "clipping"): clipped_rnn,
    ("lstm", "coupled gates"): coupled_lstm,
    ("lstm", "projection"): projected_lstm,
    ("gru", "reset before"): reset_before_gru,
    ("lstm", "peephole"): peephole_lstm,
}


def transcribed(case: Recurrent, weights: Weights, x: Array) -> Array:
    there = in_one_direction(case, weights, x)
    if case.directions == 1:
        return there
    reverse = {name: weights[f"{name}_reverse"] for name in weights if f"{name}_reverse" in weights}
    return np.concatenate([there, in_one_direction(case, reverse, x[::-1])[::-1]], axis=2)


def in_one_direction(case: Recurrent, weights: Weights, x: Array) -> Array:
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    y = np.zeros((case.T, case.B, case.P))
    for b in range(case.B):
        h, c = np.zeros(case.P), np.zeros(case.H)
        for t in range(case.T):
            h, c = STEPS[case.cell, case.variant](w, x[t, b].astype(np.float64), h, c)
            y[t, b] = h
    return y


def name(case: Recurrent) -> str:
    return case.group


@pytest.mark.parametrize("case", CASES, ids=name)
def test_torch_does_what_the_equations_say(case: Recurrent) -> None:
    inputs = recurrent_inputs(case)
    (weights,) = inputs.weights
    found = with_torch.make(case, inputs)[TORCH].results()
    y = transcribed(case, weights, inputs.x)
    tolerance = torch_tolerance(np.dtype(np.float32))
    assert_close(
        found["y"], y, tolerance, what="y", kernel=case.group, case=case.name, terms=case.T * case.H
    )
    assert found.keys() == {"y", "dx", *(f"d{name}.0" for name in weights)}
    for weight, value in weights.items():
        assert found[f"d{weight}.0"].shape == value.shape
        assert np.any(found[f"d{weight}.0"])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_gradients_follow_a_step_of_each_weight(case: Recurrent) -> None:
    inputs = recurrent_inputs(case)
    (weights,) = inputs.weights
    found = with_torch.make(case, inputs)[TORCH].results()
    rng = np.random.default_rng(2)
    for weight, value in weights.items():
        # central difference of <dy, y> along a random direction, in double precision
        direction, step = rng.standard_normal(value.shape), 1e-5
        moved = [
            np.vdot(
                inputs.dy,
                transcribed(case, {**weights, weight: value + sign * step * direction}, inputs.x),
            )
            for sign in (1, -1)
        ]
        expected = (moved[0] - moved[1]) / (2 * step)
        # float32 gradients: relative to what their terms add up to
        size = np.abs(found[f"d{weight}.0"] * direction).sum()
        assert abs(np.vdot(found[f"d{weight}.0"], direction) - expected) < 1e-4 * size, weight


@pytest.mark.parametrize("case", CASES, ids=name)
def test_work_and_widths(case: Recurrent) -> None:
    inputs = recurrent_inputs(case)
    (weights,) = inputs.weights
    products = sum(w.size for name, w in weights.items() if name.startswith("w_"))
    assert case.flops == 3 * 2 * case.T * case.B * products
    assert inputs.dy.shape == (case.T, case.B, case.P * case.directions)
    assert (case.P == case.H) == (case.variant != "projection")


@pytest.mark.parametrize("cell", CLIP_H)
def test_a_few_values_are_clipped(cell: str) -> None:
    case = Recurrent(cell, 50, 32, 128, 128, variant="clipping")
    y = with_torch.make(case, recurrent_inputs(case))[TORCH].results()["y"]
    assert 0.001 < np.mean(np.abs(y) == np.float32(CLIP_H[cell])) < 0.05
