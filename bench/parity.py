"""Does training follow torch? `python bench/parity.py [--recipes A B] [--steps 300] [--out DIR]`.

Each recipe is trained twice in this process, step by step in turns: by pynlm's own training step,
and by the same model out of `torch.nn` and `torch.optim`, from the same initial weights on the
same batches, without dropout (whose masks differ). Losses must stay together. Named corpora come
from PYNLM_DATA. `--set` changes a recipe as `pynlm train --set` does (`train.dtype=float64`).

Files: parity.json (all losses), parity.md, parity.png. Recipes that are not run now keep what the
files held. The exit status is 1 if a recipe fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import pynlm
from bench import machine
from pynlm import _kernels, kernels
from pynlm.models import RecurrentLM
from pynlm.testing.tolerances import trajectory_bounds
from pynlm.text import Batch
from pynlm.train.bptt import BPTT
from pynlm.train.config import Recipe, apply_overrides, load_recipe, recipe_names
from pynlm.train.data import Data, make_batches, prepare
from pynlm.train.optimisers import make_optimiser
from pynlm.train.schedules import make_schedule
from pynlm.train.settings import model_config

RESULTS = Path(__file__).resolve().parent / "results"
STEPS = 300
RUNNING = 50
"""The mean of the last so many losses is compared, too."""

NO_DROPOUT = {f"model.dropout_{place}": 0.0 for place in ("input", "between", "output")}


class Window(NamedTuple):
    """Steps `first` to `last`: the largest relative difference of a loss, where, and its bound."""

    first: int
    last: int
    worst: float
    at: int
    bound: float


@dataclass(frozen=True)
class Parity:
    """Losses of both sides of one recipe, in nats a token, step by step.

    Attributes
    ----------
    recipe, detail, dtype
        What was trained.
    ours, theirs
        Losses of pynlm and of torch, each taken before the step's update.
    facts
        Software and machine.
    """

    recipe: str
    detail: str
    dtype: str
    ours: list[float]
    theirs: list[float]
    facts: str

    @property
    def steps(self) -> int:
        return len(self.ours)

    @property
    def differences(self) -> list[float]:
        """|ours - theirs| / theirs of each step."""
        return [abs(a - b) / b for a, b in zip(self.ours, self.theirs, strict=True)]

    def within(self, steps: int) -> float:
        """Largest difference in nats of the first `steps` steps."""
        pairs = zip(self.ours[:steps], self.theirs, strict=False)
        return max(abs(a - b) for a, b in pairs)

    @property
    def running(self) -> tuple[float, float]:
        """Mean of the last losses, ours and theirs."""
        n = min(RUNNING, self.steps)
        return sum(self.ours[-n:]) / n, sum(self.theirs[-n:]) / n

    @property
    def windows(self) -> list[Window]:
        """The differences beside their bounds; the last bound holds for all later steps, too."""
        found, first = [], 1
        bounds = trajectory_bounds(self.dtype)
        for last, bound in bounds.items():
            if last == max(bounds):
                last = max(self.steps, last)
            part = self.differences[first - 1 : last]
            if part:
                at = max(range(len(part)), key=part.__getitem__)
                found.append(Window(first, first + len(part) - 1, part[at], first + at, bound))
            first = last + 1
        return found

    @property
    def passed(self) -> bool:
        return all(w.worst <= w.bound for w in self.windows)


def decide(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name, without dropout and with changes."""
    return apply_overrides(apply_overrides(load_recipe(name), NO_DROPOUT), overrides)


