"""How the persistent recurrent kernels compute products (csrc/recurrent/product.cuh)."""

from __future__ import annotations

from dataclasses import dataclass

THREADS = 256
"""Threads of a block."""

# Cycles of an H200, see division.py.
SHARED_RATE = 128
"""Bytes a cycle of a multiprocessor's shared memory."""
_MMA = 1.6  # a multiprocessor's, for 16 x 8 results: mma.sync reaches 0.6 of the tensor rate


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
        if self.workers < THREADS:
            return 512 / SHARED_RATE, tile_rows / 8 * 256 / SHARED_RATE
        number = 32 * self.itemsize / SHARED_RATE
        return self.group * number, tile_rows * number

    def issue(self, tile_rows: int) -> float:
        """Cycles in which a multiprocessor issues a warp's step: four instructions each."""
        if self.workers < THREADS:
            return tile_rows / 8 * _MMA
        # half as many lanes for float64
        return (self.group * tile_rows * self.itemsize / 4 + tile_rows) / 4


def forms_of(math_: str, itemsize: int) -> tuple[Form, ...]:
    """The forms of products of a dtype with so many bytes under `Device.math`."""
    if itemsize == 8:
        return (Form(("TILE_FOURS=1",), 8, 8, THREADS, 4, 1, 4, (4, 8), (0, 8)),)
    if math_ == "float32":
        return (
            Form(("TILE_FOURS=1",), 4, 4, THREADS, 4, 1, 4, (4, 8), (0, 16, 24)),
            Form(("TILE_FOURS=1",), 4, 4, THREADS, 4, 1, 4, (10,), (0, 16)),
            Form(("TILE_FOURS=2",), 4, 4, THREADS, 8, 1, 8, (8, 10), (0, 8)),
        )
    macros, warps, rows = (f"{math_.upper()}=1",), THREADS // 32, (8, 16, 24, 32)
    if math_ == "tf32":
        return (Form(macros, 4, 4, warps, 16, 8, 8, rows, (0, 16, 24)),)
    return (Form(macros, 4, 2, warps, 16, 16, 16, rows, (0, 16, 24)),)
