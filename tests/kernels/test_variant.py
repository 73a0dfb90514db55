"""Zoneout, recurrent dropout, peephole, clipping: what they draw, leave and refuse.

Values and gradients are in each cell's own ladder (cases named after the variants).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pynlm import kernels
from pynlm.kernels import Variant
from pynlm.testing import (
    CASES,
    arguments,
    assert_close,
    assert_same_bits,
    check_against_torch,
    find_case,
)
from pynlm.testing.cases import Case
from pynlm.testing.tolerances import kernel_tolerance

CELLS = {"lstm": "primes", "gru": "primes", "rnn": "primes-tanh"}


def forward(cell: str, given: dict[str, Any]) -> dict[str, Any]:
    made = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in given.items()}
    getattr(kernels, f"{cell}_forward")(**made)
    return made


def looped() -> list[Case]:
    """Variants that torch's users can write: all but zoneout."""
    return [
        case
        for cell in CELLS
        for case in CASES[cell]
        if not case.is_plain and "primes" in case.name and "zoneout" not in case.name
        if "everything" not in case.name
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", looped(), ids=lambda case: f"{case.kernel}-{case.name}")
def test_agrees_with_a_loop_in_torch(case: Case, dtype: str) -> None:
    pytest.importorskip("torch")
    check_against_torch(case.kernel, case, dtype)


@pytest.mark.parametrize("cell", CELLS)
def test_zoneout_keeps_a_share_of_units_as_they_were(cell: str) -> None:
    name = "threads-tanh" if cell == "rnn" else "threads"
    case = find_case(cell, name)
    given = arguments(f"{cell}_forward", case, "float32")
    made = forward(cell, given | {"variant": Variant(zoneout_h=0.3, sample=True, seed=1)})
    before = np.concatenate([made["h0"][None], made["y"][:-1]])
    kept = made["y"] == before
    assert abs(kept.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / kept.size)
    # other units at other steps, rows, seeds and layers
    assert not (kept[0] == kept[1]).all() and not (kept[:, 0] == kept[:, 1]).all()
    for change in ({"seed": 2}, {"step": 1}, {"layer": 1}):
        other = Variant(zoneout_h=0.3, sample=True, **({"seed": 1} | change))
        assert not np.array_equal(forward(cell, given | {"variant": other})["y"], made["y"])


@pytest.mark.parametrize("cell", CELLS)
def test_later_steps_go_on_where_earlier_ones_ended(cell: str) -> None:
    """A text cut anywhere draws the same numbers: time is absolute."""
    case = find_case(cell, CELLS[cell])
    given = arguments(f"{cell}_forward", case, "float64")
    variant = Variant(zoneout_h=0.4, sample=True, seed=3, time0=7)
    whole = forward(cell, given | {"variant": variant})
    state = {name: given[name] for name in ("h0", "c0") if name in given}
    for first, last in ((0, 2), (2, 5)):
        piece = given | state | {"variant": replace(variant, time0=7 + first)}
        for name in ("x", "y", "gates", "c", "hn"):
            if piece.get(name) is not None:
                piece[name] = np.ascontiguousarray(piece[name][first:last])
        made = forward(cell, piece)
        tolerance = kernel_tolerance(cell, "float64")
        assert_close(made["y"], whole["y"][first:last], tolerance, what="y", kernel=cell, case=case)
        state = {name: made[f"{name[0]}_last"] for name in state}


@pytest.mark.parametrize("cell", CELLS)
def test_sorted_rows_draw_what_the_original_rows_draw(cell: str) -> None:
    case = find_case(cell, CELLS[cell])
    given = arguments(f"{cell}_forward", case, "float64")
    plain = forward(cell, given | {"variant": Variant(zoneout_h=0.4, sample=True)})
    order = np.array([2, 0, 1], np.int32)
    moved = {k: given[k][order] for k in ("h0", "c0") if k in given}
    moved["x"] = np.ascontiguousarray(given["x"][:, order])
    variant = Variant(zoneout_h=0.4, sample=True, rows=order)
    made = forward(cell, given | moved | {"variant": variant})
    tolerance = kernel_tolerance(cell, "float64")
    assert_close(made["y"], plain["y"][:, order], tolerance, what="y", kernel=cell, case=case)


@pytest.mark.parametrize("cell", CELLS)
def test_a_variant_that_does_nothing_is_the_plain_cell(cell: str) -> None:
    case = find_case(cell, CELLS[cell])
    given = arguments(f"{cell}_forward", case, "float32")
    plain, nothing = forward(cell, given), forward(cell, given | {"variant": Variant(seed=5)})
    assert_same_bits(nothing["y"], plain["y"], what="y", case=case)


@pytest.mark.parametrize("cell", CELLS)
def test_messages(cell: str) -> None:
    f = f"{cell}_forward"
    given = arguments(f, find_case(cell, CELLS[cell]), "float32")

    def message(**changed: object) -> str:
        with pytest.raises((TypeError, ValueError)) as caught:
            getattr(kernels, f)(**(given | changed))
        return str(caught.value)

    mask = np.ones((3, 11), np.float32)
    assert message(variant=0.3) == f"{f}: variant must be a Variant or None, got float"
    assert message(mask_h=mask) == f"{f}: h_in and mask_h must be given together, got h_in=None"
    assert "got mask_h=None" in message(h_in=np.zeros((5, 3, 11), np.float32))
    assert "mask_h must be float32 [B=3, H=11]" in message(
        mask_h=np.ones((3, 5), np.float32), h_in=np.zeros((5, 3, 11), np.float32)
    )
    assert f"{f}: variant.zoneout_h must be in [0" in message(variant=Variant(zoneout_h=1.0))
    assert f"{f}: variant.seed must be in [0" in message(variant=Variant(seed=-1))
    assert f"{f}: variant.rows must be int32 [B=3]" in message(
        variant=Variant(zoneout_h=0.1, rows=np.zeros(2, np.int32))
    )
    wrong = Variant(zoneout_h=0.1, rows=np.array([0, 1, 3], np.int32))
    assert message(variant=wrong) == f"{f}: variant.rows must be in [0, B=3), got [0, 1, 3]"
    if cell == "lstm":
        assert f"{f}: variant.clip_c must be in [0" in message(variant=Variant(clip_c=-1.0))
        assert f"{f}: peephole must be float32 [3H=33]" in message(peephole=mask)
    else:
        wanted = f"{f}: variant.clip_c is for the LSTM, a {cell.upper()} has no cell state"
        assert message(variant=Variant(clip_c=1.0)) == wanted
