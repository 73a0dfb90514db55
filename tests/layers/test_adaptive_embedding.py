"""Adaptive input: against its definition and finite differences, empty clusters, tying, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pynlm.layers import AdaptiveEmbedding, Context, Parameter, Parameters
from pynlm.layers.parameters import Group
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM, finite_difference_tolerance

V, D, CUTOFFS = 23, 8, (3, 11)
IDS = np.array([[0, 3, 22], [11, 2, 3], [10, 0, 3]])


def make(dtype: Any = np.float64) -> tuple[AdaptiveEmbedding, Parameters]:
    parameters = Parameters(AdaptiveEmbedding.specs("e", V, D, CUTOFFS, 2.0), dtype)
    rng = np.random.default_rng(1)
    for p in parameters.values():
        p.data[...] = rng.standard_normal(p.data.shape)
    return AdaptiveEmbedding(parameters, "e", CUTOFFS), parameters


def test_layout_is_fairseqs() -> None:
    layer, parameters = make()
    assert layer.vocab_size == V
    assert {name: (p.data.shape, p.sparse) for name, p in parameters.items()} == {
        "e.0.0.weight": ((3, 8), True),
        "e.1.0.weight": ((8, 4), True),
        "e.2.0.weight": ((12, 2), True),
        "e.0.1.weight": ((8, 8), False),
        "e.1.1.weight": ((8, 4), False),
        "e.2.1.weight": ((8, 2), False),
    }


def test_by_definition(score: Context) -> None:
    layer, parameters = make()
    y, backprop = layer(IDS, score)
    assert backprop is None and y.shape == (3, 3, D)
    for place, v in np.ndenumerate(IDS):
        i = int(np.searchsorted(CUTOFFS, v, side="right"))
        row = parameters[f"e.{i}.0.weight"].data[v - (0, *CUTOFFS)[i]]
        want = parameters[f"e.{i}.1.weight"].data @ row
        assert_close(y[place], want, CLOSED_FORM, what="y", terms=D)


def test_finite_differences(train: Context, numeric_gradient: Callable[..., np.ndarray]) -> None:
    layer, parameters = make()
    dy = np.random.default_rng(2).standard_normal((*IDS.shape, D))
    _, backprop = layer(IDS, train)
    assert backprop is not None
    backprop(dy)
    for name, p in parameters.items():
        want = numeric_gradient(lambda: float((layer(IDS, train)[0] * dy).sum()), p.data)
        assert_close(p.densify(), want, finite_difference_tolerance("linear"), what=name)


def test_a_cluster_without_ids_costs_nothing(train: Context) -> None:
    layer, parameters = make()
    _, backprop = layer([1, 22, 1], train)
    assert backprop is not None
    backprop(np.ones((3, D)))
    assert {n: p.state for n, p in parameters.items() if n.startswith("e.1")} == {
        "e.1.0.weight": "unset",
        "e.1.1.weight": "unset",
    }
    assert parameters["e.2.0.weight"].rows[0].tolist() == [11]
    y, backprop = layer(np.empty((0, 2), np.int32), train)
    assert y.shape == (0, 2, D) and backprop is not None
    backprop(y)


def test_tied_tables_may_be_longer(train: Context) -> None:
    """The shortlist of a head has entries for its clusters at the end."""
    own, parameters = make()
    tables = []
    for i, more in enumerate((2, 0, 0)):
        rows = parameters[f"e.{i}.0.weight"].data
        data = np.concatenate([rows, np.full((more, rows.shape[1]), np.nan)])
        tables.append(Parameter(f"table {i}", data, np.zeros_like(data), Group("head")))
    specs = AdaptiveEmbedding.specs("e", V, D, CUTOFFS, 2.0, tied=True)
    projections = Parameters(specs, np.float64)
    projections.load_state_dict({n: parameters[n].data for n in projections})
    tied = AdaptiveEmbedding(projections, "e", CUTOFFS, tables)
    assert tied.vocab_size == V
    results = [layer(IDS, train) for layer in (own, tied)]
    assert_same_bits(results[1][0], results[0][0], what="y")
    for y, backprop in results:
        assert backprop is not None
        backprop(y)
    for i, table in enumerate(tables):
        want = parameters[f"e.{i}.0.weight"].densify()
        assert_same_bits(table.densify()[: len(want)], want, what="dw")
        assert not table.grad[len(want) :].any()


def test_cutoffs_may_be_an_array() -> None:
    given = np.array(CUTOFFS)
    specs = AdaptiveEmbedding.specs("e", V, D, given, 2.0)
    assert specs == AdaptiveEmbedding.specs("e", V, D, CUTOFFS, 2.0)
    layer = AdaptiveEmbedding(Parameters(specs), "e", given)
    assert layer.vocab_size == V and layer.cutoffs == CUTOFFS


def test_errors(train: Context) -> None:
    layer, _ = make()
    with pytest.raises(IndexError, match=r"AdaptiveEmbedding e: ids\[1\] must be in \[0, V=23\)"):
        layer([0, 23], train)
    with pytest.raises(ValueError, match=r"AdaptiveEmbedding e: dy must be \[2, 8\]"):
        layer([0, 3], train)[1](np.ones((2, 7)))  # type: ignore[misc]
    with pytest.raises(ValueError, match="AdaptiveEmbedding: cutoffs must be strictly increasing"):
        AdaptiveEmbedding.specs("e", V, D, (5, 5))
    with pytest.raises(ValueError, match="AdaptiveEmbedding: div_value=4 leaves tail 1 no dim"):
        AdaptiveEmbedding.specs("e", V, D, CUTOFFS)
    parameters = Parameters(AdaptiveEmbedding.specs("e", V, D, CUTOFFS, 2.0))
    with pytest.raises(ValueError, match="AdaptiveEmbedding e: cutoffs must be strictly increas"):
        AdaptiveEmbedding(parameters, "e", CUTOFFS[::-1])
    for cutoffs in ((CUTOFFS[0] + 1, CUTOFFS[1]), (CUTOFFS[0], CUTOFFS[1] - 1)):
        with pytest.raises(ValueError, match=r"AdaptiveEmbedding e: table [01] must have a row fo"):
            AdaptiveEmbedding(parameters, "e", cutoffs)
    narrow = Parameters(AdaptiveEmbedding.specs("e", V, D, CUTOFFS, 1.0))
    with pytest.raises(ValueError, match="AdaptiveEmbedding e: table 1 must have the width of its"):
        AdaptiveEmbedding(parameters, "e", CUTOFFS, [narrow[f"e.{i}.0.weight"] for i in range(3)])
