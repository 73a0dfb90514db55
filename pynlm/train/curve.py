"""`curve.png`: training and validation perplexity over the tokens read."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from pynlm.train.log import perplexity, read_log

_TRAIN, _VALID, _TARGET, _GREY = "#7aa6c2", "#1f4e79", "#c0392b", "#666666"


def draw_curve(
    log: Path,
    png: Path,
    *,
    title: str,
    target: float | None = None,
    target_label: str = "",
    training: bool = True,
) -> str | None:
    """Draw the learning curve of a `log.jsonl`.

    Parameters
    ----------
    log, png : the file read and the picture written (aside, then renamed).
    target : perplexity drawn as a line, for example the published figure.
    training : whether the losses of steps are likelihoods; else they are left out.

    Returns
    -------
    None when it was drawn, else why not: without matplotlib or room on the disk a run goes on.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
    except ImportError:
        return "matplotlib is missing (pip install pynlm[plot])"
    events = read_log(log)
    steps = [e for e in events if training and e["event"] == "step" and e["loss"] is not None]
    epochs = [e for e in events if e["event"] == "epoch" and e["valid_nats"] is not None]
    if not steps and not epochs:
        return "nothing has been logged yet"
    most = max(e["tokens"] for e in steps + epochs)
    unit, name = (1e6, "millions") if most >= 2e6 else (1e3, "thousands")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if steps:
        tokens = [e["tokens"] / unit for e in steps]
        axes.plot(tokens, [perplexity(e["loss"]) for e in steps], color=_TRAIN, lw=0.8, alpha=0.5)
        axes.plot(tokens, _smooth(steps), color=_TRAIN, lw=1.8, label="training")
    if epochs:
        tokens = [e["tokens"] / unit for e in epochs]
        valid = [perplexity(e["valid_nats"]) for e in epochs]
        axes.plot(tokens, valid, color=_VALID, lw=1.8, marker="o", ms=4.5, label="validation")
        best = min(range(len(valid)), key=valid.__getitem__)
        axes.annotate(
            f"{valid[best]:.4g}",
            (tokens[best], valid[best]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=_VALID,
        )
    if target is not None:
        axes.axhline(target, color=_TARGET, lw=1.2, ls=(0, (5, 3)))
        axes.annotate(
            f"{target_label} {target:.4g}".strip(),
            # At the left: curves end at the right, and begin above.
            (0.0, target),
            xycoords=("axes fraction", "data"),
            xytext=(5, -11),
            textcoords="offset points",
            ha="left",
            fontsize=8.5,
            color=_TARGET,
        )
    axes.set_yscale("log")
    low, high = _limits(steps, epochs, target)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(10.0, subs=_ticks(low, high)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left=0.0)
    axes.set_xlabel(f"tokens read ({name})", color=_GREY)
    axes.set_ylabel("perplexity", color=_GREY)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_GREY)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper right")
    aside = png.with_name(f".{png.name}.new")
    try:
        with open(aside, "wb") as file:
            canvas.print_png(file)
        os.replace(aside, png)
    except OSError as error:
        aside.unlink(missing_ok=True)
        return f"cannot write {png}: {error.strerror or error}"
    return None


def _smooth(steps: list[dict[str, Any]]) -> list[float]:
    """Perplexity of an exponential mean of the loss over about a fiftieth of the points."""
    keep = 1.0 - 1.0 / max(1.0, len(steps) / 50.0)
    mean, weight, values = 0.0, 0.0, []
    for event in steps:
        mean = keep * mean + (1.0 - keep) * event["loss"]
        weight = keep * weight + (1.0 - keep)
        values.append(perplexity(mean / weight))
    return values


def _limits(
    steps: list[dict[str, Any]], epochs: list[dict[str, Any]], target: float | None
) -> tuple[float, float]:
    """Room for all that is drawn, without the first steps' height squeezing the rest."""
    settled = steps[len(steps) // 20 :] if len(steps) > 40 else steps
    values = [e["loss"] for e in settled] + [e["valid_nats"] for e in epochs]
    if target is not None:
        values.append(math.log(target))
    return perplexity(min(values) - 0.12), perplexity(max(values) + 0.12)


def _ticks(low: float, high: float) -> tuple[float, ...]:
    if high / low > 50.0:
        return (1.0, 2.0, 5.0)
    if high / low > 4.0:
        return (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    return tuple(1.0 + 0.5 * k for k in range(18))
