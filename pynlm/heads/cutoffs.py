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
from pynlm.layers.convert import as_counts

Array = npt.NDArray[Any]

SHORTLIST = 0.03
"""Least share of the vocabulary in the shortlist; published ones hold 4 to 8 %. Costs alone would
leave a few hundred words there, and those in clusters are told apart with fewer dimensions. On the
novels (81k words) 3 % is as good as the 5 % of torch's users within the spread of seeds (`make
heads`)."""

NARROWEST = 16
"""Clusters behind the first have at least so many dimensions: fewer are hardly faster."""

MAX_TAILS = 4

# Cutoffs are such numbers times powers of ten.
_MANTISSAS = (10, 11, 12, 14, 16, 18, 20, 22, 25, 28, 32, 36, 40, 45, 50, 56, 63, 70, 80, 90)


def choose_cutoffs(
    counts: Sequence[int] | npt.NDArray[np.integer[Any]],
    size: int,
    rows: int,
    div_value: float = 4.0,
    *,
    shortlist: float = SHORTLIST,
) -> tuple[int, ...]:
    """The cutoffs with which a training step of the adaptive head costs least.

    The cost of a step is that of the head's softmax over `rows` tokens and of each cluster's over
    its expected share of them, after a table of costs that comes with pynlm: nothing is measured
    here, so the same arguments give the same cutoffs everywhere. Clusters are filled by falling
    count, so only their sizes are to be chosen: for each number of clusters, a dynamic programme
    over a grid of round numbers. Costs know nothing of perplexity, so the shortlist has a least
    size, and clusters behind the first have 16 dimensions or more.

    Parameters
    ----------
    counts
        [V], of the training text's tokens, falling.
    size
        H, width of the hidden states.
    rows
        N, tokens in a batch.
    div_value
        As `Adaptive.specs`.
    shortlist
        0 to 1; least share of the vocabulary that the shortlist holds.

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
    >>> counts = [10**8 // rank for rank in range(1, 100_001)]
    >>> cutoffs = choose_cutoffs(counts, size=256, rows=1024)
    >>> 3_000 <= cutoffs[0] < cutoffs[-1] < 100_000
    True
    """
    func = "choose_cutoffs"
    n = _falling(counts, func)
    check_integer(size, func=func, name="size", low=1, high=2**31 - 1)
    check_integer(rows, func=func, name="rows", low=1, high=2**31 - 1)
    check_number(div_value, func=func, name="div_value", low=1.0)
    check_number(shortlist, func=func, name="shortlist", low=0.0, high=1.0)
    vocab_size = len(n)
    below = np.concatenate([[0.0], np.cumsum(n, dtype=np.float64)])
    below /= below[-1]
    grid = _round_numbers(vocab_size)
    grid = grid[grid >= shortlist * vocab_size]
    best, cutoffs = float(step_cost(rows, size, vocab_size)), tuple[int, ...]()
    widths: list[int] = []
    for tails in range(1, min(MAX_TAILS, len(grid)) + 1):
        width = int(size // div_value**tails)
        if width < (NARROWEST if widths else 1):
            break
        widths.append(width)
        cost, ends = _plan(widths, below, grid, rows, size)
        if cost < best:
            best, cutoffs = cost, ends
    return cutoffs


def _plan(
    widths: Sequence[int], below: Array, grid: Array, rows: int, size: int
) -> tuple[float, tuple[int, ...]]:
    """Least cost with clusters of these widths, and the cutoffs."""
    # least[a]: cost of the words from grid[a] on, in the clusters from i on
    ends = np.append(grid, len(below) - 1)
    least = np.where(np.arange(len(ends)) == len(grid), 0.0, np.inf)
    choices = []
    for width in reversed(widths):
        first, last = ends[:, None], ends[None, :]
        words = last - first
        # with less than one row expected, most steps have none
        n = rows * np.maximum(below[last] - below[first], 0.0)
        tail = np.minimum(n, 1.0) * tail_cost(np.maximum(n, 1.0), size, width, words)
        total = np.where(words > 0, tail + least[None, :], np.inf)
        choices.append(total.argmin(axis=1))
        least = total.min(axis=1)
    whole = step_cost(rows, size, grid + len(widths)) + least[:-1]
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
    """Seconds of a cluster: rows gathered, projected from `size` to `width`, and `step_cost`."""
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


def _round_numbers(vocab_size: int) -> npt.NDArray[np.int64]:
    numbers = {m * 10**e // 10 for m in _MANTISSAS for e in range(len(str(vocab_size)))}
    return np.array(sorted(m for m in numbers if 1 <= m < vocab_size), np.int64)


def _falling(counts: object, func: str) -> npt.NDArray[np.int64]:
    n = as_counts(counts, func=func)
    rises = n[1:] > n[:-1]
    if rises.any():
        v = int(np.argmax(rises)) + 1
        raise ValueError(f"{func}: counts must fall, got counts[{v}]={n[v]} after {n[v - 1]}")
    if not n[0]:
        raise ValueError(f"{func}: counts must not all be 0, got {len(n)} of them")
    return n
