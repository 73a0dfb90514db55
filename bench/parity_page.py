"""What `bench.parity` finds: the record of a recipe, its criterion, the page and the plot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pynlm.testing.tolerances import trajectory_bounds

STEPS = 300
RUNNING = 50
"""The mean of the last so many losses is compared, too."""

OURS, TORCH, DOUBLE = "pynlm", "torch", "torch, norm in double"


class Window(NamedTuple):
    """Steps `first` to `last`: the largest relative difference of a loss, where, and its bound."""

    first: int
    last: int
    worst: float
    at: int
    bound: float

    @property
    def holds(self) -> bool:
        return self.worst <= self.bound

    def __str__(self) -> str:
        sign = "≤" if self.holds else "not ≤"
        return f"{self.first}–{self.last}: {self.worst:.1e} at {self.at} ({sign} {self.bound:g})"


@dataclass(frozen=True)
class Parity:
    """Losses of one recipe on all sides, in nats a token, step by step.

    Attributes
    ----------
    recipe, detail, dtype
        What was trained.
    losses
        By contender (OURS, TORCH, DOUBLE), each taken before the step's update.
    norm_error
        Largest relative error of the norm that `clip_grad_norm_` computed in a step.
    facts
        Software and machine.
    """

    recipe: str
    detail: str
    dtype: str
    losses: dict[str, list[float]]
    norm_error: float
    facts: str

    @property
    def steps(self) -> int:
        return len(self.losses[OURS])

    def differences(self, peer: str) -> list[float]:
        """|ours - theirs| / theirs of each step, infinite where a loss is no number."""
        pairs = zip(self.losses[OURS], self.losses[peer], strict=True)
        return [math.inf if math.isnan(a - b) else abs(a - b) / b for a, b in pairs]

    def largest(self, peer: str, steps: int) -> float:
        """Largest difference in nats of the first `steps` steps."""
        pairs = zip(self.losses[OURS][:steps], self.losses[peer], strict=False)
        return max(abs(a - b) for a, b in pairs)

    def running(self, contender: str) -> float:
        """Mean of the last losses."""
        last = self.losses[contender][-RUNNING:]
        return sum(last) / len(last)

    def windows(self, peer: str) -> list[Window]:
        """The differences beside their bounds; the last bound holds for all later steps, too."""
        found, first, differences = [], 1, self.differences(peer)
        bounds = trajectory_bounds(self.dtype)
        for last, bound in bounds.items():
            if last == max(bounds):
                last = max(self.steps, last)
            part = differences[first - 1 : last]
            if part:
                at = max(range(len(part)), key=part.__getitem__)
                found.append(Window(first, first + len(part) - 1, part[at], first + at, bound))
            first = last + 1
        return found

    def shares(self, peer: str) -> str:
        """The windows in words."""
        return "; ".join(map(str, self.windows(peer)))

    def follows(self, peer: str = DOUBLE) -> bool:
        """Whether all differences are within their bounds."""
        return all(w.holds for w in self.windows(peer))


def save(records: Iterable[Parity], path: Path) -> None:
    """Write as JSON, a recipe a line."""
    lines = [json.dumps({**asdict(r), **_figures(r)}, ensure_ascii=False) for r in records]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def load(path: Path) -> dict[str, Parity]:
    """What `save` wrote, by recipe; nothing where there is no file."""
    if not path.is_file():
        return {}
    fields = Parity.__dataclass_fields__
    values = json.loads(path.read_text(encoding="utf-8"))
    return {v["recipe"]: Parity(**{name: v[name] for name in fields}) for v in values}


def _figures(r: Parity) -> dict[str, Any]:
    return {
        "steps": r.steps,
        "passed": r.follows(),
        "running_mean_nats": {name: r.running(name) for name in r.losses},
        "against": {
            peer: {
                "largest_difference_nats": {str(n): r.largest(peer, n) for n in (10, 100, STEPS)},
                "largest_relative_difference": [w._asdict() for w in r.windows(peer)],
                "running_mean_difference_nats": r.running(OURS) - r.running(peer),
                "follows": r.follows(peer),
            }
            for peer in (DOUBLE, TORCH)
        },
    }


_INTRODUCTION = f"""\
Each recipe with its own data, batches, scale of the loss, clipping, optimiser and first-epoch
rate, dropout 0, from the same initial weights, trained in turns by pynlm's own training step and by
`torch.nn` and `torch.optim`. Of torch's two biases one is trained (and the GRU's `b_hn`), since two
would learn at twice the rate. Losses are in nats a token, before each step's update; the running
mean is over the last {RUNNING} steps. `python bench/parity.py` makes this page."""

_CRITERION = """\
A recipe passes if no step's loss differs from torch's by more than a share of it (bounds and
reasons in `pynlm/testing/tolerances.py`): ten updates in another order of summation differ by
rounding, and what training makes of that later grows by itself."""

_CLIPPED = """\
On a CPU `clip_grad_norm_` adds up the squares of a float32 tensor in float32. Over the millions
of elements of an embedding or head it loses up to a thousandth of the norm (column "norm error",
against the same gradient's norm in double), so torch's clipped steps are that much too long;
where a recipe begins wildly, losses show it. pynlm's norm is added up in double. So the criterion
above is taken against torch with its norm in double, and here stand the same figures against
`clip_grad_norm_` as it is, for information."""


def render(records: list[Parity], plot: str | None) -> str:
    """The page."""
    parts = ["# Training follows torch", _INTRODUCTION]
    if plot is not None:
        parts.append(f"![Training loss of both sides, and their difference]({plot})")
    runs = "\n".join(f"- {r.recipe}: {r.detail}, {r.dtype}" for r in records)
    for facts in dict.fromkeys(r.facts for r in records):
        runs += f"\n- {', '.join(r.recipe for r in records if r.facts == facts)}: {facts}"
    parts += [_CRITERION, _table(records, DOUBLE)]
    parts += ["## Against `clip_grad_norm_`", _CLIPPED, _table(records, TORCH)]
    return "\n\n".join([*parts, "## Runs", runs]) + "\n"


def _table(records: list[Parity], peer: str) -> str:
    head = ["recipe", "steps", "loss, first → running mean", "largest difference in nats, 1–10"]
    head += ["1–100", f"1–{STEPS}", "running mean, pynlm − torch", "largest share of the loss"]
    head.append("norm error" if peer == TORCH else "")
    lines = [head, ["---"] * len(head)]
    for r in records:
        theirs = r.running(peer)
        found = [r.recipe, str(r.steps), f"{r.losses[peer][0]:.3f} → {theirs:.3f}"]
        for steps, before in ((10, 0), (100, 10), (STEPS, 100)):
            found.append(f"{r.largest(peer, steps):.1e}" if r.steps > before else "")
        found.append(f"{r.running(OURS) - theirs:+.1e}")
        found.append(r.shares(peer))
        verdict = "pass" if r.follows() else "**fail**"
        found.append(f"{r.norm_error:.1e}" if peer == TORCH else verdict)
        lines.append(found)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Okabe and Ito's colours, told apart by all.
_OURS, _THEIRS, _BOUND = "#0072B2", "#E69F00", "#D55E00"
_DARK, _FAINT, _GREY = "#333333", "#b0b0b0", "#666666"
_COLUMNS = 3


def draw(records: list[Parity], png: Path) -> bool:
    """Write the plot; False, and nothing written, without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image  # matplotlib brings it
    except ImportError:
        return False
    columns = min(_COLUMNS, len(records))
    rows = math.ceil(len(records) / columns)
    figure = Figure(figsize=(3.7 * columns, 3.1 * rows + 0.3), layout="constrained")
    canvas = FigureCanvasAgg(figure)
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
    figure.legend(
        handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5
    )
    figure.suptitle("Nats a token by step, and their difference", x=0.01, ha="left", fontsize=11)
    figure.set_dpi(85)
    canvas.draw()
    # A palette makes the file four times smaller.
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())
    pixels.quantize(48).save(png, optimize=True)
    return True


