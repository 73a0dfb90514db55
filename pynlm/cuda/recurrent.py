"""How the persistent recurrent kernels divide their work (csrc/recurrent/sequence.cuh)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pynlm.kernels.variant import Variant

from .device import Array, Device
from .source import read

_THREADS = 256
_TILE_ROWS = (4, 8, 10)
_DEPTH_GRAIN = 4
_CHUNKS = 4  # at least, of a depth of some size: one is copied while another is computed
_LEAST_CHUNK = 64
_COUNTER_STRIDE = 32
_TOTALS = 2
# What a kernel takes of a product's division.
_DIVISION = ("pass_rows", "splits", "chunk", "kept")
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
        return {name: getattr(self, name) for name in _DIVISION}

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
    totals
        Numbers of shared memory for layer norm.
    """

    grid: tuple[int, int]
    units: tuple[int, ...]
    rows: int
    tile_rows: int
    products: tuple[Product, ...]
    totals: int
    itemsize: int

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        space = max(product.space for product in self.products)
        weights = sum(product.weights for product in self.products)
        return (self.totals + space + weights) * self.itemsize

    def launch(
        self, device: Device, source: str, kernel: str, dtype: Any, *defines: str, **given: Any
    ) -> None:
        """Start a kernel, with its working memory.

        One that has `units_2` takes a second product's division and memory, one that has
        `partials` the blocks' partial sums for layer norm.
        """
        blocks = self.grid[0] * self.grid[1]
        batch = given["B"]
        taken = {p.name for p in read(source).kernels[kernel].parameters}
        counters = device.zeros((self.grid[1] * _COUNTER_STRIDE,), np.uint32)
        for suffix, states, product, units in zip(
            ("", "_2"), ("states", "middle"), self.products, self.units, strict=False
        ):
            size = blocks * product.far
            given["far" + suffix] = device.empty((size,), dtype) if size else None
            given["units" + suffix] = units
            # two steps' states, whose padding stays zero
            given[states] = device.zeros((2, batch, product.depth), dtype)
            given |= {name + suffix: value for name, value in product.arguments.items()}
        if "units_2" in taken:
            for name in ("units_2", *(f"{name}_2" for name in _DIVISION), "middle", "far_2"):
                given.setdefault(name, None if name in ("middle", "far_2") else 0)
        if "partials" in taken:
            size = 2 * batch * self.grid[0] * 2 if self.totals else 0
            given["partials"] = device.empty((size,), dtype) if size else None
        device.launch(
            source,
            kernel,
            self.grid,
            real=dtype,
            shared=self.shared,
            cooperative=True,
            defines=(f"TILE_ROWS={self.tile_rows}", *defines),
            counters=counters,
            rows=self.rows,
            **given,
        )


