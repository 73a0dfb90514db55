"""Stable sort of ids on the device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .device import Array, current

_DIGITS = 256
_WARPS = 8
_TILES_A_BLOCK = 4


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


def sort_ids(ids: Array, bits: int = 31) -> Sorted:
    """Sort int32 [n], none negative and all below 2**bits, without waiting."""
    device = current()
    n = ids.size
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
        bits=bits,
    )
    return found
