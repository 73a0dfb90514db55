"""How the persistent recurrent kernels divide their work (csrc/recurrent/sequence.cuh)."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pynlm.kernels.variant import Variant

from ._columns import column_sum
from .device import Array, Device
from .dropout import threshold
from .source import read

_THREADS = 256
_CHUNKS = (1, 2, 4, 8, 16, 32)  # of a depth: one is computed while others are copied
_LEAST_CHUNK = 64
_STAGES = 3  # chunks that there is room for
_SEGMENT = 8  # steps of a worker in a chunk whose weights are in registers
_PARTS = (1, 2, 4, 8)  # of a depth that blocks divide
_HELD_GAIN = 0.97  # for less, registers are not worth a variant more to compile
_COPY = 16  # bytes
_COUNTER_STRIDE = 32
# What a kernel takes of a product's division.
_DIVISION = ("pass_rows", "splits", "chunk", "kept")

# The cost model: cycles of an H200 (1.755 GHz), from its data sheet and from what others measured
# on Hopper; none was measured here.
_SHARED_RATE = 128  # bytes a cycle of a multiprocessor's shared memory
# Bytes a cycle that a multiprocessor gets from the second-level cache, and from memory, when all
# ask; and the cache's size.
_CACHE_RATE, _MEMORY_RATE, _CACHE = 24, 20, 50 << 20
_CACHE_LATENCY = 700  # of a chunk of rows
_LATENCY = 32  # that a worker's step takes at least, with several under way
_CHUNK_CYCLES = 50  # a barrier of the block
_MMA = 1.6  # a multiprocessor's, for 16 x 8 results: mma.sync reaches 0.6 of the tensor rate
_BARRIER = 1800  # of the grid


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
    held
        Steps of a worker with weights in registers, likewise: with more of them kernels spill.
    """

    defines: tuple[str, ...]
    itemsize: int
    operand: int
    workers: int
    group: int
    step: int
    grain: int
    tile_rows: tuple[int, ...]
    held: tuple[int, ...] = (0,)

    def padded(self, depth: int) -> int:
        """A depth in whole copies and steps."""
        return -(-depth // self.grain) * self.grain

    def shared(self, tile_rows: int) -> tuple[float, float]:
        """Cycles in which shared memory gives a warp's step its weights, and its rows."""
        if self.workers < _THREADS:
            return 512 / _SHARED_RATE, tile_rows / 8 * 256 / _SHARED_RATE
        number = 32 * self.itemsize / _SHARED_RATE
        return self.group * number, tile_rows * number

    def issue(self, tile_rows: int) -> float:
        """Cycles in which a multiprocessor issues a warp's step: four instructions each."""
        if self.workers < _THREADS:
            return tile_rows / 8 * _MMA
        # half as many lanes for float64
        return (self.group * tile_rows * self.itemsize / 4 + tile_rows) / 4


def forms_of(math_: str, itemsize: int) -> tuple[Form, ...]:
    """The forms of products of a dtype with so many bytes under `Device.math`."""
    if itemsize == 8:
        return (Form(("TILE_FOURS=1",), 8, 8, _THREADS, 4, 1, 4, (4, 8), (0, 8)),)
    if math_ == "float32":
        return (
            Form(("TILE_FOURS=1",), 4, 4, _THREADS, 4, 1, 4, (4, 8, 10), (0, 16, 24)),
            Form(("TILE_FOURS=2",), 4, 4, _THREADS, 8, 1, 8, (8, 10), (0, 8)),
        )
    macros, warps, rows = (f"{math_.upper()}=1",), _THREADS // 32, (8, 16, 24, 32)
    if math_ == "tf32":
        return (Form(macros, 4, 4, warps, 16, 8, 8, rows, (0, 16, 24)),)
    return (Form(macros, 4, 2, warps, 16, 16, 16, rows, (0, 16, 24)),)


@dataclass(frozen=True)
class Part:
    """A product of a step: `per` columns for each of `count` units that blocks divide.

    Attributes
    ----------
    of_unit
        0, or numbers of the depth that belong to a unit: then blocks may divide the depth, too,
        and exchange partial sums (a plain cell's backward pass).
    """

    count: int
    per: int
    depth: int
    of_unit: int = 0


@dataclass(frozen=True)
class Costs:
    """About how many cycles of a step each of these takes by itself.

    Attributes
    ----------
    shared, issue
        Reading weights and rows from shared memory; multiply-adds or tensor operations.
    rows, far
        Reading rows, and weights that are kept nowhere, from the second-level cache or memory.
    rest
        Latencies, barriers of the block, sums over the workers of a tile.
    """

    shared: float
    issue: float
    rows: float
    far: float
    rest: float


@dataclass(frozen=True)
class Product:
    """A block's division of one `Part`; what it needs, in bytes, and about how many cycles.

    `held` is the depth of the weights in registers, `kept` of those in shared memory; `far` also
    has what is in registers.
    """

    depth: int
    pass_rows: int
    splits: int
    chunk: int
    held: int
    kept: int
    space: int
    weights: int
    far: int
    cycles: float
    costs: Costs

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
    parts
        Of the depth: neighbouring unit groups that divide it.
    held
        Steps of a worker with weights in registers.
    totals
        Bytes of shared memory for layer norm.
    """

    form: Form
    grid: tuple[int, int]
    units: tuple[int, ...]
    rows: int
    tile_rows: int
    parts: int
    held: int
    products: tuple[Product, ...]
    totals: int

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        space = max(product.space for product in self.products)
        return self.totals + space + sum(product.weights for product in self.products)

    @property
    def exchange(self) -> float:
        """Cycles of a step's barriers, and of exchanging partial sums."""
        if self.parts == 1:
            return _BARRIER
        sums = 2 * self.rows * self.units[0] * self.parts * self.form.itemsize
        return 2 * _BARRIER + sums / _CACHE_RATE

    @property
    def cycles(self) -> float:
        """Of a step."""
        return self.exchange + sum(product.cycles for product in self.products)

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
            across = product.depth * self.parts
            numbers = 2 * batch * across * self.form.operand // dtype.itemsize
            given[states] = device.zeros((numbers,), dtype)
            given |= {name + suffix: value for name, value in product.arguments.items()}
        if "units_2" in taken:
            for name in ("units_2", *(f"{name}_2" for name in _DIVISION)):
                given.setdefault(name, 0)
            given.setdefault("middle", None)
            given.setdefault("far_2", None)
        if "parts" in taken:
            given["parts"], sums = self.parts, (self.parts, batch, given["H"])
            given["partial"] = device.empty(sums, dtype) if self.parts > 1 else None
        if "partials" in taken:
            partials = 2 * batch * self.grid[0] * 2
            given["partials"] = device.empty((partials,), dtype) if self.totals else None
        held = (f"HELD={self.held}",) if self.held else ()
        barriers = self.grid[1] + (blocks // self.parts if self.parts > 1 else 0)
        device.launch(
            source,
            kernel,
            self.grid,
            real=dtype,
            shared=self.shared,
            cooperative=True,
            defines=(f"TILE_ROWS={self.tile_rows}", *self.form.defines, *held, *defines),
            counters=device.zeros((barriers * _COUNTER_STRIDE,), np.uint32),
            rows=self.rows,
            **given,
        )


def divide(
    device: Device,
    batch: int,
    itemsize: int,
    *parts: Part,
    plain: bool = False,
    norms: bool = False,
) -> Division:
    """The fastest division by a rough count of cycles.

    Parameters
    ----------
    plain
        For a plain cell, whose kernels have registers to spare for weights and can divide the
        depth.
    norms
        For a cell with layer norm.

    Raises
    ------
    ValueError
        The card has too little shared memory for so many units.
    """
    return _planned(
        device.share, device.shared_limit, device.math, batch, itemsize, parts, plain, norms
    )


def expected(
    processors: int,
    limit: int,
    math_: str,
    batch: int,
    itemsize: int,
    *parts: Part,
    plain: bool = False,
    norms: bool = False,
) -> tuple[float, float]:
    """Cycles of a step on so many multiprocessors, and of loading a block's weights.

    Raises
    ------
    ValueError
        As `divide`.
    """
    found = _planned(processors, limit, math_, batch, itemsize, parts, plain, norms)
    return found.cycles, sum(p.weights + p.far for p in found.products) / _CACHE_RATE


def _planned(
    processors: int,
    limit: int,
    math_: str,
    batch: int,
    itemsize: int,
    parts: tuple[Part, ...],
    plain: bool,
    norms: bool,
) -> Division:
    forms = forms_of(math_, itemsize)
    if not plain:
        forms = tuple(replace(form, held=(0,)) for form in forms)
        parts = tuple(replace(part, of_unit=0) for part in parts)
    return _divide(processors, limit, forms, batch, parts, norms)


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
                if rows <= smaller:
                    continue
                for held, divided in itertools.product(form.held, _PARTS):
                    if divided > 1 and not (
                        parts[0].of_unit and divided <= processors // row_groups
                    ):
                        continue
                    found += _grid(
                        _Choice(form, rows, tile_rows, divided, held),
                        processors,
                        limit,
                        row_groups,
                        parts,
                        norms,
                    )
    if not found:
        most = max(part.count for part in parts)
        raise ValueError(
            f"{most} units are too many for {processors} multiprocessors with {limit} bytes of "
            "shared memory each"
        )
    return min(
        found,
        key=lambda division: division.cycles * (_HELD_GAIN if not division.held else 1),
    )


@dataclass(frozen=True)
class _Choice:
    """What is tried for a whole grid."""

    form: Form
    rows: int
    tile_rows: int
    parts: int
    held: int


def _grid(
    choice: _Choice,
    processors: int,
    limit: int,
    row_groups: int,
    parts: tuple[Part, ...],
    norms: bool,
) -> list[Division]:
    """The division into so many row groups, if there is one."""
    form, rows, divided = choice.form, choice.rows, choice.parts
    wanted = min(processors // row_groups // divided, max(part.count for part in parts))
    units = tuple(-(-part.count // (wanted * divided)) for part in parts)
    unit_groups = max(-(-part.count // (n * divided)) for part, n in zip(parts, units, strict=True))
    totals = (rows + 1) // 2 * 4 * form.itemsize if norms else 0
    blocks = unit_groups * divided * row_groups
    # Weights have what the space for rows and sums leaves, the first product's before the
    # second's. All have the same space: the first is planned anew where another needs more.
    space = 0
    for _ in parts:
        products: tuple[Product, ...] = ()
        for part, own in zip(parts, units, strict=True):
            left = limit - totals - sum(product.weights for product in products)
            depth = part.depth if divided == 1 else -(-part.count // divided) * part.of_unit
            product = _product(choice, depth, own * divided * part.per, blocks, left, space)
            if product is None:
                return []
            products = (*products, product)
        space = max(product.space for product in products)
        if all(product.space == space for product in products):
            grid = (unit_groups * divided, row_groups)
            return [
                Division(
                    form, grid, units, rows, choice.tile_rows, divided, choice.held, products,
                    totals,
                )
            ]  # fmt: skip
    return []


def _product(
    choice: _Choice, depth: int, columns: int, blocks: int, limit: int, space: int
) -> Product | None:
    """The fastest division of a block's product into workers, if it has room for any."""
    form = choice.form
    found = []
    groups = -(-columns // form.group)
    most = min(-(-choice.rows // choice.tile_rows), form.workers)
    for row_tiles in {most, -(-most // 2), 1}:
        best = max(form.workers // (groups * row_tiles), 1)
        for splits in {best, min(2 * best, form.workers // row_tiles), -(-best // 2), 1}:
            splits = min(splits, form.padded(depth) // form.step)
            if choice.held and splits * _SEGMENT * form.step % form.grain:
                splits += -1 if splits > 1 else 1
            given = (choice, depth, groups, blocks, row_tiles, splits)
            if choice.held:
                found += _workers(*given, _SEGMENT * splits * form.step, limit, space)
                continue
            chunk = form.padded(depth)
            for chunks in _CHUNKS:
                chunk = min(chunk, max(form.padded(-(-depth // chunks)), _LEAST_CHUNK))
                found += _workers(*given, chunk, limit, space)
            while chunk > form.grain and not found:
                chunk = form.padded(chunk // 2)
                found += _workers(*given, chunk, limit, space)
    return min(found, key=lambda product: product.cycles, default=None)


def _workers(
    choice: _Choice,
    unpadded: int,
    groups: int,
    blocks: int,
    row_tiles: int,
    splits: int,
    chunk: int,
    limit: int,
    space: int,
) -> list[Product]:
    """The division into so many tiles of rows, splits and chunks, if there is room for it."""
    form, rows, tile_rows = choice.form, choice.rows, choice.tile_rows
    depth = form.padded(unpadded)
    pass_rows = row_tiles * tile_rows
    at_once = min(form.workers // splits // row_tiles, groups)
    held = 0
    if choice.held:
        held = min(choice.held // _SEGMENT, depth // chunk) * chunk
        if not held or at_once < groups or chunk % form.grain:
            return []
    sums = groups * form.group * pass_rows * (splits | 1) * form.itemsize
    staged = _STAGES * pass_rows * (chunk * form.operand + _COPY)
    needs = max(space, max(staged, sums) if at_once == groups else staged + sums)
    needs += -needs % _COPY
    if needs > limit:
        return []
    row = groups * form.group * form.operand  # bytes of the weights of one number of the depth
    fits = (limit - needs) // row
    kept = depth - held if fits >= depth - held else fits // chunk * chunk

    passes, column_passes = -(-rows // pass_rows), -(-groups // at_once)
    warps = -(-at_once * row_tiles * splits * (_THREADS // form.workers) // 32)
    steps = -(-depth // form.step // splits)
    of_weights, of_rows = form.shared(tile_rows)
    shared = warps * (steps * of_rows + (steps - held // form.step // splits) * of_weights)
    issue = warps * steps * form.issue(tile_rows)
    chunks = -(-depth // chunk)
    rest_row = depth - held - kept
    reads = min(rows, pass_rows) * depth * form.operand / _CACHE_RATE
    far = row * rest_row / column_passes
    far /= _CACHE_RATE if row * rest_row * blocks <= _CACHE else _MEMORY_RATE
    computed = max(shared, issue, steps * _LATENCY) + far + chunks * _CHUNK_CYCLES
    # Rows come while the chunks before are computed: the first has to be waited for, and later
    # ones where the copies under way do not hide their latency.
    longer = max(computed, reads) / chunks
    waits = max(0, chunks - _STAGES + 1) * max(0, _CACHE_LATENCY / (_STAGES - 1) - longer)
    piped = _CACHE_LATENCY + (computed + reads) / chunks + (chunks - 1) * longer + waits
    added = groups * form.group * pass_rows * splits * 2 * form.itemsize / _SHARED_RATE
    times = passes * column_passes
    cycles = times * piped + passes * added
    costs = Costs(
        times * shared,
        times * issue,
        times * reads,
        times * far,
        times * (_CACHE_LATENCY + chunks * _CHUNK_CYCLES) + passes * added,
    )
    return [
        Product(
            depth, pass_rows, splits, chunk, held, kept, needs, row * kept, row * (depth - kept),
            cycles, costs,
        )
    ]  # fmt: skip


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
