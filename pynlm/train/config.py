"""Recipes: TOML files read into checked models, with dotted overrides.

A recipe decides everything that shapes a model except the data and the seed. `config.toml` of a
run is the same format with those two added, so a run folder can be trained again from its own file.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPE_FOLDER = Path(__file__).resolve().parent.parent / "recipes"


class RecipeError(ValueError):
    """A recipe or an override that cannot be used; the message names the key and what to write."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """Which text, how it is cut into tokens, and how tokens are cut into batches.

    `min_count` and `max_size` leave out rare words or characters. At level "integer" `max_size` is
    the number of ids; nothing is left out there, nor at level "byte".
    `max_length` bounds what `batching = "sentences"` needs of memory: longer sentences are cut into
    pieces of so many tokens, each trained from the zero state. Evaluation cuts nothing.
    """

    corpus: str | None = None
    text: tuple[str, ...] = ()
    valid: str | None = None
    test: str | None = None
    level: Literal["word", "char", "byte", "integer"] = "word"
    min_count: int = Field(default=1, ge=1)
    max_size: int | None = Field(default=None, ge=2)
    batching: Literal["contiguous", "sentences"] = "contiguous"
    max_length: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.level in ("byte", "integer") and self.min_count > 1:
            raise ValueError(f"min_count = {self.min_count} has no meaning at level {self.level!r}")
        if self.level == "byte" and self.max_size is not None:
            raise ValueError(f"max_size = {self.max_size} has no meaning at level 'byte'")
        if self.max_length is not None and self.batching != "sentences":
            raise ValueError(
                f"max_length = {self.max_length} cuts sentences, so it needs "
                f"batching = 'sentences', got {self.batching!r}"
            )
        return self


class ModelConfig(_Section):
    """The fields of `RecurrentLMConfig` but the vocabulary's size (the text decides) and `head`."""

    cell: Literal["lstm", "gru", "rnn_tanh", "rnn_relu"] = "lstm"
    embedding_size: int = Field(default=200, ge=1)
    hidden_sizes: tuple[int, ...] = (200, 200)
    dropout_input: float = Field(default=0.0, ge=0.0, lt=1.0)
    dropout_between: float = Field(default=0.0, ge=0.0, lt=1.0)
    dropout_output: float = Field(default=0.0, ge=0.0, lt=1.0)
    locked: bool = False
    recurrent_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    weight_drop: float = Field(default=0.0, ge=0.0, lt=1.0)
    zoneout: float = Field(default=0.0, ge=0.0, lt=1.0)
    zoneout_cell: float = Field(default=0.0, ge=0.0, lt=1.0)
    layer_norm: bool = False
    layer_norm_state: bool = False
    peephole: bool = False
    coupled_gates: bool = False
    projection: int = Field(default=0, ge=0)
    cell_clip: float = Field(default=0.0, ge=0.0)
    state_clip: float = Field(default=0.0, ge=0.0)
    reset_before: bool = False
    residual: bool = False
    tied: bool = False
    adaptive_input: bool = False
    head_bias: bool = True
    init: Literal["uniform", "xavier", "he", "orthogonal", "torch"] = "uniform"
    init_scale: float = Field(default=0.1, gt=0.0)
    init_bias: Literal["zero", "uniform"] = "zero"
    forget_bias: float = 0.0

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError(
                f"hidden_sizes must be one or more positive widths, got {list(self.hidden_sizes)}"
            )
        return self


class HeadConfig(_Section):
    """The output layer: `full` is the exact softmax over the whole vocabulary, `adaptive` has rare
    words in clusters of their own.

    `mixture` is that of so many `experts`, each a softmax over the whole vocabulary.
    `sampled`, `nce` and `negative-sampling` learn from `samples` tokens a step, and are evaluated
    as `full` is; see `pynlm.heads.SampledHead` and `pynlm.heads.NCE` for their options.
    `label_smoothing` and `z_loss` change what is minimised in training, never a reported loss.
    `gradient_filter` > 0 makes gradients approximate, see `pynlm.heads.Full`.
    `cutoffs` are the first ids of the adaptive softmax's clusters, each with `div_value` times
    fewer dimensions than the one before; None: they are chosen from the training text's counts.
    `hierarchical` is a softmax down a tree over the vocabulary: by `tree` of the counts, with nodes
    of `arity` children, in so many frequency `classes`, or from a file of `clusters`.
    """

    kind: Literal[
        "full", "adaptive", "hierarchical", "mixture", "sampled", "nce", "negative-sampling"
    ] = "full"
    label_smoothing: float = Field(default=0.0, ge=0.0, le=1.0)
    z_loss: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    gradient_filter: float = Field(default=0.0, ge=0.0, le=1.0)
    cutoffs: tuple[int, ...] | None = None
    div_value: float = Field(default=4.0, ge=1.0, allow_inf_nan=False)
    tree: Literal["huffman", "balanced", "classes", "clusters"] = "huffman"
    arity: int = Field(default=2, ge=2)
    classes: int | None = Field(default=None, ge=1)
    clusters: str | None = None
    experts: int = Field(default=10, ge=1)
    samples: int = Field(default=1024, ge=1)
    sampler: Literal["log-uniform", "unigram", "uniform"] = "log-uniform"
    alpha: float = Field(default=0.75, ge=0.0, allow_inf_nan=False)
    unique: bool = True
    remove_hits: bool | None = None
    log_z: float | str | None = None


