"""What `bench.parity` finds: the record of a recipe, its criterion, the page and the plot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pynlm.testing.tolerances import trajectory_tolerance
from pynlm.train.config import recipe_names

Array = NDArray[np.float64]

STEPS = 300
RUNNING = 50
"""The mean of the last so many losses is compared, too."""

OURS, TORCH, NUDGED = "pynlm", "torch", "torch, nudged"

CHAOS = 0.1
"""Where torch's losses are further than this (RMS) from torch's own, no other's can follow them."""
STRICT = 1e-2
"""What one would like to ask of each later step; shown beside the criterion, see `_STRICT`."""


class Check(NamedTuple):
    """A figure of pynlm against torch, the same of torch nudged (or None), the bound on ours."""

    what: str
    ours: float
    nudged: float | None
    bound: float
    asked: bool = True
    """False: shown, but no part of the criterion."""

    @property
    def holds(self) -> bool:
        # False for a figure that is no number.
        return self.ours <= self.bound

    def __str__(self) -> str:
        sign = "≤" if self.holds else "not ≤"
        nudged = "" if self.nudged is None else f", torch nudged {_share(self.nudged)}"
        asked = "" if self.asked else ", not asked: torch does not follow itself"
        return f"{self.what}: {_share(self.ours)} ({sign} {_share(self.bound)}){nudged}{asked}"


@dataclass(frozen=True)
class Parity:
    """Losses of one recipe on all sides, in nats a token, step by step.

    Attributes
    ----------
    recipe, detail, dtype
        What was trained.
    losses
        By contender (OURS, TORCH, NUDGED), each taken before the step's update.
    in_step
        Differences of the loss and of the gradient, step by step, where pynlm takes each step from
        torch's weights and state.
    norm_error
        Largest relative error of the norm that `clip_grad_norm_` computed in a step; None where the
        recipe does not clip.
    facts
        Software and machine.
    """

    recipe: str
    detail: str
    dtype: str
    losses: dict[str, list[float]]
    in_step: dict[str, list[float]]
    norm_error: float | None
    facts: str

    @property
    def steps(self) -> int:
        return len(self.losses[OURS])

    def differences(self, contender: str) -> Array:
        """|loss - torch's| / torch's of each step, infinite where a loss is no number."""
        theirs = np.array(self.losses[TORCH])
        found = np.abs(np.array(self.losses[contender]) - theirs) / theirs
        return np.where(np.isfinite(found), found, np.inf)

    def running(self, contender: str) -> float:
        """Mean of the last losses."""
        return float(np.mean(self.losses[contender][-RUNNING:]))

    def explodes(self) -> bool:
        """Whether torch, nudged by one rounding, ends up nowhere near torch."""
        later = self.differences(NUDGED)[trajectory_tolerance(self.dtype).first :]
        return bool(later.size) and CHAOS < _rms(later) < math.inf

    def checks(self) -> list[Check]:
        """What a recipe must keep to; reasons in `pynlm/testing/tolerances.py`."""
        tolerance = trajectory_tolerance(self.dtype)
        start = min(tolerance.first, self.steps)
        asked = not self.explodes()
        pair = (OURS, NUDGED)
        ours, nudged = (float(self.differences(c)[:start].max()) for c in pair)
        found = [Check(f"steps 1–{start}, largest", ours, nudged, tolerance.single, asked)]
        if self.steps > start:
            ours, nudged = (_rms(self.differences(c)[start:]) for c in pair)
            what = f"steps {start + 1}–{self.steps}, RMS"
            found.append(Check(what, ours, nudged, tolerance.later_bound(nudged), asked))
            theirs = self.running(TORCH)
            ours, nudged = (abs(self.running(c) - theirs) / theirs for c in pair)
            bound = tolerance.later_bound(nudged)
            found.append(Check("running mean", ours, nudged, bound, asked))
        bounds = (tolerance.in_step_loss, tolerance.in_step_gradient)
        for (what, differences), bound in zip(self.in_step.items(), bounds, strict=True):
            found.append(Check(f"in step, {what}", float(np.max(differences)), None, bound))
        return found

    def strict(self) -> Check | None:
        """The largest difference of a later step: for information, no part of the criterion."""
        start = trajectory_tolerance(self.dtype).first
        if self.steps <= start:
            return None
        ours, nudged = (float(self.differences(c)[start:].max()) for c in (OURS, NUDGED))
        return Check(f"steps {start + 1}–{self.steps}, largest", ours, nudged, STRICT)

    def follows(self) -> bool:
        """Whether all checks hold."""
        return all(check.holds for check in self.checks() if check.asked)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def save(records: Iterable[Parity], path: Path) -> None:
    """Write as JSON, a recipe a line."""
    lines = [json.dumps({**asdict(r), **_figures(r)}, ensure_ascii=False) for r in records]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def load(path: Path) -> dict[str, Parity]:
    """What `save` wrote, by recipe; nothing where there is no file, or of other contenders."""
    if not path.is_file():
        return {}
    fields = Parity.__dataclass_fields__
    values = json.loads(path.read_text(encoding="utf-8"))
    return {
        v["recipe"]: Parity(**{name: v[name] for name in fields})
        for v in values
        if set(v["losses"]) == {OURS, TORCH, NUDGED} and "in_step" in v
    }