def padded(depth: int) -> int:
    """A depth in whole copies of 16 bytes."""
    return -(-depth // _DEPTH_GRAIN) * _DEPTH_GRAIN


def divide(
    device: Device, batch: int, itemsize: int, *parts: Part, norms: bool = False
) -> Division:
    """The fastest division by a rough count of cycles; `norms`: for a cell with layer norm.

    Raises
    ------
    ValueError
        The card has too few multiprocessors for so many units.
    """
    return _divide(device.processors, device.shared_limit, batch, itemsize, parts, norms)


@functools.lru_cache(1024)
def _divide(
    processors: int, limit: int, batch: int, itemsize: int, parts: tuple[Part, ...], norms: bool
) -> Division:
    best: tuple[float, Division] | None = None
    for row_groups in range(1, min(max(batch, 1), processors) + 1):
        rows = -(-batch // row_groups)
        if -(-batch // max(rows, 1)) != row_groups and batch:
            continue  # some would have none
        for tile_rows in _TILE_ROWS:
            if tile_rows > 4 and rows <= _TILE_ROWS[_TILE_ROWS.index(tile_rows) - 1]:
                continue
            totals = _TOTALS * padded(rows) if norms else 0
            found = _grid(processors, limit, row_groups, rows, tile_rows, itemsize, parts, totals)
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
    totals: int,
) -> Division | None:
    wanted = min(processors // row_groups, max(part.count for part in parts))
    units = tuple(-(-part.count // wanted) for part in parts)
    unit_groups = max(-(-part.count // n) for part, n in zip(parts, units, strict=True))
    products: tuple[Product, ...] = ()
    # Weights have what the spaces leave, the first product's before the second's. Space is shared,
    # but the second's may be larger: then the first is planned anew beside it.
    space = 0
    for _ in parts:
        products = ()
        for part, own in zip(parts, units, strict=True):
            left = limit // itemsize - totals - sum(product.weights for product in products)
            product = _product(part, own * part.per, rows, tile_rows, itemsize, left, space)
            if product is None:
                return None
            products = (*products, product)
        space = max(product.space for product in products)
        if all(product.space == space for product in products):
            return Division(
                (unit_groups, row_groups), units, rows, tile_rows, products, totals, itemsize
            )
    return None


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
            if needs <= limit:
                kept = min((limit - needs) // (groups * 4) // chunk * chunk, depth)
                if (limit - needs) // (groups * 4) >= depth:
                    kept = depth
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


def start_gradient(gradient: Array, last: Array | None) -> None:
    """The gradient of a state, which is that of the last, if there is one."""
    gradient[...] = 0 if last is None else last


def input_gradients(
    device: Device,
    dx: Array | None,
    dw_ih: Array,
    d: Array,
    x: Array,
    w_ih: Array,
    lengths: Array | None,
) -> None:
    """Gradients of input and weights from d of w_ih x [T, B, columns], 0 beyond the lengths."""
    T, B, I = x.shape
    rows = d.reshape(T * B, len(w_ih))
    if lengths is not None:  # x beyond may be NaN
        x = rows_taking_part(device, x, lengths)
    device.matmul(dw_ih, rows.T, x.reshape(T * B, I))
    if dx is not None:
        device.matmul(dx.reshape(T * B, I), rows, w_ih)


def state_gradient(device: Device, dw: Array, d: Array, h0: Array, y: Array) -> None:
    """Gradient of weights w from d of w h [T B, columns], 0 beyond the lengths.

    `y` [T, B, H]: states as they enter w, which follow `h0`.
    """
    B, H = h0.shape
    device.matmul(dw, d[:B].T, h0[: len(d)])
    device.matmul(dw, d[B:].T, y.reshape(-1, H)[: max(len(d) - B, 0)], accumulate=True)


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


def column_sums(
    device: Device,
    out: Array,
    m: Array,
    by: Array | None = None,
    lengths: Array | None = None,
    batch: int = 1,
) -> None:
    """out = sum of the rows of m, times those of `by`, without those beyond their lengths."""
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
            lengths=lengths,
            B=batch,
            rows=rows,
            columns=columns,
            run=rows if last else _SUM_ROWS,
        )
        if last:
            return
        m, by, lengths, rows = to, None, None, runs


def normalise_inputs(
    device: Device,
    v: Array,
    norm: Array | None,
    rstd: Array | None,
    gain: Array,
    bias: Array,
) -> None:
    """v = gain N(v) + bias for each row of v [T, B, n]; N(v) goes to `norm`, 1/sqrt to `rstd`."""
    device.launch(
        "recurrent/rows.cu",
        "normalise_rows",
        device.blocks_for(v.size // len(gain) * 32),
        real=v.dtype,
        v=v,
        norm=norm,
        rstd=rstd,
        gain=gain,
        bias=bias,
        rows=v.size // len(gain),
        n=len(gain),
    )


def norm_gradients(
    device: Device,
    dln_gates: Array,
    gate_sums: Array,
    d: Array,
    norm: Array,
    rstd: Array,
    ln_gates: Array,
    lengths: Array | None,
) -> None:
    """Gains' gradients; those of w_ih x take the place of N(w_ih x) in norm[0].

    `d` [T, B, n]: of the pre-activations; `gate_sums` [B, n]: of the second gain, by rows.
    """
    T, B, n = d.shape
    column_sums(device, dln_gates[1], gate_sums)
    column_sums(device, dln_gates[0], d, norm[0], lengths, B)
    if not T * B:
        return
    device.launch(
        "recurrent/rows.cu",
        "normalise_rows_backward",
        device.blocks_for(T * B * 32),
        real=d.dtype,
        norm=norm[0],
        d=d,
        rstd=rstd[0],
        gain=ln_gates[0],
        lengths=lengths,
        B=B,
        rows=T * B,
        n=n,
    )


def is_plain(variant: Variant | None, *options: Array | None) -> bool:
    """Whether no variant is asked for."""
    none = variant is None or not any(
        (variant.zoneout_h, variant.zoneout_c, variant.clip_h, variant.clip_c, variant.coupled)
    )
    return none and all(option is None for option in options)


def variant_arguments(variant: Variant) -> dict[str, Any]:
    """What general kernels take of a Variant."""
    return {
        "zoneout_h": variant.zoneout_h,
        "threshold_h": _threshold(variant.zoneout_h),
        "clip_h": variant.clip_h or math.inf,
        "sample": variant.sample,
        "seed": variant.seed,
        "draw": variant.step,
        "layer": variant.layer,
        "time0": variant.time0,
        "row_ids": variant.rows,
    }


def cell_state_arguments(variant: Variant) -> dict[str, Any]:
    """What of a Variant only kernels of the LSTM take."""
    return {
        "zoneout_c": variant.zoneout_c,
        "threshold_c": _threshold(variant.zoneout_c),
        "clip_c": variant.clip_c or math.inf,
        "norm_state": variant.norm_state,
    }


def _threshold(p: float) -> int:
    return min(int(p * 4294967296.0 + 0.5), 0xFFFFFFFF)