def follow(
    recipe: Recipe, data: Data, steps: int, progress: Callable[[int, float, float], None]
) -> Parity:
    """Train both sides.

    Parameters
    ----------
    progress
        Called after each step with its number and both losses.

    Raises
    ------
    ValueError
        Batches of sentences, which the peer does not read.
    """
    # Not above: the page and `--help` need no torch.
    from bench.peers import with_torch

    if recipe.data.batching != "contiguous":
        raise ValueError(f"parity: recipe {recipe.name}: the batches must be contiguous text")
    config = model_config(recipe, data.tokenizer.vocab_size)
    # The rate of the first epoch throughout: a short text has several epochs in so many steps.
    lr = make_schedule(recipe.schedule, recipe.optimiser.lr).rate(0)

    model = RecurrentLM(config, dtype=recipe.train.dtype)
    model.initialise(recipe.train.seed)
    mine = BPTT(model, make_optimiser(recipe.optimiser, model.parameters), recipe.train)

    theirs = with_torch.Trainee(recipe, config, with_torch.losses()["torch"])
    theirs.model.load(model.state_dict())
    train_one_bias(theirs.model.recurrent)
    for group in theirs.optimiser.param_groups:
        group["lr"] = lr

    losses: tuple[list[float], list[float]] = ([], [])
    for step, batch in enumerate(islice(_text(recipe, data), steps), 1):
        result = mine.step(batch, lr=lr, step=step)
        losses[0].append(result.nats / result.tokens)
        if batch.fresh:
            theirs.state = None
        # What torch minimises is the mean over tokens, or T times that.
        scale = len(batch.ids) if recipe.train.loss == "sum_time" else 1
        losses[1].append(theirs.step(*with_torch.as_tensors(batch)) / scale)
        progress(step, losses[0][-1], losses[1][-1])
    return Parity(recipe.name, _detail(recipe, data), recipe.train.dtype, *losses, _facts())


def train_one_bias(module: Any) -> None:
    """Train as many biases as pynlm has.

    Two biases that are only ever added up get the same gradient each, which doubles the step of
    their sum. The second one is zero and stays so; but the part of it that a GRU's reset gate
    multiplies is a bias of its own.
    """
    for layer in range(module.num_layers):
        second = getattr(module, f"bias_hh_l{layer}")
        if module.mode != "GRU":
            second.requires_grad_(False)
            continue
        own = second.new_zeros(len(second))
        own[-module.hidden_size :] = 1
        # The hook's result is what the clipping and the optimiser see.
        second.register_hook(own.mul)


def _text(recipe: Recipe, data: Data) -> Iterator[Batch]:
    """The recipe's batches, epoch after epoch."""
    for epoch in count():
        yield from make_batches(recipe, data, epoch)


def _detail(recipe: Recipe, data: Data) -> str:
    model, train, optimiser = recipe.model, recipe.train, recipe.optimiser
    widths = "-".join(map(str, model.hidden_sizes))
    clip = "" if train.clip_norm is None else f", norm ≤ {train.clip_norm:g}"
    return (
        f"{model.cell} {widths}{', tied' if model.tied else ''}, V {data.tokenizer.vocab_size:,}, "
        f"T {train.bptt}, B {train.batch_size}, {train.loss}, {optimiser.kind} "
        f"{optimiser.lr:g}{clip}"
    )


def _facts() -> str:
    from bench.peers import with_torch

    ours = f"pynlm {pynlm.__version__} ({_kernels.isa_name()}), {machine.commit()}"
    peer = ", ".join(f"{name} {version}" for name, version in with_torch.versions().items())
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return f"{ours}; {peer}; {machine.cpu_model()}, {kernels.get_num_threads()} threads; {day}"


# ---- what is written


def save(records: Iterable[Parity], path: Path) -> None:
    """Write as JSON, a recipe a line."""
    lines = [
        json.dumps({**asdict(r), "passed": r.passed, **_figures(r)}, ensure_ascii=False)
        for r in records
    ]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def load(path: Path) -> dict[str, Parity]:
    """What `save` wrote, by recipe; nothing where there is no file."""
    if not path.is_file():
        return {}
    fields = Parity.__dataclass_fields__
    values = json.loads(path.read_text(encoding="utf-8"))
    return {v["recipe"]: Parity(**{name: v[name] for name in fields}) for v in values}


def _figures(r: Parity) -> dict[str, Any]:
    ours, theirs = r.running
    return {
        "steps": r.steps,
        "largest_difference_nats": {str(n): r.within(n) for n in (10, 100, STEPS)},
        "largest_relative_difference": [w._asdict() for w in r.windows],
        "running_mean_nats": {"pynlm": ours, "torch": theirs, "difference": ours - theirs},
    }


