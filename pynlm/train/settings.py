"""From the arguments of a call to a decided recipe and a run folder; what a resume may change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynlm.heads import HeadOptions, choose_cutoffs
from pynlm.heads.trees import Tree, make_tree
from pynlm.models import RecurrentLMConfig
from pynlm.text import Tokenizer, read_clusters
from pynlm.train.checkpoint import CheckpointError, CheckpointMissing, Snapshot
from pynlm.train.config import (
    Recipe,
    apply_overrides,
    differing_keys,
    load_recipe,
    parse_override,
    parse_recipe,
)
from pynlm.train.data import SPLITS, Data, IntArray, Source, arrays_of, files_of

Overrides = Iterable[str | tuple[str, Any]] | Mapping[str, Any]

# Keys that leave every weight of the steps already made as it is.
FREE_KEYS = {
    "name",
    "description",
    "train.checkpoint_seconds",
    "train.log_every",
    "train.graph",
    "train.epochs",
    "schedule.early_stop",
}

# Keys that leave a run the one that its recipe's figure is about.
FIGURE_KEYS = {
    "name",
    "description",
    "train.seed",
    "train.dtype",
    "train.checkpoint_seconds",
    "train.log_every",
    "train.graph",
}


MANY_WORDS = 50_000
"""Of a larger vocabulary the exact softmax comes with a hint."""


class ResumeError(CheckpointError):
    """The run cannot be continued with what was asked; the message names what differs."""


@dataclass(frozen=True)
class Settings:
    """A decided run.

    Attributes
    ----------
    recipe : everything, text and seed included: what `config.toml` holds.
    run : the run folder.
    arrays : token ids given instead of files, by split.
    resumes : whether the folder holds a run that goes on.
    """

    recipe: Recipe
    run: Path
    arrays: dict[str, IntArray]
    resumes: bool


def decide(
    recipe: str | Path | Mapping[str, Any] | Recipe | None,
    *,
    corpus: str | None,
    text: Source | None,
    valid: Source | None,
    test: Source | None,
    out: str | Path | None,
    seed: int | None,
    overrides: Overrides,
    resume: bool,
) -> Settings:
    """Put recipe, overrides and text together, and check them against the run folder.

    Raises
    ------
    RecipeError : unknown recipe, key or value.
    ResumeError : `resume` with another recipe, seed or text than the run's.
    FileExistsError : the folder holds a run, and `resume` was not asked for.
    """
    pairs = _pairs(overrides)
    sources = {"train": text, "valid": valid, "test": test}
    arrays = arrays_of(sources)
    changes = _text_changes(corpus, sources, arrays)
    if seed is not None:
        changes["train.seed"] = seed

    def build(base: Recipe) -> Recipe:
        built = apply_overrides(
            apply_overrides(base, changes), _counts_of_level(base, pairs) + pairs
        )
        if arrays and built.data.level != "integer":
            raise ValueError(
                f"train: token ids are of level 'integer', got data.level = {built.data.level!r}"
            )
        model_config(built, vocab_size=2)  # its errors now, not after minutes of reading text
        return _own_figure(base, built)

    base = load_recipe("default" if recipe is None else recipe)
    if out is None:
        if resume and recipe is None:
            raise ResumeError("resume: say which run to continue (out, --out DIR)")
        decided = build(base)
        run = _default_folder(f"{decided.name}-{decided.train.seed}", resume)
    else:
        run = Path(out)
    stored = run / "config.toml"
    if not resume:
        if (run / "last").exists() or (run / "checkpoints").exists():
            raise FileExistsError(
                f"{run} already holds a run; continue it with resume (--resume), or choose "
                "another folder"
            )
        return Settings(build(base), run, arrays, resumes=False)
    if not stored.exists():
        if recipe is None:
            raise CheckpointMissing(f"resume: {run} holds no run (it has no config.toml)")
        return Settings(build(base), run, arrays, resumes=False)
    old = load_recipe(stored)
    new = build(old if recipe is None else base)
    if new.head.cutoffs is None and new.head.kind == old.head.kind:
        # they were chosen from the text, which is the same
        head = new.head.model_copy(update={"cutoffs": old.head.cutoffs})
        new = new.model_copy(update={"head": head})
    return Settings(_continued(run, old, new, dict(pairs)), run, arrays, resumes=True)


def model_config(recipe: Recipe, vocab_size: int) -> RecurrentLMConfig:
    """The model that a recipe describes, for a vocabulary of `vocab_size`."""
    head = HeadOptions(**recipe.head.model_dump())
    return RecurrentLMConfig(vocab_size=vocab_size, head=head, **recipe.model.model_dump())


def with_cutoffs(recipe: Recipe, counts: NDArray[np.int64]) -> Recipe:
    """The recipe with cutoffs for its adaptive softmax, chosen from `counts` [V] unless given.

    Raises
    ------
    ValueError : cutoffs are to be chosen, and the counts do not fall.
    """
    head, train = recipe.head, recipe.train
    if head.kind != "adaptive" or head.cutoffs is not None:
        return recipe
    if (counts[1:] > counts[:-1]).any():
        raise ValueError(
            "train: head.kind = 'adaptive' chooses its cutoffs only where token ids are sorted by "
            f"falling count, which those of level {recipe.data.level!r} are not; give head.cutoffs"
        )
    size = model_config(recipe, len(counts)).output_sizes[-1]
    cutoffs = choose_cutoffs(counts, size, train.batch_size * train.bptt, head.div_value)
    return recipe.model_copy(update={"head": head.model_copy(update={"cutoffs": cutoffs})})


def given_tree(recipe: Recipe, tokenizer: Tokenizer) -> Tree | None:
    """The tree of a recipe's file of clusters; None if it has none."""
    if recipe.head.clusters is None:
        return None
    labels = read_clusters(recipe.head.clusters, tokenizer)
    return make_tree("clusters", tokenizer.vocab_size, labels=labels)


