"""How the persistent recurrent kernels divide their work (csrc/recurrent/sequence.cuh)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pynlm.kernels.variant import Variant

from ._columns import column_sum
from .device import Array, Device
from .dropout import threshold
from .source import read

_THREADS = 256
_CHUNKS = (4, 8, 16, 32)  # of a depth: one is copied while another is computed
_LEAST_CHUNK = 64
_CHUNK_CYCLES = 100  # two barriers of the block
_COPY = 16  # bytes
_COUNTER_STRIDE = 32
# Bytes a cycle that a multiprocessor gets from the second-level cache when all ask (H200).
_CACHE_RATE = 24
_LATENCY = 32  # cycles that a step takes at least, with several under way
# What a kernel takes of a product's division.
_DIVISION = ("pass_rows", "splits", "chunk", "kept")


@dataclass(frozen=True)
class Form:
    """What products are computed by (csrc/recurrent/product.cuh).

    Attributes
    ----------
    defines
        Macros.
    itemsize, operand
        Bytes of a number, and of one that is multiplied.
    workers, group, step
        Workers of a block (threads or warps), and of a worker's tile columns and depth at once.
    grain
        Depths are rounded up to it.
    tile_rows
        Rows of a tile, which can be chosen.
    """

    defines: tuple[str, ...]
    itemsize: int
    operand: int
    workers: int
    group: int
    step: int
    grain: int
    tile_rows: tuple[int, ...]

    def padded(self, depth: int) -> int:
        """A depth in whole copies and steps."""
        return -(-depth // self.grain) * self.grain

    def cycles(self, tile_rows: int) -> float:
        """Cycles of a warp's step: shared memory is read 128 bytes at a time."""
        if self.workers < _THREADS:
            return 4 + 2 * tile_rows / 8
        return max(self.group + tile_rows, self.group * tile_rows / 4) * self.itemsize / 4


def forms_of(math_: str, itemsize: int) -> tuple[Form, ...]:
    """The forms of products of a dtype with so many bytes under `Device.math`."""
    if itemsize == 8:
        return (Form(("TILE_FOURS=1",), 8, 8, _THREADS, 4, 1, 4, (4, 8)),)
    if math_ == "float32":
        return (
            Form(("TILE_FOURS=1",), 4, 4, _THREADS, 4, 1, 4, (4, 8, 10)),
            Form(("TILE_FOURS=2",), 4, 4, _THREADS, 8, 1, 8, (8, 10)),
        )
    macros, warps, rows = (f"{math_.upper()}=1",), _THREADS // 32, (8, 16, 24, 32)
    if math_ == "tf32":
        return (Form(macros, 4, 4, warps, 16, 8, 8, rows),)
    return (Form(macros, 4, 2, warps, 16, 16, 16, rows),)


@dataclass(frozen=True)
class Part:
    """A product of a step: `per` columns for each of `count` units that blocks divide."""

    count: int
    per: int
    depth: int


