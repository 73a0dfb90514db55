"""How the persistent recurrent kernels divide their work (csrc/recurrent/sequence.cuh)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from .device import Array, Device

_THREADS = 256
_TILE_ROWS = (4, 8, 10)
_DEPTH_GRAIN = 4
_CHUNKS = 4  # at least, of a depth of some size: one is copied while another is computed
_LEAST_CHUNK = 64
_COUNTER_STRIDE = 32
_SUM_ROWS = 512  # of one run of a sum over rows
# Bytes a cycle that a multiprocessor gets from the second-level cache when all ask (H200).
_CACHE_RATE = 24


@dataclass(frozen=True)
class Part:
    """A product of a step: `per` columns for each of `count` units that blocks divide."""

    count: int
    per: int
    depth: int


@dataclass(frozen=True)
class Product:
    """A block's division of one `Part`, and what it needs."""

    depth: int
    pass_rows: int
    splits: int
    chunk: int
    kept: int
    groups: int
    space: int
    cycles: float

    @property
    def arguments(self) -> dict[str, int]:
        """What the kernel takes."""
        names = ("pass_rows", "splits", "chunk", "kept")
        return {name: getattr(self, name) for name in names}

    @property
    def weights(self) -> int:
        """Numbers of a block's weights in shared memory."""
        return self.groups * self.kept * 4

    @property
    def far(self) -> int:
        """Numbers of a block's weights elsewhere."""
        return self.groups * (self.depth - self.kept) * 4


@dataclass(frozen=True)
class Division:
    """A grid of unit groups x row groups, and each product's division.

    Attributes
    ----------
    units
        Units of a block, for each part.
    rows
        Rows of a block.
    """

    grid: tuple[int, int]
    units: tuple[int, ...]
    rows: int
    tile_rows: int
    products: tuple[Product, ...]
    itemsize: int

    @property
    def defines(self) -> tuple[str, ...]:
        """Macros that the kernels are compiled with."""
        return (f"TILE_ROWS={self.tile_rows}",)

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return _shared(self.products, self.itemsize)

    def far(self, device: Device, which: int, dtype: Any) -> Array | None:
        """Working memory for the weights that shared memory does not hold."""
        blocks = self.grid[0] * self.grid[1]
        size = blocks * self.products[which].far
        return device.empty((size,), dtype) if size else None

    def counters(self, device: Device) -> Array:
        """The row groups' barriers."""
        return device.zeros((self.grid[1] * _COUNTER_STRIDE,), np.uint32)


def exchange(device: Device, batch: int, depth: int, dtype: Any) -> Array:
    """Two steps' states, whose padding is zero."""
    return device.zeros((2, batch, padded(depth)), dtype)


