"""Variants in a whole model: each layer has them, and gradients are those of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pynlm.layers import Context
from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.testing import assert_close
from pynlm.testing.tolerances import CLOSED_FORM, finite_difference_tolerance

EVERY: dict[str, Any] = {"recurrent_dropout": 0.4, "weight_drop": 0.3, "zoneout": 0.25}
LSTM_TOO: dict[str, Any] = {"zoneout_cell": 0.2, "peephole": True, "cell_clip": 0.7}
SIZES = (4, 3, 3)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_finite_differences_with_everything(
    cell: str, dropout: float, numeric_gradient: Callable[..., np.ndarray]
) -> None:
    chosen = {**EVERY, **(LSTM_TOO if cell == "lstm" else {}), "residual": True}
    chosen |= {f"dropout_{place}": dropout for place in ("input", "between", "output")}
    config = RecurrentLMConfig(7, 3, SIZES, cell=cell, init_bias="uniform", **chosen)
    model = RecurrentLM(config, np.float64)
    model.initialise(1)
    ids, targets = np.random.default_rng(2).integers(0, 7, (2, 4, 3))
    ctx, lengths = Context(train=True, seed=9), [2, 4, 3]

    def loss() -> float:
        return float(model(ids, targets, None, ctx, lengths)[0].sum())

    _, _, backprop = model(ids, targets, None, ctx, lengths)
    assert backprop is not None
    backprop()
    for name, p in model.parameters.items():
        tolerance = finite_difference_tolerance("layer")
        assert_close(p.densify(), numeric_gradient(loss, p.data), tolerance, what=name)
    assert any(name.endswith("peephole") for name in model.parameters) == (cell == "lstm")


def test_rows_draw_by_the_callers_numbers() -> None:
    """The loss of a row does not depend on how the model sorts rows by length."""
    config = RecurrentLMConfig(7, 3, SIZES, init_bias="uniform", **EVERY, **LSTM_TOO)
    model = RecurrentLM(config, np.float64)
    model.initialise(1)
    ids, targets = np.random.default_rng(2).integers(0, 7, (2, 5, 4))
    ctx = Context(train=True, seed=9)
    full = model(ids, targets, None, ctx)[0].copy()
    lengths = [2, 5, 3, 4]
    ragged = model(ids, targets, None, ctx, lengths)[0]
    for row, n in enumerate(lengths):
        assert_close(ragged[:n, row], full[:n, row], CLOSED_FORM, what=f"row {row}")


def test_layers_draw_differently() -> None:
    """Two layers of the same weights and input give different outputs under zoneout."""
    model = RecurrentLM(RecurrentLMConfig(7, 3, (3, 3), zoneout=0.5), np.float64)
    model.initialise(1)
    first, second = model.layers
    for name in ("w_ih", "w_hh", "b"):
        data = model.parameters[f"recurrent.1.{name}"].data
        data[...] = model.parameters[f"recurrent.0.{name}"].data
    x, state = np.ones((20, 2, 3)), first.initial_state(2)
    ctx = Context(train=True, seed=1)
    (one, _), _ = first(x, state, ctx)
    one = one.copy()
    (two, _), _ = second(x, state, ctx)
    assert not np.array_equal(one, two)


def test_residual_adds_the_input_where_widths_agree() -> None:
    """Layers that compute nothing (zero weights) pass on what comes in, but not the first."""
    config = RecurrentLMConfig(7, 3, SIZES, residual=True)
    assert [config.is_residual(layer) for layer in range(3)] == [False, False, True]
    model = RecurrentLM(config, np.float64)
    model.initialise(1)
    ids = np.random.default_rng(2).integers(0, 7, (4, 2))
    plain = RecurrentLM(RecurrentLMConfig(7, 3, SIZES), np.float64)
    plain.load_state_dict(model.state_dict())
    for m in (model, plain):
        for name in ("w_ih", "w_hh", "b"):
            m.parameters[f"recurrent.2.{name}"].data.fill(0)
    two = RecurrentLM(RecurrentLMConfig(7, 3, SIZES[:2]), np.float64)
    two.load_state_dict({n: plain.parameters[n].data for n in two.parameters})
    expected, _ = two.hidden(ids, None)
    got, _ = model.hidden(ids, None)
    assert_close(got, expected, CLOSED_FORM, what="hidden")
    assert not plain.hidden(ids, None)[0].any()


def test_residual_needs_equal_neighbours() -> None:
    with pytest.raises(ValueError, match="hidden_sizes must be equal for two neighbours"):
        RecurrentLMConfig(7, 3, (4, 3), residual=True)
    with pytest.raises(ValueError, match="hidden_sizes must be equal for two neighbours"):
        RecurrentLMConfig(7, 3, (3,), residual=True)
