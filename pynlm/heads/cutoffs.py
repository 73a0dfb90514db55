"""Cutoffs of an adaptive softmax, chosen from token counts by a dynamic programme over costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import check_integer, check_number
from pynlm.layers.clusters import cluster_widths

Array = npt.NDArray[Any]

MAX_TAILS = 4
SHORTLIST_SHARE = 0.85
"""Least share of the text's tokens in the shortlist; costs alone would leave a few hundred words
there, and words in clusters are told apart with fewer dimensions (Grave et al., §4.2, §5)."""

# Cutoffs are such numbers times powers of ten.
_MANTISSAS = (10, 11, 12, 14, 16, 18, 20, 22, 25, 28, 32, 36, 40, 45, 50, 56, 63, 70, 80, 90)


def choose_cutoffs(
    counts: Sequence[int] | npt.NDArray[np.integer[Any]],
    size: int,
    rows: int,
    div_value: float = 4.0,
    *,
    shortlist_share: float = SHORTLIST_SHARE,
) -> tuple[int, ...]:
    """The cutoffs with which a training step of the adaptive head costs least.

    The cost of a step is that of the head's softmax over `rows` tokens and of each cluster's over
    its expected share of them, after a table of costs that comes with pynlm: nothing is measured
    here, so the same arguments give the same cutoffs everywhere. Clusters are filled by falling
    count, so only their sizes are to be chosen: for each number of clusters up to 4, a dynamic
    programme over a grid of round numbers. The shortlist is bounded from below (see
    `shortlist_share`), because costs know nothing of perplexity.

    Parameters
    ----------
    counts
        [V], of the training text's tokens, falling.
    size
        H, width of the hidden states.
    rows
        N, tokens in a batch.
    div_value
        As `Adaptive.specs`; clusters that it would leave without dimensions are not made.
    shortlist_share
        0 to 1; least share of the tokens that the shortlist holds.

    Returns
    -------
    tuple of int
        For `Adaptive.specs`; empty where one exact softmax costs least.

    Raises
    ------
    TypeError, ValueError
        Counts that are no integers, negative, not falling or all 0; another argument out of range.

    Notes
    -----
    Source: Grave et al., arXiv:1609.04309, §4.2-4.3 (cost model, dynamic programme).

    Examples
    --------
    >>> choose_cutoffs([10**8 // rank for rank in range(1, 100_001)], size=256, rows=1024)
    (36000,)
    """
    func = "choose_cutoffs"
    n = _checked(counts, func)
    check_integer(size, func=func, name="size", low=1, high=2**31 - 1)
    check_integer(rows, func=func, name="rows", low=1, high=2**31 - 1)
    check_number(shortlist_share, func=func, name="shortlist_share", low=0.0, high=1.0)
    vocab_size = len(n)
    below = np.concatenate([[0.0], np.cumsum(n, dtype=np.float64)])
    below /= below[-1]
    grid = _round_numbers(vocab_size)
    shortlists = grid[below[grid] >= shortlist_share]
    best, cutoffs = float(step_cost(rows, size, vocab_size)), ()
    most = next(j for j in range(MAX_TAILS, -1, -1) if _has_room(size, j, div_value))
    for tails in range(1, min(most, len(shortlists)) + 1):
        cost, ends = _plan(tails, below, shortlists, rows, size, div_value)
        if cost < best:
            best, cutoffs = cost, ends
    return cutoffs


def _plan(
    tails: int, below: Array, grid: Array, rows: int, size: int, div_value: float
) -> tuple[float, tuple[int, ...]]:
    """Least cost with so many clusters, and the cutoffs; infinite if there are none."""
    # least[a]: cost of the words from grid[a] on, in the clusters from i on
    ends = np.append(grid, len(below) - 1)
    least = np.where(np.arange(len(ends)) == len(grid), 0.0, np.inf)
    choices = []
    for width in reversed(cluster_widths(size, tails, div_value, func="choose_cutoffs")):
        first, last = ends[:, None], ends[None, :]
        words = last - first
        share = np.maximum(below[last] - below[first], 0.0)
        tail = _expected(rows * share, lambda n: tail_cost(n, size, width, words))
        total = np.where(words > 0, tail + least[None, :], np.inf)
        choices.append(total.argmin(axis=1))
        least = total.min(axis=1)
    whole = step_cost(rows, size, grid + tails) + least[:-1]
    at = int(whole.argmin())
    cost, cutoffs = float(whole[at]), [int(grid[at])]
    for choice in reversed(choices[1:]):
        at = int(choice[at])
        cutoffs.append(int(ends[at]))
    return cost, tuple(cutoffs)


def step_cost(rows: float | Array, size: int, words: int | Array) -> Array:
    """Seconds of the exact kernel's loss with gradients: `rows` of `size` over `words`.

    On the machine of the table, whose proportions are what counts. Arrays broadcast.
    """
    return _cost("softmax", rows, size, words)


def tail_cost(rows: float | Array, size: int, width: int, words: int | Array) -> Array:
    """Seconds of a cluster: rows gathered and projected from `size` to `width`, then `step_cost`."""
    return _cost("projection", rows, size, width) + _cost("softmax", rows, width, words)


TERMS = ("call", "outputs", "rows", "row_outputs", "weights", "products")
"""What costs are sums of: 1, O, N, N O, O I and N O I for a map of N rows from I to O."""


def terms(rows: float | Array, inputs: int | Array, outputs: int | Array) -> list[Array]:
    """The numbers that `TERMS` names."""
    n, i, o = (np.asarray(x, np.float64) for x in (rows, inputs, outputs))
    return [np.ones_like(n * o), o, n, n * o, o * i, n * o * i]


def _cost(part: str, rows: float | Array, inputs: int, outputs: int | Array) -> Array:
    prices = _table()[part]
    total = np.zeros(())
    for name, term in zip(TERMS, terms(rows, inputs, outputs), strict=True):
        total = total + prices[name] * term
    return total


@cache
def _table() -> Mapping[str, Mapping[str, float]]:
    text = resources.files("pynlm.heads").joinpath("costs.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return {part: table[part]["prices"] for part in ("softmax", "projection")}


def _expected(n: Array, cost: Any) -> Array:
    """Cost of a cluster with `n` expected rows: below one, most steps have none."""
    expected: Array = np.minimum(n, 1.0) * cost(np.maximum(n, 1.0))
    return expected


def _round_numbers(vocab_size: int) -> npt.NDArray[np.int64]:
    numbers = {m * 10**e // 10 for m in _MANTISSAS for e in range(len(str(vocab_size)))}
    return np.array(sorted(m for m in numbers if 1 <= m < vocab_size), np.int64)


def _has_room(size: int, tails: int, div_value: float) -> bool:
    return int(size // div_value**tails) >= 1


def _checked(counts: object, func: str) -> npt.NDArray[np.int64]:
    n = np.asarray(counts)
    if n.ndim != 1 or not n.size or n.dtype.kind not in "iu":
        raise TypeError(f"{func}: counts must be integers [V], got {n.dtype} {list(n.shape)}")
    wrong = np.flatnonzero((n < 0) | (np.append(n[:1], n[:-1]) < n))
    if len(wrong):
        v = int(wrong[0])
        raise ValueError(
            f"{func}: counts must fall and be at least 0, got counts[{v}]={n[v]}"
            + (f" after {n[v - 1]}" if v else "")
        )
    if not n[0]:
        raise ValueError(f"{func}: counts must not all be 0")
    return n.astype(np.int64)