def _panel(r: Parity, above: Any, below: Any) -> None:
    steps = range(1, r.steps + 1)
    # The wide line shows at both sides of the narrow one, so that one sees both.
    above.plot(steps, r.losses[DOUBLE], color=_THEIRS, lw=3.2, label="torch's loss")
    above.plot(steps, r.losses[OURS], color=_OURS, lw=0.9, label="pynlm's loss")
    above.set_title(r.recipe, fontsize=10, loc="left", fontweight="bold")
    # A log scale has no place for 0.
    least = 1e-8 if r.dtype == "float32" else 1e-16
    for peer, colour, what in ((TORCH, _FAINT, ", clip_grad_norm_"), (DOUBLE, _DARK, "")):
        shares = [max(share, least) for share in r.differences(peer)]
        below.plot(steps, shares, color=colour, lw=0.8)
        above.plot([], [], color=colour, label=f"relative difference{what}")
    for w in r.windows(DOUBLE):
        below.plot([w.first - 0.5, w.last + 0.5], [w.bound, w.bound], color=_BOUND, lw=1.2)
    above.plot([], [], color=_BOUND, label="bound")
    below.set_yscale("log")
    below.set_ylim(least / 2, 1e-1)
    below.set_yticks([1e-8, 1e-6, 1e-4, 1e-2] if least > 1e-9 else [1e-16, 1e-11, 1e-6])
    below.minorticks_off()
    for ax in (above, below):
        ax.tick_params(labelsize=8, colors=_GREY)
        ax.grid(axis="y", color="#dddddd", lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
