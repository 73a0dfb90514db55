"""Sums over equal ids on the device, in an order that the ids alone decide."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .device import Array, current

_DIGITS = 256
_WARPS = 8
_TILES_A_BLOCK = 4
_TILE = 32


class Sorted(NamedTuple):
    """Ids in rising order, on the device.

    Attributes
    ----------
    keys : uint32 [n]
        The ids.
    places : uint32 [n]
        Where each was; of equal ids the earlier first.
    begins : int32 [n + 1]
        Where each distinct id begins in `keys`, and n.
    count : int32 [1]
        How many distinct ones there are.
    """

    keys: Array
    places: Array
    begins: Array
    count: Array


def check_sortable(what: str, n: int) -> None:
    """Places are numbers of 32 bits.

    Raises
    ------
    ValueError
        There are 2^31 or more.
    """
    if n >= 1 << 31:
        raise ValueError(
            f"{what}: {n} ids are too many to sort on a GPU, fewer than {1 << 31} can be: "
            "give fewer tokens at once"
        )


def sort_ids(ids: Array, limit: int = 1 << 31) -> Sorted:
    """Sort int32 [n], n > 0, each at least 0 and below `limit`, without waiting."""
    n = ids.size
    check_sortable("sort_ids", n)
    device = current()
    blocks = max(1, min(-(-n // (_DIGITS * _TILES_A_BLOCK)), device.processors))
    keys, places = device.empty((n,), np.uint32), device.empty((n,), np.uint32)
    found = Sorted(keys, places, device.empty((n + 1,), np.int32), device.empty((1,), np.int32))
    device.launch(
        "common/sort.cu",
        "sort_ids",
        blocks,
        shared=4 * (_DIGITS + _WARPS + _WARPS * _DIGITS),
        cooperative=True,
        **found._asdict(),
        spare=device.empty((2 * n,), np.uint32),
        ids=ids,
        counts=device.empty((blocks * _DIGITS,), np.uint32),
        arrived=device.zeros((1,), np.uint32),
        n=n,
        bits=(limit - 1).bit_length(),
    )
    return found


def sum_sorted(
    found: Sorted,
    *,
    out: Array,
    x: Array,
    factors: Array | None = None,
    factor_sums: Array | None = None,
    ids: Array | None = None,
    distinct: Array | None = None,
    stride: int = 1,
    limit: int = 0xFFFFFFFF,
    offset: int = 0,
) -> None:
    """out[id] = sum of factors[place] * x[place // stride] over the places of the id.

    Parameters
    ----------
    found
        Sorted ids; those from `limit` on are left out.
    out : [R, D], output
        Rows of ids that do not occur are left as they are. With `ids` sums go to its rows `offset`
        and following, and those beyond R nowhere.
    x : [P, D]
    factors : [n] or None
        None: 1.
    factor_sums : [R] or None, output
        Sums of the factors, as `out`.
    ids : int32 [R] or None, output
        What each row of `out` is the sum for. None: row `id` is.
    distinct : int32 [1] or None, output
        How many ids below the limit there are, plus `offset`.
    """
    device = current()
    n, D = found.keys.size, x.shape[1]
    tiles = -(-n // _TILE)
    parts = device.empty((tiles * 2, D), x.dtype)
    part_sums = device.empty((tiles * 2,), np.float64)
    blocks = device.blocks_for(tiles * -(-D // 128), 1)
    common = {
        "real": x.dtype,
        "out": out,
        "factor_sums": factor_sums,
        "ids": ids,
        "parts": parts,
        "part_sums": part_sums,
        "keys": found.keys,
        "begins": found.begins,
        "count": found.count,
        "n": n,
        "D": D,
        "limit": limit,
        "offset": offset,
        "room": len(out),
    }
    device.launch(
        "common/sums.cu",
        "sum_sorted",
        blocks,
        shared=4 * 36 + 4 * 36 + x.itemsize * _TILE,
        found=distinct,
        x=x,
        factors=factors,
        places=found.places,
        stride=stride,
        **common,
    )
    device.launch("common/sums.cu", "join_sorted", blocks, **common)