@dataclass(frozen=True)
class Product:
    """A block's division of one `Part`; what it needs, in bytes, and about how many cycles."""

    depth: int
    pass_rows: int
    splits: int
    chunk: int
    kept: int
    space: int
    weights: int
    far: int
    cycles: float

    @property
    def arguments(self) -> dict[str, int]:
        """What the kernel takes."""
        return {name: getattr(self, name) for name in _DIVISION}


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
        Bytes of shared memory for layer norm.
    """

    form: Form
    grid: tuple[int, int]
    units: tuple[int, ...]
    rows: int
    tile_rows: int
    products: tuple[Product, ...]
    totals: int

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        space = max(product.space for product in self.products)
        return self.totals + space + sum(product.weights for product in self.products)

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
        for suffix, states, product, units in zip(
            ("", "_2"), ("states", "middle"), self.products, self.units, strict=False
        ):
            far = blocks * product.far // dtype.itemsize
            given["far" + suffix] = device.empty((far,), dtype) if far else None
            given["units" + suffix] = units
            numbers = 2 * batch * product.depth * self.form.operand // dtype.itemsize
            given[states] = device.zeros((numbers,), dtype)
            given |= {name + suffix: value for name, value in product.arguments.items()}
        if "units_2" in taken:
            for name in ("units_2", *(f"{name}_2" for name in _DIVISION)):
                given.setdefault(name, 0)
            given.setdefault("middle", None)
            given.setdefault("far_2", None)
        if "partials" in taken:
            partials = 2 * batch * self.grid[0] * 2
            given["partials"] = device.empty((partials,), dtype) if self.totals else None
        device.launch(
            source,
            kernel,
            self.grid,
            real=dtype,
            shared=self.shared,
            cooperative=True,
            defines=(f"TILE_ROWS={self.tile_rows}", *self.form.defines, *defines),
            counters=device.zeros((self.grid[1] * _COUNTER_STRIDE,), np.uint32),
            rows=self.rows,
            **given,
        )


def divide(
    device: Device, batch: int, itemsize: int, *parts: Part, norms: bool = False
) -> Division:
    """The fastest division by a rough count of cycles; `norms`: for a cell with layer norm.

    Raises
    ------
    ValueError
        The card has too little shared memory for so many units.
    """
    forms = forms_of(device.math, itemsize)
    return _divide(device.share, device.shared_limit, forms, batch, parts, norms)


def expected(
    processors: int,
    limit: int,
    math_: str,
    batch: int,
    itemsize: int,
    *parts: Part,
    norms: bool = False,
) -> tuple[float, float]:
    """Cycles of a step's products on so many multiprocessors, and of loading a block's weights.

    Raises
    ------
    ValueError
        As `divide`.
    """
    found = _divide(processors, limit, forms_of(math_, itemsize), batch, parts, norms)
    products = found.products
    return sum(p.cycles for p in products), sum(p.weights + p.far for p in products) / _CACHE_RATE


@functools.lru_cache(1024)
def _divide(
    processors: int,
    limit: int,
    forms: tuple[Form, ...],
    batch: int,
    parts: tuple[Part, ...],
    norms: bool,
) -> Division:
    found = []
    for row_groups in range(1, min(batch, processors) + 1):
        rows = -(-batch // row_groups)
        if -(-batch // rows) != row_groups:
            continue  # some would have none
        for form in forms:
            for smaller, tile_rows in zip((0, *form.tile_rows), form.tile_rows, strict=False):
                if rows > smaller:
                    found += _grid(
                        processors, limit, form, row_groups, rows, tile_rows, parts, norms
                    )
    if not found:
        most = max(part.count for part in parts)
        raise ValueError(
            f"{most} units are too many for {processors} multiprocessors with {limit} bytes of "
            "shared memory each"
        )
    return min(found, key=lambda division: sum(p.cycles for p in division.products))


def _grid(
    processors: int,
    limit: int,
    form: Form,
    row_groups: int,
    rows: int,
    tile_rows: int,
    parts: tuple[Part, ...],
    norms: bool,
) -> list[Division]:
    """The division into so many row groups, if there is one."""
    wanted = min(processors // row_groups, max(part.count for part in parts))
    units = tuple(-(-part.count // wanted) for part in parts)
    unit_groups = max(-(-part.count // n) for part, n in zip(parts, units, strict=True))
    totals = (rows + 1) // 2 * 4 * form.itemsize if norms else 0
    # Weights have what the space for rows and sums leaves, the first product's before the
    # second's. All have the same space: the first is planned anew where another needs more.
    space = 0
    for _ in parts:
        products: tuple[Product, ...] = ()
        for part, own in zip(parts, units, strict=True):
            left = limit - totals - sum(product.weights for product in products)
            product = _product(form, part.depth, own * part.per, rows, tile_rows, left, space)
            if product is None:
                return []
            products = (*products, product)
        space = max(product.space for product in products)
        if all(product.space == space for product in products):
            grid = (unit_groups, row_groups)
            return [Division(form, grid, units, rows, tile_rows, products, totals)]
    return []


def _product(
    form: Form, depth: int, columns: int, rows: int, tile_rows: int, limit: int, space: int
) -> Product | None:
    """The fastest division of a block's product into workers, if it has room for any."""
    found = []
    groups = -(-columns // form.group)
    most = min(-(-rows // tile_rows), form.workers)
    for row_tiles in {most, -(-most // 2), 1}:
        best = max(form.workers // (groups * row_tiles), 1)
        for splits in {best, min(2 * best, form.workers // row_tiles), -(-best // 2), 1}:
            chunk = form.padded(depth)
            for chunks in _CHUNKS:
                chunk = min(chunk, max(form.padded(-(-depth // chunks)), _LEAST_CHUNK))
                found += _workers(
                    form, depth, groups, rows, tile_rows, row_tiles, splits, chunk, limit, space
                )
            while chunk > form.grain and not found:
                chunk = form.padded(chunk // 2)
                found += _workers(
                    form, depth, groups, rows, tile_rows, row_tiles, splits, chunk, limit, space
                )
    return min(found, key=lambda product: product.cycles, default=None)


def _workers(
    form: Form,
    unpadded: int,
    groups: int,
    rows: int,
    tile_rows: int,
    row_tiles: int,
    splits: int,
    chunk: int,
    limit: int,
    space: int,
) -> list[Product]:
    """The division into so many tiles of rows, splits and chunks, if there is room for it."""
    depth = form.padded(unpadded)
    splits = min(splits, depth // form.step)
    pass_rows = row_tiles * tile_rows
    at_once = min(form.workers // splits // row_tiles, groups)
    sums = groups * form.group * pass_rows * (splits | 1) * form.itemsize
    staged = 2 * pass_rows * (chunk * form.operand + _COPY)
    needs = max(space, max(staged, sums) if at_once == groups else staged + sums)
    needs += -needs % _COPY
    if needs > limit:
        return []
    row = groups * form.group * form.operand  # bytes of the weights of one number of the depth
    fits = (limit - needs) // row
    kept = depth if fits >= depth else fits // chunk * chunk
    passes, column_passes = -(-rows // pass_rows), -(-groups // at_once)
    warps = -(-at_once * row_tiles * splits * (_THREADS // form.workers) // 32)
    computed = -(-depth // form.step // splits) * max(warps * form.cycles(tile_rows), _LATENCY)
    computed += -(-depth // chunk) * _CHUNK_CYCLES
    added = groups * form.group * pass_rows * splits * 2 * form.itemsize / 128
    read = column_passes * rows * depth * form.operand + passes * row * (depth - kept)
    cycles = passes * (column_passes * computed + added) + read / _CACHE_RATE
    return [
        Product(
            depth, pass_rows, splits, chunk, kept, needs, row * kept, row * (depth - kept), cycles
        )
    ]


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
) -> tuple[Array, Array]:
    """Gains' gradients, and those of w_ih x and w_hh h, which are in the place of N of them.

    `d` [T, B, n]: of the pre-activations; `gate_sums` [B, n]: of the second gain, by rows.
    """
    T, B, n = d.shape
    column_sum(dln_gates[1], gate_sums)
    rows = d.reshape(T * B, n)
    column_sum(dln_gates[0], rows, by=norm[0], lengths=lengths)
    if not T * B:
        return norm[0], norm[1]
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
    return norm[0], norm[1]


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
        "threshold_h": threshold(variant.zoneout_h),
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
        "threshold_c": threshold(variant.zoneout_c),
        "clip_c": variant.clip_c or math.inf,
        "norm_state": variant.norm_state,
    }