def head_notes(recipe: Recipe, counts: NDArray[np.int64]) -> list[str]:
    """What a person should know of the head, a line each; `counts` [V] are the tokens'."""
    vocab_size = len(counts)
    if recipe.head.kind == "adaptive":
        return [f"adaptive softmax, cutoffs {list(recipe.head.cutoffs or ())}"]
    if recipe.head.kind == "full" and vocab_size > MANY_WORDS:
        return [
            f"the exact softmax over {vocab_size:,} tokens is most of the work; "
            "--set head.kind=adaptive is several times as fast"
        ]
    by_rank = HeadOptions(**recipe.head.model_dump()).sparse
    if by_rank and recipe.head.sampler == "log-uniform" and (counts[1:] > counts[:-1]).any():
        return [
            "log-uniform samples are meant for token ids sorted by falling count, which those of "
            f"level {recipe.data.level!r} are not; --set head.sampler=unigram draws by the counts"
        ]
    return []


def check_unchanged(run: Path, state: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise ResumeError unless a checkpoint's state was made with `recipe` (free keys aside)."""
    _continued(run, parse_recipe(state["recipe"], f"{run / 'last' / 'state.json'}"), recipe, {})


def stored_tokenizer(run: Path, snapshot: Snapshot) -> Tokenizer:
    """The run's vocabulary; ResumeError unless it is the one of the checkpoint."""
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    if tokenizer.digest() != snapshot.state["tokenizer"]:
        raise ResumeError(
            f"resume: the vocabulary {run / 'tokenizer.json'} is not the one that the run was "
            f"begun with ({tokenizer.vocab_size:,} tokens now)"
        )
    return tokenizer


def check_data(run: Path, data: Data, snapshot: Snapshot) -> None:
    """Raise ResumeError, naming the splits, unless the token ids are the checkpoint's."""
    old = snapshot.state["data"]
    changed = [s for s in {**old, **data.digests} if old.get(s) != data.digests.get(s)]
    if changed:
        counts = ", ".join(
            f"{split} had {old.get(split, {}).get('tokens', 0):,} tokens, now "
            f"{data.digests.get(split, {}).get('tokens', 0):,}"
            for split in changed
        )
        raise ResumeError(f"resume: the text of {run} has changed since it was begun: {counts}")


def _continued(run: Path, old: Recipe, new: Recipe, asked: Mapping[str, Any]) -> Recipe:
    """The stored recipe with the free keys that were asked for; ResumeError for any other."""
    free: dict[str, Any] = {}
    refused = []
    for key, before, after in differing_keys(old, new):
        if key.startswith("figure.") or key in FREE_KEYS:
            if key in asked:
                free[key] = after
        else:
            refused.append(f"{key} was {before!r}, now {after!r}")
    if refused:
        raise ResumeError(
            f"resume: {run} was begun with other settings: {'; '.join(refused)}. "
            "Leave recipe, text and overrides out to continue it as it is, "
            "or begin a new run in another folder"
        )
    return _own_figure(old, apply_overrides(old, free))


def _own_figure(base: Recipe, changed: Recipe) -> Recipe:
    """`changed`, without the figure of `base` if that is about another model, training or text."""
    keys = {key for key, _, _ in differing_keys(base, changed)} - FIGURE_KEYS
    # Who gives a figure along with other changes compares with that one.
    if changed.figure is None or not keys or any(key.startswith("figure.") for key in keys):
        return changed
    return changed.model_copy(update={"figure": None})


def _text_changes(
    corpus: str | None, sources: Mapping[str, Source | None], arrays: Mapping[str, IntArray]
) -> dict[str, Any]:
    given = [split for split in SPLITS if sources[split] is not None]
    # A recipe may name texts of its own (a run's config.toml does): none of them may stay.
    no_source: dict[str, Any] = {
        "data.corpus": None,
        "data.text": [],
        "data.valid": None,
        "data.test": None,
    }
    if not given:
        return {} if corpus is None else {**no_source, "data.corpus": corpus}
    if corpus is not None:
        raise ValueError("train: give a corpus by name or texts, not both")
    if "train" not in given:
        raise ValueError(f"train: {given[0]} is given, but no text to train on")
    if arrays and len(arrays) != len(given):
        odd = next(split for split in given if split not in arrays)
        raise ValueError(f"train: all texts must be files or all token ids; {odd} is a file")
    changes = dict(no_source)
    if arrays:
        return {**changes, "data.level": "integer", "data.min_count": 1, "data.max_size": None}
    for split in given:
        source = sources[split]
        assert source is not None
        files = files_of(source)
        if split == "train":
            changes["data.text"] = list(files)
        elif len(files) == 1:
            changes[f"data.{split}"] = files[0]
        else:
            raise ValueError(f"train: {split} must be one file, got {len(files)}")
    return changes


def _counts_of_level(base: Recipe, pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """What goes with an override of the level by one that leaves no token out.

    The recipe's `min_count` and `max_size` are about the words or characters of its own level.
    """
    level = dict(pairs).get("data.level", base.data.level)
    if level == base.data.level or level not in ("byte", "integer"):
        return []
    return [("data.min_count", 1), ("data.max_size", None)]


def _pairs(overrides: Overrides) -> list[tuple[str, Any]]:
    items = overrides.items() if isinstance(overrides, Mapping) else overrides
    return [parse_override(item) if isinstance(item, str) else item for item in items]


def _default_folder(name: str, resume: bool) -> Path:
    """`runs/NAME`, or `runs/NAME-2` and so on: the newest to resume, the next free one to begin."""
    folder, number = Path("runs") / name, 1
    newest = folder
    while folder.exists():
        newest, number = folder, number + 1
        folder = Path("runs") / f"{name}-{number}"
    return newest if resume else folder
