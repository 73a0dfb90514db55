"""The counter-based generator behind every random choice: Philox 4x32-10.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), §3.3.

A random word is a pure function of where it is used, so it does not depend on the order of
computation or on the number of threads, and a mask can be computed again instead of stored:

    key     = (seed, step)
    counter = (unit >> 2, row, time, site << 16 | layer)
    word    = output lane (unit & 3)

All parts are unsigned 32-bit. `unit` is the index along the last axis, `row` the batch row, `time`
the absolute time step (`ALL_TIMES` where one choice holds for all of them).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

EMBEDDING = 1
INPUT = 2
BETWEEN = 3
OUTPUT = 4
RECURRENT = 5
WEIGHT = 6
SAMPLE = 7
INIT = 8
SHUFFLE = 9
ZONEOUT_H = 10
ZONEOUT_C = 11
CANDIDATES = 12

ALL_TIMES = 0xFFFFFFFF

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox_4x32(
    c0: npt.ArrayLike, c1: npt.ArrayLike, c2: npt.ArrayLike, c3: npt.ArrayLike, k0: int, k1: int
) -> tuple[Words, Words, Words, Words]:
    """Ten rounds of Philox on counters that broadcast together; returns the four output words.

    Examples
    --------
    >>> [hex(int(word)) for word in philox_4x32(0, 0, 0, 0, 0, 0)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    a, b, c, d = np.broadcast_arrays(*(np.asarray(x, dtype=np.uint64) for x in (c0, c1, c2, c3)))
    for turn in range(_ROUNDS):
        key0 = np.uint64((k0 + turn * _WEYL[0]) & 0xFFFFFFFF)
        key1 = np.uint64((k1 + turn * _WEYL[1]) & 0xFFFFFFFF)
        product0 = a * np.uint64(_MULTIPLIERS[0])
        product1 = c * np.uint64(_MULTIPLIERS[1])
        a, b, c, d = (
            (product1 >> _HALF) ^ b ^ key0,
            product1 & _LOW,
            (product0 >> _HALF) ^ d ^ key1,
            product0 & _LOW,
        )
    return a.astype(np.uint32), b.astype(np.uint32), c.astype(np.uint32), d.astype(np.uint32)


def philox_u32(
    *,
    unit: npt.ArrayLike,
    row: npt.ArrayLike,
    time: npt.ArrayLike,
    site: int,
    layer: int,
    seed: int,
    step: int,
) -> Words:
    """Return the random word of every (unit, row, time); the three broadcast together.

    Parameters
    ----------
    unit, row, time
        Non-negative integers below 2**32.
    site, layer
        Purpose (`EMBEDDING` ... `CANDIDATES`) and layer number, below 2**16.
    seed, step
        Key, below 2**32.

    Returns
    -------
    uint32 array of the broadcast shape.
    """
    units = np.asarray(unit, dtype=np.uint64)
    word = (site << 16) | layer
    lanes = philox_4x32(units >> np.uint64(2), row, time, word, seed, step)
    lane = np.broadcast_to(units & np.uint64(3), lanes[0].shape)
    return np.choose(lane.astype(np.intp), lanes)


def words(
    times: npt.ArrayLike,
    rows: npt.ArrayLike,
    units: int,
    *,
    site: int,
    layer: int,
    seed: int,
    step: int,
) -> Words:
    """Return uint32 [len(times), len(rows), units]: `philox_u32` of a whole grid.

    Costs a quarter of `philox_u32`, because each block of four lanes is computed once.
    """
    blocks = np.arange(-(-units // 4))
    lanes = philox_4x32(
        blocks[None, None, :],
        np.asarray(rows)[None, :, None],
        np.asarray(times)[:, None, None],
        (site << 16) | layer,
        seed,
        step,
    )
    grid = np.stack(lanes, axis=-1)
    return grid.reshape(grid.shape[0], grid.shape[1], 4 * len(blocks))[:, :, :units]


def uniform(
    shape: tuple[int, ...], *, seed: int, step: int, site: int, layer: int, time: int = 0
) -> npt.NDArray[np.float64]:
    """Return float64 numbers in [0, 1), multiples of 2**-32: word * 2**-32.

    The last axis of `shape` is the unit; the axes before it, flattened, are the row.

    Examples
    --------
    >>> uniform((2, 3), seed=1, step=0, site=INIT, layer=0).shape
    (2, 3)
    """
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    units = shape[-1] if shape else 1
    grid = words([time], np.arange(rows), units, site=site, layer=layer, seed=seed, step=step)
    drawn: npt.NDArray[Any] = grid.reshape(shape)
    return drawn * 2.0**-32
