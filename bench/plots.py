"""The plots of a record: ratios to the fastest peer, and shares of the peak."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ours
from bench.page import threads
from bench.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by all.
_COLOURS = ("#E69F00", "#0072B2")
_LETTERS = ("#8A5F00", "#0072B2")
_PEER = "#767676"
_COLUMNS = 3
_DPI = 90
_PALETTE = 64


def draw(record: Record, folder: Path) -> dict[str, str]:
    """Write the plots beside the page; caption -> file name."""
    import matplotlib

    matplotlib.use("Agg")
    found = {}
    if any(r.ratio is not None for r in record.results):
        found["Ratio to the fastest peer"] = f"{record.name}-ratio.png"
        _save(record, folder / f"{record.name}-ratio.png", _ratios, "ratio")
    found["Share of the FMA peak"] = f"{record.name}-peak.png"
    _save(record, folder / f"{record.name}-peak.png", _shares, "share")
    return found


def _save(record: Record, path: Path, panel: Any, what: str) -> None:
    import matplotlib.pyplot as plt
    from PIL import Image

    groups = record.groups
    columns = min(_COLUMNS, len(groups))
    rows = math.ceil(len(groups) / columns)
    tallest = [
        max(len(_cases(record, g)) for g in groups[i * columns : (i + 1) * columns])
        for i in range(rows)
    ]
    # A row's height follows its longest panel, so that bars are alike everywhere.
    heights = [0.34 * n + 0.9 for n in tallest]
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(4.3 * columns, sum(heights) + 0.6),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
        layout="constrained",
    )
    axes = list(grid.flat)
    for group, ax in zip(groups, axes, strict=False):
        panel(record, group, ax)
        ax.set_title(group, fontsize=10, loc="left", fontweight="bold")
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(groups) :]:
        ax.axis("off")
    if what == "ratio":
        _same_limits(axes[: len(groups)])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper right", ncols=len(labels), fontsize=9, frameon=False
    )
    title = {
        "ratio": "Fastest peer's time / pynlm's, with quartiles: above 1× pynlm is faster",
        "share": "Share of the machine's multiply-add peak",
    }[what]
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI)
    plt.close(figure)
    # A palette is enough for a few colours, and a third of the size.
    Image.open(drawn).convert("RGB").quantize(_PALETTE).save(path, optimize=True)


def _cases(record: Record, group: str) -> list[str]:
    return list(dict.fromkeys(r.case for r in record.results if r.group == group))


def _ratios(record: Record, group: str, ax: Axes) -> None:
    cases, counts = _cases(record, group), record.threads
    height = 0.8 / len(counts)
    for k, n in enumerate(counts):
        rows = [(cases.index(r.case), r) for r in record.of(group, n) if r.ratio is not None]
        # Bars start at 1: their direction tells who is faster.
        places = [i + (k - (len(counts) - 1) / 2) * height for i, _ in rows]
        ratios = [r.ratio or 1.0 for _, r in rows]
        quartiles = [r.ratios or (1.0, 1.0, 1.0) for _, r in rows]
        low = [middle - lower for lower, middle, _ in quartiles]
        high = [upper - middle for _, middle, upper in quartiles]
        ax.barh(
            places,
            [ratio - 1 for ratio in ratios],
            height,
            left=1,
            color=_colour(record, n),
            label=threads(n),
            xerr=[low, high],
            error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
        )
        for place, ratio in zip(places, ratios, strict=True):
            # In a column at the edge: behind a long whisker a number would be read off its end.
            ax.annotate(
                f"{ratio:.2f}",
                (1, place),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                fontsize=7,
                color=_colour(record, n, dark=True),
            )
    ax.axvline(1, color="black", linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set_yticks(range(len(cases)), cases)
    ax.invert_yaxis()


def _same_limits(axes: list[Any]) -> None:
    limits = [ax.get_xlim() for ax in axes]
    low, high = min(a for a, _ in limits), max(b for _, b in limits)
    ticks = [2.0**e for e in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    for ax in axes:
        ax.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        ax.minorticks_off()
        # Room for the column of numbers.
        ax.set_xlim(min(low, 2**-0.5), max(high, 2.0) ** 1.2)


def _shares(record: Record, group: str, ax: Axes) -> None:
    cases, counts = _cases(record, group), record.threads
    step = 0.7 / len(counts)
    for k, n in enumerate(counts):
        for r in record.of(group, n):
            place = cases.index(r.case) + (k - (len(counts) - 1) / 2) * step
            own = record.share(r) * 100
            if r.peer is not None:
                theirs = record.share(r, r.peer) * 100
                ax.plot([theirs, own], [place, place], color=_colour(record, n), linewidth=1.2)
                ax.plot(theirs, place, "o", ms=5, mfc="white", mec=_PEER, zorder=3)
            ax.plot(own, place, "o", ms=5.5, color=_colour(record, n), zorder=4)
        ax.plot([], [], "o", color=_colour(record, n), label=f"{ours.NAME}, {threads(n)}")
    if any(r.peer for r in record.results):
        ax.plot([], [], "o", mfc="white", mec=_PEER, label="fastest peer")
    ax.set_xlim(0, 100)
    ax.set_xticks(range(0, 101, 20), [f"{x} %" for x in range(0, 101, 20)])
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_yticks(range(len(cases)), cases)
    ax.set_ylim(len(cases) - 0.4, -0.6)


def _colour(record: Record, n: int, *, dark: bool = False) -> str:
    """Of a number of threads; `dark` for letters."""
    return (_LETTERS if dark else _COLOURS)[n == max(record.threads)]
