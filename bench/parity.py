"""Does training follow torch? `python bench/parity.py [--recipes A B] [--steps 300] [--out DIR]`.

Each recipe is trained in this process by pynlm's own training step and by the same model out of
`torch.nn` and `torch.optim`, step by step in turns, from the same initial weights on the same
batches, without dropout (whose masks differ). torch trains a second time from weights that were
each moved to a neighbouring float: pynlm must stay as close to torch as torch stays to itself. A
second pynlm is led along torch's path: at each step it takes torch's weights and state, and its
loss and gradient must be torch's but for rounding.
torch's gradients are clipped by their norm in double, as pynlm's are; how far the float32 norm of
`clip_grad_norm_` is off is only recorded.

Named corpora come from PYNLM_DATA. `--set` changes a recipe as `pynlm train --set` does
(`train.dtype=float64`). Files: parity.json (all losses), parity.md, parity.png. Recipes that are
not run now keep what the files held; `--recipes` without a name only writes the page and the plot
anew. The exit status is 1 if a recipe fails.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import pynlm
from bench import machine, parity_page
from bench.parity_page import NUDGED, OURS, STEPS, TORCH, Parity
from pynlm import _kernels, kernels
from pynlm.heads import HeadOptions
from pynlm.layers import RecurrentOptions
from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.text import Batch
from pynlm.train.bptt import BPTT
from pynlm.train.config import Recipe, apply_overrides, load_recipe, recipe_names
from pynlm.train.data import Data, make_batches, prepare
from pynlm.train.optimisers import make_optimiser
from pynlm.train.schedules import make_schedule
from pynlm.train.settings import model_config

Array = NDArray[Any]

RESULTS = Path(__file__).resolve().parent / "results"
RANDOM = (
    *("dropout_input", "dropout_between", "dropout_output"),
    *("recurrent_dropout", "weight_drop", "zoneout", "zoneout_cell"),
)
NO_DROPOUT = {f"model.{name}": 0.0 for name in RANDOM}


def comparable() -> list[str]:
    """Recipes that torch has modules for, once nothing is dropped."""
    plain = RecurrentOptions(), HeadOptions()
    chosen = {n: model_config(decide(n), vocab_size=2) for n in recipe_names()}
    return [n for n, config in chosen.items() if (config.recurrent, config.head) == plain]


def decide(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name, without dropout and with changes."""
    return apply_overrides(apply_overrides(load_recipe(name), NO_DROPOUT), overrides)


def follow(
    recipe: Recipe,
    data: Data,
    steps: int,
    progress: Callable[[int, dict[str, float]], None],
    facts: str = "",
) -> Parity:
    """Train all sides.

    Parameters
    ----------
    progress
        Called after each step with its number and the losses by contender.
    facts
        For the record: software and machine.

    Raises
    ------
    ValueError
        Batches of sentences, which the peer does not read.
    """
    # Not above: `--help` needs no torch.
    from bench.peers import with_torch

    if recipe.data.batching != "contiguous":
        raise ValueError(f"parity: recipe {recipe.name}: the batches must be contiguous text")
    config = model_config(recipe, data.tokenizer.vocab_size)
    # The rate of the first epoch throughout: a short text has several epochs in so many steps.
    lr = make_schedule(recipe.schedule, recipe.optimiser.lr).rate(0)

    model = RecurrentLM(config, dtype=recipe.train.dtype)
    model.initialise(recipe.train.seed)
    mine = BPTT(model, make_optimiser(recipe.optimiser, model.parameters), recipe.train)

    clip = _Watched()
    loss = with_torch.losses()["torch"]
    peers = {
        TORCH: with_torch.Trainee(recipe, config, loss, clip),
        NUDGED: with_torch.Trainee(recipe, config, loss, with_torch.clip_in_double),
    }
    weights = model.state_dict()
    peers[TORCH].model.load(weights)
    peers[NUDGED].model.load(nudge(weights))
    for peer in peers.values():
        train_one_bias(peer.model.recurrent)
        for group in peer.optimiser.param_groups:
            group["lr"] = lr

    led = _Led(recipe, config)
    losses: dict[str, list[float]] = {name: [] for name in (OURS, *peers)}
    in_step: dict[str, list[float]] = {"loss": [], "gradient": []}
    # What torch minimises is the mean over tokens, or T times that.
    scale = recipe.train.bptt if recipe.train.loss == "sum_time" else 1
    for step, batch in enumerate(islice(_text(recipe, data), steps), 1):
        result = mine.step(batch, lr=lr, step=step)
        losses[OURS].append(result.nats / result.tokens)
        ids, targets = with_torch.as_tensors(batch)
        for peer in peers.values():
            if batch.fresh:
                peer.state = None
        own = led.step(peers[TORCH], batch, lr, step)
        for name, peer in peers.items():
            losses[name].append(peer.step(ids, targets) / scale)
        theirs = losses[TORCH][-1]
        in_step["loss"].append(abs(own - theirs) / theirs)
        in_step["gradient"].append(led.difference(peers[TORCH]))
        progress(step, {name: values[-1] for name, values in losses.items()})
    detail = _detail(recipe, data)
    return Parity(recipe.name, detail, recipe.train.dtype, losses, in_step, clip.error, facts)