def _figures(r: Parity) -> dict[str, Any]:
    strict = r.strict()
    return {
        "steps": r.steps,
        "passed": r.follows(),
        "checks": [{**c._asdict(), "holds": c.holds} for c in r.checks()],
        "for_information": None if strict is None else {**strict._asdict(), "holds": strict.holds},
        "running_mean_nats": {name: r.running(name) for name in r.losses},
    }


_INTRODUCTION = f"""\
Each recipe with its own data, batches, scale of the loss, clipping, optimiser and first-epoch
rate, dropout 0, trained from the same initial weights in turns by pynlm's own training step and by
`torch.nn` and `torch.optim`. Of torch's two biases one is trained (and the GRU's `b_hn`), since two
would learn at twice the rate. Losses are in nats a token, before each step's update; the running
mean is over the last {RUNNING} steps. Without its dropout `gal-variational-small` is the same as
`zaremba-small`. `python bench/parity.py` makes this page."""

_CRITERION = f"""\
What is asked: **pynlm follows torch as closely as torch follows itself after one rounding.** Both
sides compute the same formulas and add up in another order. Over the first ten steps that leaves
differences near rounding's size, well below the bound, while a mistake stands far above it: a
learning rate 1 % too high makes 0.18 % in `default` and 6 % in `zaremba-small`. Later most recipes
are chaotic: at a high learning rate the loss jumps about before it falls, and there a difference in
the last digit grows until single steps differ visibly. How far it grows is measured on torch
itself: "torch, nudged" is the same torch training, from initial weights that were each moved to the
next float above or below.

Chaos has no part in the last two bounds: there pynlm takes each step anew from the weights and the
recurrent state that torch has reached, all along torch's path, and what differs is the rounding of
one pass. This compares the formulas at every step. Free-running losses show besides that nothing
adds up from step to step: the update's rule, the rate, the state that is carried. Where training
explodes at once (`zaremba-large` without its dropout: the loss trebles within six steps) ten
updates are enough for rounding to outgrow every bound. Where torch nudged is more than {CHAOS:.0%}
from torch (RMS), free-running losses are therefore shown, but not asked for, and only the steps
taken together count.

In a cell stands pynlm's difference from torch, then (where it applies) that of torch nudged from
torch, both as a share of torch's loss, and in brackets the bound on the former. A recipe passes if
all bounds hold:

- the largest difference of a step among the first ten: a fixed bound;
- the root mean square of the differences of all later steps: 1 %, or twice what torch nudged shows;
- the difference of the running means at the end: 1 %, or twice what torch nudged shows;
- in step: the largest difference of any step's loss, and of any parameter's clipped gradient in any
  step (norm of the difference by norm).

Bounds and reasons stand in `pynlm/testing/tolerances.py`."""

_STRICT = """\
The column "every later step ≤ 1 %" is no part of the criterion. It shows the largest difference of
a single later step, again of pynlm and of torch nudged, and whether it would hold if no such step
could differ by more than 1 %. Which of so many steps differs most, and by how much, is chance where
training is chaotic: torch fails that against itself, too."""

_NORM = """\
The norm by which torch's gradients are clipped here is taken in double, as pynlm's is. On a CPU
`clip_grad_norm_` adds up the squares of a float32 tensor in float32, and over the millions of
elements of an embedding or head it loses up to two thousandths of the norm. The column "norm error"
shows the most that it was off in a step. That is far more than what rounding does elsewhere, and
would hide what is compared here."""


def render(records: list[Parity], plot: str | None) -> str:
    """The page."""
    parts = ["# Training follows torch", _INTRODUCTION, _CRITERION, _table(records), _STRICT, _NORM]
    if plot is not None:
        parts.append(f"![Training loss of both sides, and relative differences]({plot})")
    runs = [f"- {r.recipe}: {r.detail}, {r.dtype}" for r in records]
    for facts in dict.fromkeys(r.facts for r in records):
        runs.append(f"- {', '.join(r.recipe for r in records if r.facts == facts)}: {facts}")
    missing = [name for name in recipe_names() if name not in {r.recipe for r in records}]
    if missing:
        runs.append(f"- not run: {', '.join(missing)}")
    return "\n\n".join([*parts, "## Runs", "\n".join(runs)]) + "\n"