def render(records: list[Parity], plot: str | None) -> str:
    """The page."""
    parts = ["# Training follows torch", _INTRODUCTION.format(running=RUNNING)]
    if plot is not None:
        parts.append(f"![Training loss of both sides, and their difference]({plot})")
    parts += [_table(records), _criterion(records)]
    parts.append("## Runs\n\n" + "\n".join(f"- {r.recipe}: {r.detail}; {r.facts}" for r in records))
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
Each recipe with its own data, batches, scale of the loss, clipping, optimiser and first-epoch rate, \
dropout 0, trained in turns by pynlm's own training step and by `torch.nn`, `torch.optim` and \
`clip_grad_norm_`, from the same initial weights. Of torch's two biases one is trained (the GRU's \
`b_hn` aside), since two would learn at twice the rate. Losses are nats a token before each step's \
update. The running mean is over the last {running} steps. `python bench/parity.py` makes this page."""


def _table(records: list[Parity]) -> str:
    lines = [
        "| recipe | steps | loss, first → running mean | largest difference in nats, steps 1–10 "
        f"| 1–100 | 1–{STEPS} | running mean, pynlm − torch | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        ours, theirs = r.running
        within = [f"{r.within(n):.1e}" if _reaches(r, n) else "" for n in (10, 100, STEPS)]
        lines.append(
            f"| {r.recipe} | {r.steps} | {r.theirs[0]:.3f} → {theirs:.3f} | {' | '.join(within)} "
            f"| {ours - theirs:+.1e} | {'pass' if r.passed else '**fail**'} |"
        )
    return "\n".join(lines)


def _reaches(r: Parity, steps: int) -> bool:
    """Whether the run is long enough for a column of its own."""
    before = {10: 0, 100: 10, STEPS: 100}[steps]
    return r.steps > before


def _criterion(records: list[Parity]) -> str:
    lines = [
        "## Criterion",
        "",
        "A recipe passes if no step's loss differs by more than a share of torch's (the table in "
        "`pynlm/testing/tolerances.py`, with reasons): the first ten updates differ by rounding "
        "only, and what training makes of that later grows by itself.",
        "",
        "| recipe | steps | largest relative difference | at step | bound |",
        "|---|---|---|---|---|",
    ]
    for r in records:
        for w in r.windows:
            mark = "" if w.worst <= w.bound else " **fails**"
            lines.append(
                f"| {r.recipe} ({r.dtype}) | {w.first}–{w.last} | {w.worst:.1e}{mark} | {w.at} "
                f"| {w.bound:g} |"
            )
    return "\n".join(lines)


def write(records: list[Parity], folder: Path) -> Path:
    """JSON, plot (with matplotlib) and page; the page's path."""
    from bench.parity_plot import draw

    folder.mkdir(parents=True, exist_ok=True)
    save(records, folder / "parity.json")
    plot = "parity.png" if draw(records, folder / "parity.png") else None
    page = folder / "parity.md"
    page.write_text(render(records, plot), encoding="utf-8")
    return page


# ---- command line


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    given = _parser().parse_args(arguments)
    names = recipe_names() if given.recipes is None else given.recipes
    recipes = [decide(name, given.set) for name in names]
    kept = load(given.out / "parity.json")
    failed = []
    from bench.peers import with_torch

    with_torch.set_threads(kernels.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        texts: dict[str, Data] = {}
        for recipe in recipes:
            key = recipe.data.model_dump_json()
            if key not in texts:
                texts[key] = prepare(recipe.data, Path(folder) / str(len(texts)))
            print(f"{recipe.name}: {_detail(recipe, texts[key])}", flush=True)
            found = follow(recipe, texts[key], given.steps, _Progress(given.steps))
            kept[recipe.name] = found
            if not found.passed:
                failed.append(recipe.name)
            for w in found.windows:
                print(
                    f"  steps {w.first}–{w.last}: largest relative difference {w.worst:.1e} "
                    f"(step {w.at}), bound {w.bound:g}"
                )
            print(f"  {'pass' if found.passed else 'FAIL'}", flush=True)
            # After each: a run that is stopped keeps what it has found.
            page = write([kept[name] for name in sorted(kept)], given.out)
    print(page)
    if failed:
        print(f"parity: {', '.join(failed)}: losses do not follow torch's", file=sys.stderr)
    return 1 if failed else 0


class _Progress:
    """A line for steps 1, 2, 5, 10, then each 50th, and the last."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int, ours: float, theirs: float) -> None:
        if step in (1, 2, 5, 10, self.steps) or step % 50 == 0:
            print(
                f"  step {step:4d}/{self.steps}  pynlm {ours:.6f}  torch {theirs:.6f}  "
                f"difference {ours - theirs:+.1e}",
                flush=True,
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python bench/parity.py", description=__doc__)
    add = parser.add_argument
    add("--recipes", nargs="+", metavar="NAME", help="default: all that come with pynlm")
    add("--steps", type=_positive, default=STEPS, help=f"default {STEPS}")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipes")
    add("--out", type=Path, default=RESULTS, help="folder (default bench/results)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
