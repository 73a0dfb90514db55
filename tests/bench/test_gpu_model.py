"""The table of the planner's cost model."""

from __future__ import annotations

import pytest

from bench.gpu_model import bound, rows, table


def test_registers_and_divided_depths_never_cost_by_the_model() -> None:
    found = list(rows(("float32", "bf16"), (20,), (200, 1500)))
    # less than _HELD_GAIN is given up for a variant less
    assert all(row.gain > 0.99 for row in found)
    assert len(table(found).splitlines()) == 2 + len(found)


def test_what_bounds_a_step() -> None:
    forward, backward = rows(("tf32",), (64,), (1500,))
    # without registers and division a block reads all gates' gradients, 1.5 MB a step
    assert bound(backward.before) == "rows from L2" and backward.after.parts > 1
    assert backward.gain == pytest.approx(2.4, abs=0.5) and forward.after.held > 0
    assert bound(next(rows(("float32",), (128,), (1500,))).after) == "arithmetic"
    assert bound(next(rows(("bf16",), (16,), (200,))).after) == "barriers"
