"""The plot of `bench.parity`: losses of both sides a recipe, and how far they are apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynlm.testing.tolerances import trajectory_bounds

if TYPE_CHECKING:
    from bench.parity import Parity

_OURS, _THEIRS, _BOUND, _GREY = "#0072B2", "#E69F00", "#c0392b", "#666666"
_DARK, _FAINT = "#333333", "#aaaaaa"
_LEAST = 1e-8
_COLUMNS = 3


def draw(records: list[Parity], png: Path) -> bool:
    """Write the plot; False, and nothing written, without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    columns = min(_COLUMNS, len(records))
    rows = math.ceil(len(records) / columns)
    figure = Figure(figsize=(3.7 * columns, 3.1 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        2 * rows, columns, squeeze=False, sharex="col", height_ratios=[2.4, 1.0] * rows
    )
    for i in range(rows * columns):
        above, below = grid[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        if i < len(records):
            _panel(records[i], above, below)
            # Panels of a column share their scale, but each is read alone.
            below.tick_params(labelbottom=True)
        else:
            above.axis("off")
            below.axis("off")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(
        "Training loss (nats a token) and relative difference", x=0.01, ha="left", fontsize=11
    )
    figure.savefig(png, dpi=85)
    return True


def _panel(r: Parity, above: Any, below: Any) -> None:
    from bench.parity import DOUBLE, OURS, TORCH

    steps = range(1, r.steps + 1)
    # The wide line shows at both sides of the narrow one, so that one sees both.
    above.plot(steps, r.losses[DOUBLE], color=_THEIRS, lw=3.0, label="torch, norm in double")
    above.plot(steps, r.losses[OURS], color=_OURS, lw=0.9, label="pynlm")
    above.set_title(r.recipe, fontsize=10, loc="left", fontweight="bold")
    # A log scale has no place for 0.
    for peer, colour in ((TORCH, _FAINT), (DOUBLE, _DARK)):
        shares = [max(share, _LEAST) for share in r.differences(peer)]
        below.plot(steps, shares, color=colour, lw=0.8)
        above.plot([], [], color=colour, lw=0.8, label=f"pynlm − {_NAMES.get(peer, peer)}")
    above.plot([], [], color=_BOUND, lw=1.2, label="bound")
    first = 1
    for last, bound in trajectory_bounds(r.dtype).items():
        below.plot([first, min(last, r.steps)], [bound, bound], color=_BOUND, lw=1.2)
        first = last + 1
        if first > r.steps:
            break
    below.set_yscale("log")
    below.set_ylim(5e-9, 1e-1)
    below.set_yticks([1e-8, 1e-6, 1e-4, 1e-2])
    below.minorticks_off()
    for ax in (above, below):
        ax.tick_params(labelsize=8, colors=_GREY)
        ax.grid(axis="y", color="#dddddd", lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