class _Led:
    """pynlm's training step, from torch's weights and state each time.

    An optimiser's own state follows torch's because the gradients do.
    """

    def __init__(self, recipe: Recipe, config: RecurrentLMConfig) -> None:
        self.model = RecurrentLM(config, dtype=recipe.train.dtype)
        optimiser = make_optimiser(recipe.optimiser, self.model.parameters)
        self.training = BPTT(self.model, optimiser, recipe.train)
        self.limit, self.scale = recipe.train.clip_norm, 1.0

    def step(self, peer: Any, batch: Batch, lr: float, step: int) -> float:
        """A step from where `peer` stands; its loss."""
        for name, weights in peer.model.arrays().items():
            self.model.parameters[name].data[...] = weights
        self.training.state = None
        if peer.state is not None:
            parts = peer.state if isinstance(peer.state, tuple) else (peer.state,)
            layers = zip(*(part.detach().numpy() for part in parts), strict=True)
            self.training.state = tuple(tuple(map(np.array, layer)) for layer in layers)
        result = self.training.step(batch, lr=lr, step=step)
        clips = self.limit is not None and result.grad_norm > self.limit
        self.scale = self.limit / result.grad_norm if clips else 1.0
        return result.nats / result.tokens

    def difference(self, peer: Any) -> float:
        """Largest difference of a parameter's clipped gradient from torch's, by its norm."""
        found = [0.0]
        for name, theirs in peer.model.arrays(gradients=True).items():
            ours = self.model.parameters[name].densify() * self.scale
            norm = np.linalg.norm(theirs.astype(np.float64))
            if norm > 0.0:
                found.append(float(np.linalg.norm((ours - theirs).astype(np.float64)) / norm))
        return float(np.max(found))  # NaN if any is


class _Watched:
    """Clip with the norm in double; `error` is the largest relative error of torch's own norm."""

    def __init__(self) -> None:
        self.error: float | None = None

    def __call__(self, parameters: Iterable[Any], limit: float) -> None:
        from torch.nn.utils import clip_grad_norm_

        from bench.peers import with_torch

        parameters = list(parameters)
        # Without a limit it multiplies by 1, which changes nothing.
        norm, right = clip_grad_norm_(parameters, math.inf), with_torch.norm_in_double(parameters)
        if right > 0.0:
            self.error = max(self.error or 0.0, abs(float(norm) / right - 1.0))
        with_torch.clip_in_double(parameters, limit)


def nudge(weights: dict[str, Array], seed: int = 1) -> dict[str, Array]:
    """Each weight moved to the next float above or below it, as one rounding might."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, values in weights.items():
        up = rng.integers(2, size=values.shape, dtype=np.int8) == 1
        toward = np.where(up, np.inf, -np.inf).astype(values.dtype)
        found[name] = np.nextafter(values, toward)
    return found


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


def write(records: list[Parity], folder: Path) -> Path:
    """JSON, plot (with matplotlib) and page; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    parity_page.save(records, folder / "parity.json")
    plot = "parity.png" if parity_page.draw(records, folder / "parity.png") else None
    page = folder / "parity.md"
    page.write_text(parity_page.render(records, plot), encoding="utf-8")
    return page


# ---- command line


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    given = _parser().parse_args(arguments)
    names = comparable() if given.recipes is None else given.recipes
    recipes = [decide(name, given.set) for name in names]
    kept = parity_page.load(given.out / "parity.json")
    facts, failed = _facts(), []
    from bench.peers import with_torch

    with_torch.set_threads(kernels.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        texts: dict[str, Data] = {}
        for recipe in recipes:
            key = recipe.data.model_dump_json()
            if key not in texts:
                texts[key] = prepare(recipe.data, Path(folder) / str(len(texts)))
            print(f"{recipe.name}: {_detail(recipe, texts[key])}", flush=True)
            found = follow(recipe, texts[key], given.steps, _Progress(given.steps), facts)
            kept[recipe.name] = found
            for check in found.checks():
                print(f"  {check}")
            if not found.follows():
                failed.append(recipe.name)
            print(f"  {'pass' if found.follows() else 'FAIL'}", flush=True)
            # After each: a run that is stopped keeps what it has found.
            write([kept[name] for name in sorted(kept)], given.out)
    print(write([kept[name] for name in sorted(kept)], given.out))
    if failed:
        print(f"parity: {', '.join(failed)}: losses do not follow torch's", file=sys.stderr)
    return 1 if failed else 0


class _Progress:
    """A line for steps 1, 2, 5, 10, then each 50th, and the last."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int, losses: dict[str, float]) -> None:
        if step in (1, 2, 5, 10, self.steps) or step % 50 == 0:
            shown = "  ".join(f"{name} {loss:.6f}" for name, loss in losses.items())
            print(f"  step {step:4d}/{self.steps}  {shown}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python bench/parity.py", description=__doc__)
    add = parser.add_argument
    add("--recipes", nargs="*", metavar="NAME", help="default: all that torch has modules for")
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
