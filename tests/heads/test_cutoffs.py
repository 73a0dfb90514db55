"""Cutoffs chosen from counts: least cost among all, bounds, errors."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from pynlm.heads import choose_cutoffs, cutoffs

V, H, ROWS = 4000, 64, 400
ZIPF = (10**8 / (np.arange(V) + 2.7)).astype(np.int64)


def cost(
    ends: tuple[int, ...],
    counts: np.ndarray,
    div_value: float = 4.0,
    *,
    size: int = H,
    batch: int = ROWS,
) -> float:
    """A step's cost by its definition."""
    share = counts / counts.sum()
    total = float(cutoffs.step_cost(batch, size, (ends[0] if ends else len(counts)) + len(ends)))
    for i, (first, last) in enumerate(zip(ends, (*ends, len(counts))[1:], strict=True)):
        rows, width = batch * share[first:last].sum(), int(size // div_value ** (i + 1))
        some = float(cutoffs.tail_cost(max(rows, 1.0), size, width, last - first))
        total += min(rows, 1.0) * some
    return total


@pytest.mark.parametrize("div_value", [2.0, 4.0])
@pytest.mark.parametrize("shortlist", [0.0, 0.03, 0.5])
def test_no_other_cutoffs_cost_less(
    div_value: float, shortlist: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutoffs, "_MANTISSAS", (10, 25, 50))
    grid = [m * 10**e // 10 for e in range(4) for m in (10, 25, 50)]
    grid = [m for m in sorted(set(grid)) if shortlist * V <= m < V]
    widths = [int(H // div_value ** (i + 1)) for i in range(4)]
    most = next((i for i, w in enumerate(widths) if i and w < cutoffs.NARROWEST), 4)
    every = [ends for j in range(most + 1) for ends in combinations(grid, j)]
    chosen = choose_cutoffs(ZIPF, H, ROWS, div_value, shortlist=shortlist)
    assert chosen in every
    best = min(every, key=lambda ends: cost(ends, ZIPF, div_value))
    assert cost(chosen, ZIPF, div_value) == pytest.approx(cost(best, ZIPF, div_value))


def test_bounds() -> None:
    counts = (10**9 / (np.arange(81_000) + 2.7)).astype(np.int64)
    ends = choose_cutoffs(counts, 256, 1024)
    assert 1 <= len(ends) <= 2 and ends[0] >= cutoffs.SHORTLIST * 81_000
    assert choose_cutoffs(counts, 256, 1024, shortlist=1.0) == ()
    assert len(choose_cutoffs(counts, 15, 1024)) <= 1  # 15 // 16 dimensions in a second one


@pytest.mark.parametrize("vocab_size", [33_278, 267_735])
@pytest.mark.parametrize(("size", "batch"), [(256, 700), (512, 1120), (1024, 4096)])
def test_large_vocabularies_gain_by_clusters(vocab_size: int, size: int, batch: int) -> None:
    """Of WikiText-2 and WikiText-103, after the table of costs that comes with pynlm."""
    counts = (10**9 / (np.arange(vocab_size) + 2.7)).astype(np.int64)
    ends = choose_cutoffs(counts, size, batch)
    assert ends and ends[0] < vocab_size / 4
    cheapest = cost(ends, counts, size=size, batch=batch)
    assert cost((), counts, size=size, batch=batch) > 8 * cheapest


def test_small_vocabularies_need_no_clusters() -> None:
    assert choose_cutoffs([7], 256, 700) == ()
    assert choose_cutoffs([5, 5, 1, 0], 256, 700) == ()
    assert choose_cutoffs(np.arange(100, 0, -1), 3, 20, 4.0) == ()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"counts": [3, 4]}, ValueError, r"counts must fall, got counts\[1\]=4 after 3"),
        ({"counts": [3, -1]}, ValueError, r"counts must not be negative, got counts\[1\]=-1"),
        ({"counts": [0, 0]}, ValueError, "counts must not all be 0"),
        ({"counts": []}, TypeError, r"counts must be integers \[V\], V >= 1, got float64 \[0\]"),
        ({"counts": [[3, 2]]}, ValueError, r"counts must be \[V\], V >= 1, got \[1, 2\]"),
        ({"counts": [3.0, 2.0]}, TypeError, r"counts must be integers \[V\], .*got float64 \[2\]"),
        ({"size": 0}, ValueError, "size must be in"),
        ({"rows": 0}, ValueError, "rows must be in"),
        ({"div_value": 0.5}, ValueError, r"div_value must be in \[1, inf\)"),
        ({"shortlist": 1.5}, ValueError, r"shortlist must be in \[0, 1\]"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"counts": [3, 2, 1], "size": 8, "rows": 20, **change}
    with pytest.raises(error, match=f"^choose_cutoffs: {message}"):
        choose_cutoffs(**given)