class TrainConfig(_Section):
    """Batches, loss, clipping and how often a run is saved.

    `loss` is the mean over a batch's tokens, or ("sum_time") the sum over time and mean over rows,
    which makes the gradient `bptt` times larger: Zaremba's rate 1.0 means the latter.
    `valid_stripes` > 1 validates faster on parallel stripes while training, a little
    pessimistically; the figures printed at the end always come from one stripe.
    `math` is what products of float32 numbers are computed in on a GPU, with float32 sums. With
    "fp16" the loss is scaled, and a step whose gradient overflows updates nothing.
    `graph`: on a GPU steps that are all alike are recorded once, as a CUDA graph, and repeated, to
    the same bits (see `pynlm.train.graphs`); False where that does harm.
    """

    batch_size: int = Field(default=20, ge=1)
    bptt: int = Field(default=35, ge=1)
    epochs: int = Field(default=10, ge=1)
    loss: Literal["mean", "sum_time"] = "mean"
    clip_norm: float | None = Field(default=None, gt=0.0)
    clip_value: float | None = Field(default=None, gt=0.0)
    dtype: Literal["float32", "float64"] = "float32"
    math: Literal["float32", "tf32", "bf16", "fp16"] = "float32"
    graph: bool = True
    valid_stripes: int = Field(default=1, ge=1)
    checkpoint_seconds: float = Field(default=60.0, ge=0.0)
    log_every: int = Field(default=50, ge=1)
    seed: int = Field(default=1, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.math != "float32" and self.dtype != "float32":
            raise ValueError(f"math = {self.math!r} needs dtype = 'float32', got {self.dtype!r}")
        return self


class OptimiserConfig(_Section):
    """Update rule; formulas are `torch.optim`'s."""

    kind: Literal["sgd", "momentum", "adam", "adamw", "adagrad"] = "sgd"
    lr: float = Field(default=1.0, gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)

    @model_validator(mode="after")
    def _check(self) -> OptimiserConfig:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        return self


class ScheduleConfig(_Section):
    """How the learning rate falls.

    step: constant for `start_epoch` epochs, then multiplied by `decay` each epoch.
    plateau: multiplied by `decay` after `patience` epochs without a better validation loss.
    Both stop at `min_lr`. `early_stop` epochs without improvement end the run (0: never).
    """

    kind: Literal["constant", "step", "plateau"] = "constant"
    decay: float = Field(default=0.5, gt=0.0, le=1.0)
    start_epoch: int = Field(default=1, ge=0)
    patience: int = Field(default=1, ge=1)
    min_lr: float = Field(default=0.0, ge=0.0)
    early_stop: int = Field(default=0, ge=0)


class FigureConfig(_Section):
    """The figure that a run is compared with: a published one, or one that pynlm itself reached."""

    kind: Literal["published", "known"] = "published"
    metric: Literal["perplexity", "nats_per_token", "bits_per_token"] = "perplexity"
    corpus: str
    valid: float | None = Field(default=None, gt=0.0)
    test: float | None = Field(default=None, gt=0.0)
    source: str

    @property
    def target(self) -> tuple[float | None, str]:
        """The figure as a perplexity (validation if it is known), and a label for it."""
        value, label = (self.valid, self.kind) if self.valid else (self.test, f"{self.kind} (test)")
        if value is None or self.metric == "perplexity":
            return value, label
        return math.exp(value * (math.log(2.0) if self.metric == "bits_per_token" else 1.0)), label


class Recipe(_Section):
    """Everything that is decided about a run."""

    name: str
    description: str = ""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    figure: FigureConfig | None = None

    @property
    def figure_applies(self) -> bool:
        """Whether the run is on the corpus that the figure is about."""
        return self.figure is not None and self.figure.corpus == self.data.corpus


_SECTIONS: dict[str, type[_Section]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "head": HeadConfig,
    "train": TrainConfig,
    "optimiser": OptimiserConfig,
    "schedule": ScheduleConfig,
    "figure": FigureConfig,
}


def recipe_keys() -> list[str]:
    """All valid dotted keys, `train.bptt` style, in the order in which they are written."""
    keys = ["name", "description"]
    for section, model in _SECTIONS.items():
        keys += [f"{section}.{field}" for field in model.model_fields]
    return keys


def nearest_key(key: str) -> str | None:
    """The valid key that `key` was most likely meant to be, or None when nothing is close."""
    keys = recipe_keys()
    last = key.rpartition(".")[2]
    # The right name in the wrong section ("train.lr") is likelier than a misspelt neighbour.
    same_name = [k for k in keys if k.rpartition(".")[2] == last]
    if same_name:
        return same_name[0]
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if close:
        return close[0]
    names = {k.rpartition(".")[2]: k for k in reversed(keys)}
    close = difflib.get_close_matches(last, list(names), n=1, cutoff=0.6)
    return names[close[0]] if close else None


def _unknown_key(key: str, where: str) -> RecipeError:
    nearest = nearest_key(key)
    hint = f"; did you mean {nearest!r}?" if nearest else f"; valid keys: {', '.join(_SECTIONS)}"
    return RecipeError(f"{where}: unknown recipe key {key!r}{hint}")


def parse_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Check a nested mapping as a recipe.

    Parameters
    ----------
    values : the sections as TOML gives them.
    where : file or argument to name in errors.

    Raises
    ------
    RecipeError : for an unknown key (with the nearest valid one) or a value that cannot be used.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise _unknown_key(key, where) from None
        if first["type"] == "missing":
            raise RecipeError(f"{where}: the key {key!r} is missing") from None
        if first["type"] == "value_error":  # of a section's own check, which names keys and values
            raise RecipeError(f"{where}: {key}: {first['ctx']['error']}") from None
        raise RecipeError(f"{where}: {key} = {first.get('input')!r}: {first['msg']}") from None


def recipe_names() -> list[str]:
    """Names of the recipes that come with pynlm, sorted."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; RecipeError names the file (and the line of a syntax error)."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"recipe file {path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a TOML file: {error}") from None


def load_recipe(recipe: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """A recipe by name, by TOML file, from a mapping, or as it is.

    Examples
    --------
    >>> load_recipe("zaremba-small").model.hidden_sizes
    (200, 200)
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return parse_recipe(recipe, "recipe")
    text = str(recipe)
    if isinstance(recipe, Path) or text.endswith(".toml") or "/" in text:
        path = Path(recipe)
        return parse_recipe({"name": path.stem, **read_toml(path)}, str(path))
    path = RECIPE_FOLDER / f"{text}.toml"
    if not path.is_file():
        names = recipe_names()
        close = difflib.get_close_matches(text, names, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"no recipe named {text!r}{hint} (recipes: {', '.join(names)})")
    return parse_recipe(read_toml(path), str(path.name))


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as TOML, and as plain text when it is no TOML."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise RecipeError(f"override {text!r} must look like section.key=value")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def apply_overrides(
    recipe: Recipe, overrides: Iterable[str | tuple[str, Any]] | Mapping[str, Any]
) -> Recipe:
    """A recipe with some keys changed.

    Parameters
    ----------
    overrides : `"train.bptt=20"` strings, `("train.bptt", 20)` pairs, or a mapping of dotted keys.
        The value `none` (or None) clears an optional key.

    Examples
    --------
    >>> apply_overrides(load_recipe("default"), ["train.bptt=20"]).train.bptt
    20
    """
    values = to_mapping(recipe)
    items = overrides.items() if isinstance(overrides, Mapping) else overrides
    known = set(recipe_keys())
    for item in items:
        key, value = parse_override(item) if isinstance(item, str) else item
        if key not in known:
            raise _unknown_key(key, "override")
        section, _, name = key.rpartition(".")
        target = values.setdefault(section, {}) if section else values
        if value is None or value == "none":
            target.pop(name, None)
        else:
            target[name] = value
    return parse_recipe(values, "override")


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Nested plain values, absent ones left out: what TOML and JSON can hold."""
    return recipe.model_dump(mode="json", exclude_none=True)


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML text, every decided value written out."""
    return tomli_w.dumps(to_mapping(recipe))


def differing_keys(old: Recipe, new: Recipe) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, as (key, old, new)."""

    def flatten(recipe: Recipe) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in recipe.model_dump(mode="json").items():
            if key in _SECTIONS:
                fields = value or dict.fromkeys(_SECTIONS[key].model_fields)
                flat.update({f"{key}.{name}": item for name, item in fields.items()})
            else:
                flat[key] = value
        return flat

    before, after = flatten(old), flatten(new)
    return [(key, before[key], after[key]) for key in before if before[key] != after[key]]