def _table(records: list[Parity]) -> str:
    head = ["recipe", "steps", "loss, first → running mean", "first ten steps, largest"]
    head += ["later steps, RMS", "running mean", "in step, loss", "in step, gradient", ""]
    head += ["every later step ≤ 1 %", "norm error"]
    lines = [head, ["---"] * len(head)]
    for r in records:
        first, *later, loss, gradient = (_cell(c) for c in r.checks())
        strict = r.strict()
        lines.append(
            [
                r.recipe,
                str(r.steps),
                f"{r.losses[TORCH][0]:.3f} → {r.running(TORCH):.3f}",
                *(first, *(later or ["", ""]), loss, gradient),
                ("pass, in step" if r.explodes() else "pass") if r.follows() else "**fail**",
                "" if strict is None else _information(strict),
                "no clipping" if r.norm_error is None else f"{r.norm_error:.1e}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(check: Check) -> str:
    both = " / ".join(_share(x) for x in check[1:3] if x is not None)
    sign = "≤" if check.holds else "**not** ≤" if check.asked else "not ≤"
    return f"{both} ({sign} {_share(check.bound)}{'' if check.asked else ', not asked'})"


def _information(check: Check) -> str:
    found = (x for x in check[1:3] if x is not None)
    words = (f"{_share(x)} {'holds' if x <= check.bound else 'fails'}" for x in found)
    return " / ".join(words)


def _share(share: float) -> str:
    """In percent where that reads well."""
    if not math.isfinite(share):
        return "no number"
    return f"{100 * share:.2g} %" if 1e-4 < share < 0.995 else f"{share:.1e}"


# Okabe and Ito's colours, told apart by all.
_OURS, _THEIRS, _LED, _BOUND = "#0072B2", "#E69F00", "#009E73", "#000000"
_GREY = "#666666"
_COLUMNS = 3


def draw(records: list[Parity], png: Path) -> bool:
    """Write the plot; False, and nothing written, without matplotlib or records."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image  # matplotlib brings it
    except ImportError:
        return False
    if not records:
        return False
    columns = min(_COLUMNS, len(records))
    rows = math.ceil(len(records) / columns)
    figure = Figure(figsize=(3.7 * columns, 3.6 * rows + 0.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(
        2 * rows, columns, squeeze=False, sharex="col", height_ratios=[1.5, 1.0] * rows
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
    figure.suptitle(
        "Training loss in nats a token by step; below, relative differences from torch",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    figure.set_dpi(100)
    canvas.draw()
    # A palette makes the file four times smaller.
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())
    pixels.quantize(48).save(png, optimize=True)
    return True


def _panel(r: Parity, above: Any, below: Any) -> None:
    steps = range(1, r.steps + 1)
    # The wide line shows at both sides of the narrow one, so that one sees both.
    above.plot(steps, r.losses[TORCH], color=_THEIRS, lw=3.2, label="loss: torch")
    above.plot(steps, r.losses[OURS], color=_OURS, lw=0.9, label="loss: pynlm")
    above.set_title(r.recipe, fontsize=10, loc="left", fontweight="bold")
    # A log scale has no place for 0.
    least = 1e-8 if r.dtype == "float32" else 1e-16
    for contender, colour, width in ((NUDGED, _THEIRS, 1.8), (OURS, _OURS, 0.8)):
        shares = np.maximum(r.differences(contender), least)
        below.plot(steps, shares, color=colour, lw=width)
        above.plot([], [], color=colour, lw=width, label=f"difference from torch: {contender}")
    shares = np.maximum(r.in_step["loss"], least)
    below.plot(steps, shares, color=_LED, lw=0.8)
    above.plot([], [], color=_LED, lw=0.8, label="difference from torch: pynlm, in step")
    tolerance = trajectory_tolerance(r.dtype)
    below.plot([0.5, tolerance.first + 0.5], [tolerance.single] * 2, color=_BOUND, lw=2.2)
    above.plot([], [], color=_BOUND, lw=2.2, label="bound on the first ten steps")
    below.set_yscale("log")
    below.set_ylim(least / 2, 1.0)
    below.set_yticks([1e-8, 1e-6, 1e-4, 1e-2, 1] if least > 1e-9 else [1e-16, 1e-11, 1e-6, 1e-1])
    below.minorticks_off()
    for ax in (above, below):
        ax.tick_params(labelsize=8, colors=_GREY)
        ax.grid(axis="y", color="#dddddd", lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
