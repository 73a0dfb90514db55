"""Rows that end early: what stands beyond their lengths is neither read nor paid for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pynlm.testing import DTYPES, Case, arguments, assert_same_bits
from pynlm.testing.arguments import FUNCTIONS, beyond
from pynlm.testing.checks import run

CELLS = ["lstm", "gru", "rnn"]
DIRECTIONS = ["forward", "backward"]
NAMES = ("x", "dy", "gates", "c", "hn")
"""Arguments that nothing is said about beyond a row's length."""


def ragged_case(cell: str, T: int, lengths: list[int] | None) -> Case:
    options: dict[str, Any] = {"nonlinearity": "tanh"} if cell == "rnn" else {}
    if lengths is not None:
        options["lengths"] = lengths
    return Case(cell, f"{T} {lengths}", {"T": T, "B": 18, "I": 23, "H": 37}, options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "lengths", [[*range(34, 0, -2), 0], [1] * 18, [0] * 18], ids=["all", "one", "zero"]
)
def test_what_stands_beyond_has_no_effect(
    cell: str, direction: str, lengths: list[int], dtype: str
) -> None:
    case, function = ragged_case(cell, 34, lengths), f"{cell}_{direction}"
    results = []
    for rubbish in (0.0, np.nan, np.inf):
        given = arguments(function, case, dtype)
        for name in NAMES:
            if given.get(name) is not None:
                given[name][beyond(case)] = rubbish
        results.append(run(function, given, "cpu"))
    for name, expected in results[0].items():
        if isinstance(expected, np.ndarray):
            keep = ~beyond(case) if name in FUNCTIONS[function].unspecified else ...
            for other in results[1:]:
                assert_same_bits(other[name][keep], expected[keep], what=name, case=case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_full_lengths_are_no_lengths(cell: str, direction: str, dtype: str) -> None:
    full, none = (ragged_case(cell, 5, lengths) for lengths in ([5] * 18, None))
    function = f"{cell}_{direction}"
    given = arguments(function, full, dtype)
    got, want = run(function, given, "cpu"), run(function, given | {"lengths": None}, "cpu")
    for name, expected in want.items():
        if isinstance(expected, np.ndarray):
            assert_same_bits(got[name], expected, what=name, case=none)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_steps_that_no_row_reaches_change_no_bit(cell: str, dtype: str) -> None:
    """Sums run over the rows that take part, so padding does not cut them elsewhere."""
    T, more, function = 34, 29, f"{cell}_backward"
    case = ragged_case(cell, T, [*range(34, 0, -2), 0])
    given = arguments(function, case, dtype)
    padded = {
        name: np.concatenate([value, np.zeros((more, *value.shape[1:]), value.dtype)])
        if isinstance(value, np.ndarray) and value.ndim == 3
        else value
        for name, value in given.items()
    }
    want, got = run(function, given, "cpu"), run(function, padded, "cpu")
    for name, expected in want.items():
        if isinstance(expected, np.ndarray):
            assert_same_bits(got[name][: len(expected)], expected, what=name, case=case)
            assert not got[name][len(expected) :].any()
