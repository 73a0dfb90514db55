"""What all recurrent kernels must satisfy besides what all kernels must."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import FUNCTIONS, arguments, assert_close, assert_same_bits, find_case
from pynlm.testing.tolerances import kernel_tolerance

STATES = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}
SAVED = {"lstm": ("gates", "c"), "gru": ("gates", "hn")}
EITHER = [
    *((cell, name) for cell in SAVED for name in ("primes", "ragged")),
    *(("rnn", name) for name in ("primes-tanh", "ragged-relu")),
]


@pytest.mark.parametrize("name", ["primes", "ragged", "beyond-vector"])
@pytest.mark.parametrize("cell", SAVED)
def test_forward_only_agrees_with_training_forward(cell: str, name: str) -> None:
    case, function = find_case(cell, name), f"{cell}_forward"
    given, alone = (arguments(function, case, "float32") for _ in range(2))
    alone |= dict.fromkeys(SAVED[cell])
    for each in (given, alone):
        getattr(kernels, function)(**each)
    tolerance = kernel_tolerance(cell, "float32")
    for output in ("y", *(f"{state}_last" for state in STATES[cell])):
        assert_close(alone[output], given[output], tolerance, what=output, case=case)


@pytest.mark.parametrize(("cell", "name"), EITHER)
def test_optional_arguments_of_backward(cell: str, name: str) -> None:
    """No dx asked for changes nothing else; no upstream state gradient means zero."""
    case, function = find_case(cell, name), f"{cell}_backward"
    full, zero, none, without_dx = (arguments(function, case, "float64") for _ in range(4))
    for state in STATES[cell]:
        zero[f"d{state}_last"][...] = 0
        none[f"d{state}_last"] = None
    without_dx["dx"] = None
    for given in (full, zero, none, without_dx):
        getattr(kernels, function)(**given)
    written = [x for x in FUNCTIONS[function].writes if x != "dx" and full.get(x) is not None]
    assert len(written) >= 5
    for output in written:
        assert_same_bits(without_dx[output], full[output], what=output, case=case)
        assert_same_bits(none[output], zero[output], what=output, case=case)
    assert_same_bits(none["dx"], zero["dx"], what="dx", case=case)


@pytest.mark.parametrize(("cell", "name"), [run for run in EITHER if "ragged" in run[1]])
def test_rows_do_not_see_each_other(cell: str, name: str) -> None:
    """A ragged batch gives each row what it gets alone."""
    case, forward = find_case(cell, name), getattr(kernels, f"{cell}_forward")
    given = arguments(f"{cell}_forward", case, "float64")
    forward(**given)
    shared = {x: given[x] for x in ("w_ih", "w_hh", "b", "b_hn", "nonlinearity") if x in given}
    last, H = [f"{state}_last" for state in STATES[cell]], case.dims["H"]
    tolerance = kernel_tolerance(cell, "float64")
    for row, length in enumerate(given["lengths"]):
        one, where = slice(row, row + 1), f"row {row}"
        alone: dict[str, Any] = {x: np.empty((1, H)) for x in last}
        alone |= {f"{state}0": given[f"{state}0"][one].copy() for state in STATES[cell]}
        alone |= {"x": given["x"][:length, one].copy(), "y": np.empty((length, 1, H))}
        forward(**shared, **alone)
        for state in last:
            assert_close(given[state][one], alone[state], tolerance, what=state, case=where)
        assert_close(given["y"][:length, one], alone["y"], tolerance, what="y", case=where)
        assert not given["y"][length:, one].any()
