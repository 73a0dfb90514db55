"""How the persistent recurrent kernels divide their work (csrc/recurrent/sequence.cuh)."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .device import Device
from .forms import SHARED_RATE, THREADS, Form, forms_of
from .source import read

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
# Bytes a cycle that a multiprocessor gets from the second-level cache, and from memory, when all
# ask; and the cache's size.
_CACHE_RATE, _MEMORY_RATE, _CACHE = 24, 20, 50 << 20
_CACHE_LATENCY = 700  # of a chunk of rows
_LATENCY = 32  # that a worker's step takes at least, with several under way
_CHUNK_CYCLES = 50  # a barrier of the block
_BARRIER = 1800  # of the grid


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
        if not held or at_once < groups:
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
    warps = -(-at_once * row_tiles * splits * (THREADS // form.workers) // 32)
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
    added = groups * form.group * pass_rows * splits * 2 * form.itemsize / SHARED_RATE
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
