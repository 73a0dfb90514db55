"""Clusters of a vocabulary whose ids fall in frequency: what adaptive softmax and input share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pynlm.arrays import check_integer, check_number
from pynlm.layers.convert import IntArray


def check_cutoffs(cutoffs: object, vocab_size: int, *, func: str) -> tuple[int, ...]:
    """`cutoffs`, a sequence or array of strictly increasing integers in [1, V - 1].

    Raises
    ------
    TypeError, ValueError
        Naming `func` and the cutoff.
    """
    if isinstance(cutoffs, np.ndarray):
        cutoffs = cutoffs.tolist()
    if not isinstance(cutoffs, Sequence) or isinstance(cutoffs, str):
        raise TypeError(f"{func}: cutoffs must be a sequence of integers, got {cutoffs!r}")
    before = 0
    for i, cutoff in enumerate(cutoffs):
        name = f"cutoffs[{i}]"
        check_integer(cutoff, func=func, name=name, low=1, high=vocab_size - 1)
        if cutoff <= before:
            raise ValueError(
                f"{func}: cutoffs must be strictly increasing, got {name}={cutoff} after {before}"
            )
        before = cutoff
    return tuple(map(int, cutoffs))


def cluster_widths(size: int, clusters: int, div_value: float, *, func: str) -> list[int]:
    """Dimensions of each cluster behind the first, `size // div_value^(i+1)`.

    Raises
    ------
    TypeError, ValueError
        `div_value` is no number of at least 1, or leaves a cluster no dimension.
    """
    check_number(div_value, func=func, name="div_value", low=1.0)
    widths = [int(size // div_value ** (i + 1)) for i in range(clusters)]
    if 0 in widths:
        i = widths.index(0)
        raise ValueError(
            f"{func}: div_value={div_value:g} leaves tail {i} no dimension: "
            f"{size} // {div_value:g}^{i + 1} = 0"
        )
    return widths


def places_by_cluster(ids: IntArray, cutoffs: Sequence[int]) -> list[npt.NDArray[np.intp]]:
    """Where the ids [N] of each cluster stand, rising; the first cluster holds those below all.

    Examples
    --------
    >>> [rows.tolist() for rows in places_by_cluster(np.array([7, 0, 2, 9, 1], np.int32), (2, 8))]
    [[1, 4], [0, 2], [3]]
    """
    # int16 is sorted by its digits, in time that grows with N only
    kind = np.int16 if len(cutoffs) < 2**15 else np.int32
    cluster = np.searchsorted(cutoffs, ids, side="right").astype(kind)
    order = np.argsort(cluster, kind="stable")
    ends = np.cumsum(np.bincount(cluster, minlength=len(cutoffs) + 1))
    return np.split(order, ends[:-1])
