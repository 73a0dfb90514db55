"""Which recurrent layers run side by side on a GPU, decided by counting cycles.

Sequences of a small batch and few units wait for a step's barrier, not for multiprocessors. Two
directions of one layer then take no longer side by side, each on half the card; and of layers one
upon another each can be a chunk of time behind the one below. What that costs is fewer
multiprocessors for each, and what every call costs anew: launches, loading weights, a pass over
their gradients. Shapes and the card decide, nothing that is measured: same model, same bits.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from . import division
from .device import Device
from .division import _BARRIER, Part

_CALL = 54_000  # of the launches of a call, forward and backward: 30 us
_HOST = 540_000  # of a call, forward and backward, until it is queued: 300 us of Python
_LEAST_STEPS = 8
# Of a multiprocessor: floating-point operations a cycle in large products, bytes a cycle of memory.
_RATES = {"float32": 180, "tf32": 800, "bf16": 1500, "fp16": 1500, "float64": 90}
_MEMORY_RATE = 15
# What is not counted may eat a gain up to this one.
_WORTH = 0.9


@dataclass(frozen=True)
class Cell:
    """What a recurrent layer's passes cost by.

    Attributes
    ----------
    inputs, hidden, output, gates
        I, H, width of y, gates of w_ih.
    itemsize
        Bytes of a number.
    plain, projected, reset_before, norms
        No variant; a product with w_hr; a GRU's two products; layer norm.
    copies
        Passes over w_hh that a call makes besides (weight drop).
    """

    inputs: int
    hidden: int
    output: int
    gates: int
    itemsize: int
    plain: bool
    projected: bool
    reset_before: bool
    norms: bool
    copies: int

    @property
    def parts(self) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """Products of a step forward, and backward."""
        H, P, G = self.hidden, self.output, self.gates
        if self.reset_before:
            return (Part(H, 2, H), Part(H, 1, H)), (Part(H, 1, 2 * H), Part(H, 1, H))
        if self.projected:
            return (Part(H, G, P), Part(P, 1, H)), (Part(P, 1, G * H), Part(H, 1, P))
        return (Part(H, G, P),), (Part(P, 1, G * H, of_unit=G),)


def chunks_of(device: Device, cells: tuple[Cell, ...], steps: int, batch: int) -> tuple[int, int]:
    """Lanes and chunks of time for layers one upon another; (1, 1): one layer after another."""
    return _chunks_of(
        _divisible(device), device.shared_limit, device.math, cells, steps, batch
    )  # fmt: skip


def worth_two_lanes(device: Device, cells: tuple[Cell, ...], steps: int, batch: int) -> bool:
    """Whether two layers that need nothing of each other run side by side.

    Options may make one slower than the other: together they last as long as the slower one.
    """
    whole, limit = _divisible(device), device.shared_limit
    if whole < 2 or not steps * batch:
        return False
    alone, together = (
        [_cycles(share, limit, device.math, cell, steps, batch) for cell in cells]
        for share in (whole, whole // 2)
    )
    return max(together) < _WORTH * sum(alone)


def _divisible(device: Device) -> int:
    """Multiprocessors that lanes may divide; 1 with PYNLM_CUDA_LANES=1."""
    switch = os.environ.get("PYNLM_CUDA_LANES", "")
    if switch not in ("", "1"):
        raise ValueError(f"PYNLM_CUDA_LANES must be 1 (no lanes) or not set, got {switch!r}")
    return 1 if switch else device.processors


@functools.lru_cache(1024)
def _chunks_of(
    processors: int, limit: int, math_: str, cells: tuple[Cell, ...], steps: int, batch: int
) -> tuple[int, int]:
    depth, best = len(cells), (1, 1)
    if depth < 2 or processors < 2 or steps < 2 * _LEAST_STEPS or not batch:
        return best
    whole = sum(_cycles(processors, limit, math_, c, steps, batch) for c in cells)
    # Graphs are queued at once, but not all calls are captured, and all must choose alike.
    least = _WORTH * max(whole, depth * _HOST)
    for lanes in range(2, min(depth, processors) + 1):
        chunks = 2
        while steps >= chunks * _LEAST_STEPS:
            share, length = processors // lanes, -(-steps // chunks)
            chunk = max(_cycles(share, limit, math_, c, length, batch) for c in cells)
            # The first lane is never idle; the last begins when the others are at work.
            cycles = chunk * (chunks * -(-depth // lanes) + lanes - 1)
            cycles = max(cycles, depth * chunks * _HOST)
            if cycles < least:
                least, best = cycles, (lanes, chunks)
            chunks += max(1, chunks // 4)
    return best


@functools.lru_cache(1024)
def _cycles(processors: int, limit: int, math_: str, cell: Cell, steps: int, batch: int) -> float:
    """Of a call forward and backward; infinite if its weights need more multiprocessors."""
    width, size = cell.gates * cell.hidden, cell.itemsize
    rate = processors * _RATES["float64" if size == 8 else math_]
    # x W, and three products of gradients.
    flops = 2.0 * width * steps * batch * (3 * cell.inputs + cell.output)
    # Gradients are written, read, and added to others.
    weights = width * size * (4 * cell.inputs + (4 + cell.copies) * cell.output)
    total = _CALL + flops / rate + weights / (processors * _MEMORY_RATE)
    for parts in cell.parts:
        try:
            step, load = division.expected(
                processors, limit, math_, batch, size, *parts, plain=cell.plain, norms=cell.norms
            )
        except ValueError:
            return float("inf")
        total += load + steps * (step + _BARRIER * (len(parts) - 1 + cell.norms))
    return total
