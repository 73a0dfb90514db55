"""The table of the planner's cost model."""

from __future__ import annotations

import pytest

from bench.gpu_model import bound, rows, table


def test_what_registers_and_divided_depths_gain_by_the_model() -> None:
    found = list(rows(("float32", "bf16"), (20,), (200, 1500)))
    for row in found:
        # float32 products of 1500 units are bound by arithmetic forward, 200 units by barriers
        if row.units == 1500 and (row.side == "backward" or row.math == "bf16"):
            assert row.gain > 1.05 and row.after.held + row.after.parts > 1
        else:
            assert row.gain == 1 and row.after.held == 0 and row.after.parts == 1
    assert len(table(found).splitlines()) == 2 + len(found)


def test_what_bounds_a_step() -> None:
    forward, backward = rows(("tf32",), (64,), (1500,))
    # without registers and division a block reads all gates' gradients, 1.5 MB a step
    assert bound(backward.before) == "rows from L2" and backward.after.parts > 1
    assert backward.gain == pytest.approx(2.4, abs=0.5) and forward.after.held > 0
    assert bound(next(rows(("float32",), (128,), (1500,))).after) == "arithmetic"
    assert bound(next(rows(("bf16",), (16,), (200,))).after) == "barriers"
