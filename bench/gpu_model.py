"""What should bound a step of the persistent LSTM kernels on an H200, by the planner's cost model.

``python -m bench.gpu_model`` prints, for shapes of the GPU row and each kind of product, about how
long a step of each pass takes, with weights in registers and divided depths and without, and what
takes longest by itself. A model (the constants at the head of `pynlm.cuda.division`), no
measurement: it chooses among divisions of the work, and a card has the last word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pynlm.cuda.division import Division, Part, divide

CLOCK = 1.755e3  # cycles a microsecond
MATHS = ("float32", "tf32", "bf16")
BATCHES = (16, 20, 64, 128)
UNITS = (200, 650, 1024, 1500)


@dataclass
class H200:
    """What a division depends on."""

    math: str
    share: int = 132
    shared_limit: int = 227 << 10


@dataclass(frozen=True)
class Row:
    """One pass of one shape.

    Attributes
    ----------
    before, after
        The division without and with weights in registers and a divided depth.
    """

    math: str
    batch: int
    units: int
    side: str
    before: Division
    after: Division

    @property
    def gain(self) -> float:
        """How many times faster a step is, by the model."""
        return self.before.cycles / self.after.cycles


def bound(division: Division) -> str:
    """What takes the largest part of a step by itself."""
    names = {
        "shared": "shared memory",
        "issue": "arithmetic",
        "rows": "rows from L2",
        "far": "weights from L2 or memory",
        "rest": "latency and sums",
    }
    (product,) = division.products
    costs = {said: getattr(product.costs, name) for name, said in names.items()}
    costs["barriers"] = division.exchange
    return max(costs, key=lambda name: costs[name])


def rows(
    maths: tuple[str, ...] = MATHS,
    batches: tuple[int, ...] = BATCHES,
    units: tuple[int, ...] = UNITS,
) -> Iterator[Row]:
    """An LSTM's two passes at each shape."""
    for math in maths:
        card = H200(math)
        for H in units:
            for B in batches:
                sides = {"forward": Part(H, 4, H), "backward": Part(H, 1, 4 * H, of_unit=4)}
                for side, part in sides.items():
                    before, after = (
                        divide(card, B, 4, part, plain=plain)  # type: ignore[arg-type]
                        for plain in (False, True)
                    )
                    yield Row(math, B, H, side, before, after)


def table(found: list[Row]) -> str:
    """As Markdown."""
    lines = [
        "| product | H | B | pass | before, us | after, us | blocks | depth in | in registers "
        "| in shared memory | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        (product,) = row.after.products
        held, kept = (f"{depth / product.depth:.0%}" for depth in (product.held, product.kept))
        across, down = row.after.grid
        lines.append(
            f"| {row.math} | {row.units} | {row.batch} | {row.side} "
            f"| {row.before.cycles / CLOCK:.1f} | {row.after.cycles / CLOCK:.1f} "
            f"| {across} x {down} | {row.after.parts} | {held} | {kept} | {bound(row.after)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(list(rows())))