def padded(depth: int) -> int:
    """A depth in whole copies of 16 bytes."""
    return -(-depth // _DEPTH_GRAIN) * _DEPTH_GRAIN


def divide(device: Device, batch: int, itemsize: int, *parts: Part) -> Division:
    """The fastest division by a rough count of cycles.

    Raises
    ------
    ValueError
        The card has too few multiprocessors for so many units.
    """
    return _divide(device.processors, device.shared_limit, batch, itemsize, parts)


@functools.lru_cache(1024)
def _divide(
    processors: int, limit: int, batch: int, itemsize: int, parts: tuple[Part, ...]
) -> Division:
    best: tuple[float, Division] | None = None
    for row_groups in range(1, min(max(batch, 1), processors) + 1):
        rows = -(-batch // row_groups)
        if -(-batch // max(rows, 1)) != row_groups and batch:
            continue  # some would have none
        for tile_rows in _TILE_ROWS:
            if tile_rows > 4 and rows <= _TILE_ROWS[_TILE_ROWS.index(tile_rows) - 1]:
                continue
            found = _grid(processors, limit, row_groups, rows, tile_rows, itemsize, parts)
            if found is None:
                continue
            cycles = sum(product.cycles for product in found.products)
            if best is None or cycles < best[0]:
                best = cycles, found
    if best is None:
        most = max(part.count for part in parts)
        raise ValueError(f"{most} units are too many for {processors} multiprocessors")
    return best[1]


def _grid(
    processors: int,
    limit: int,
    row_groups: int,
    rows: int,
    tile_rows: int,
    itemsize: int,
    parts: tuple[Part, ...],
) -> Division | None:
    wanted = min(processors // row_groups, max(part.count for part in parts))
    units = tuple(-(-part.count // wanted) for part in parts)
    unit_groups = max(-(-part.count // n) for part, n in zip(parts, units, strict=True))
    products: tuple[Product, ...] = ()
    for part, own in zip(parts, units, strict=True):
        # The largest space that is enough for a good product counts first; what is left holds
        # weights, the first product's before the second's.
        others = _weights(products, itemsize)
        space = max((product.space for product in products), default=0)
        product = _product(
            part, own * part.per, rows, tile_rows, itemsize, limit - others, space
        )
        if product is None:
            return None
        products = (*products, product)
    if _shared(products, itemsize) > limit:
        return None
    return Division((unit_groups, row_groups), units, rows, tile_rows, products, itemsize)


def _product(
    part: Part, columns: int, rows: int, tile_rows: int, itemsize: int, limit: int, space: int
) -> Product | None:
    depth, groups = padded(part.depth), -(-columns // 4)
    if groups > _THREADS:
        return None
    tiles = min(max(-(-rows // tile_rows), 1), _THREADS // groups)
    stride = 16 // itemsize
    while tiles:
        pass_rows = tiles * tile_rows
        splits = min(_THREADS // (groups * tiles), depth)
        chunk = max(padded(-(-depth // _CHUNKS)), min(depth, _LEAST_CHUNK))
        while True:
            sums = groups * 4 * pass_rows * (splits | 1)
            staged = 2 * pass_rows * (chunk + stride)
            needs = max(staged, sums, space)
            needs += -needs % stride
            if needs * itemsize <= limit:
                kept = (limit // itemsize - needs) // (groups * 4) // chunk * chunk
                kept = min(kept, depth)
                cycles = _cycles(groups, depth, kept, rows, pass_rows, tile_rows, splits, itemsize)
                return Product(depth, pass_rows, splits, chunk, kept, groups, needs, cycles)
            if sums >= staged and splits > 1:
                splits = -(-splits // 2)
            elif chunk > _DEPTH_GRAIN:
                chunk = padded(chunk // 2)
            else:
                break
        tiles //= 2
    return None


def _cycles(
    groups: int,
    depth: int,
    kept: int,
    rows: int,
    pass_rows: int,
    tile_rows: int,
    splits: int,
    itemsize: int,
) -> float:
    passes = -(-rows // pass_rows)
    warps = -(-groups * pass_rows // tile_rows * splits // 32)
    product = -(-depth // splits) * warps * (tile_rows + 4) * (itemsize // 4)
    sums = groups * 4 * pass_rows * splits * 2 / 32
    read = (rows * depth + passes * groups * 4 * (depth - kept)) * itemsize / _CACHE_RATE
    return passes * (product + sums) + read


def _weights(products: tuple[Product, ...], itemsize: int) -> int:
    return sum(product.weights for product in products) * itemsize


def _shared(products: tuple[Product, ...], itemsize: int) -> int:
    space = max(product.space for product in products)
    return _weights(products, itemsize) + space * itemsize


def start_gradient(gradient: Array, last: Array | None) -> None:
    """The gradient of a state, which is that of the last, if there is one."""
    gradient[...] = 0 if last is None else last


def layer_gradients(
    device: Device,
    dx: Array | None,
    dw_ih: Array,
    dw_hh: Array,
    d: Array,
    d_hh: Array,
    x: Array,
    w_ih: Array,
    h0: Array,
    y: Array,
    lengths: Array | None,
) -> None:
    """Gradients of input and weights from d of w_ih x and d_hh of w_hh h [T, B, columns].

    d and d_hh are zero beyond a row's length. `y`: states as they enter w_hh, which follow `h0`.
    """
    T, B, I = x.shape
    d_rows, d_hh_rows = (of.reshape(T * B, of.shape[2]) for of in (d, d_hh))
    if lengths is not None:  # x beyond may be NaN
        x = rows_taking_part(device, x, lengths)
    device.matmul(dw_ih, d_rows.T, x.reshape(T * B, I))
    before = y.reshape(T * B, y.shape[2])[: max(T - 1, 0) * B]
    device.matmul(dw_hh, d_hh_rows[:B].T, h0[: len(d_hh_rows[:B])])
    device.matmul(dw_hh, d_hh_rows[B:].T, before, accumulate=True)
    if dx is not None:
        device.matmul(dx.reshape(T * B, I), d_rows, w_ih)


def rows_taking_part(device: Device, x: Array, lengths: Array) -> Array:
    """A copy of x [T, B, I] with zeros beyond the rows' lengths."""
    T, B, I = x.shape
    out = device.empty(x.shape, x.dtype)
    device.launch(
        "recurrent/rows.cu",
        "rows_taking_part",
        device.blocks_for(x.size),
        real=x.dtype,
        out=out,
        x=x,
        lengths=lengths,
        T=T,
        B=B,
        columns=I,
    )
    return out


def column_sums(device: Device, out: Array, m: Array, by: Array | None = None) -> None:
    """out = sum of the rows of m, times those of `by`."""
    columns = out.size
    rows = m.size // columns if columns else 0
    blocks = -(-columns // 32)
    while True:
        runs = max(-(-rows // _SUM_ROWS), 1)
        last = runs == 1
        to = out if last else device.empty((runs, columns), m.dtype)
        device.launch(
            "recurrent/rows.cu",
            "column_sums",
            (blocks, runs),
            real=m.dtype,
            shared=_THREADS * m.itemsize,
            out=to,
            m=m,
            by=by,
            rows=rows,
            columns=columns,
            run=rows if last else _SUM_ROWS,
        )
        if last:
            return
        m, by, rows = to, None, runs
