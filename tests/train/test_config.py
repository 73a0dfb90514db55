"""Recipes: what ships, overrides, and errors that name the key to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from pynlm.train.config import (
    Recipe,
    RecipeError,
    apply_overrides,
    differing_keys,
    load_recipe,
    nearest_key,
    parse_override,
    recipe_keys,
    recipe_names,
    to_mapping,
    to_toml,
)

SHIPPED = {
    "default",
    "zaremba-small",
    "zaremba-medium",
    "zaremba-large",
    "gru-small",
    "rnn-small",
    "word-lm-200",
    "word-lm-650",
    "char-lstm",
    "gal-variational-small",
    "lstm-layernorm-small",
}

# Nobody has published one for this size.
NO_FIGURE = {"gal-variational-small", "lstm-layernorm-small"}


def test_all_recipes_ship_and_load() -> None:
    assert set(recipe_names()) == SHIPPED
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert recipe.data.corpus
        if name in NO_FIGURE:
            assert recipe.figure is None
        else:
            assert recipe.figure is not None
            assert recipe.figure.source


@pytest.mark.parametrize(
    ("name", "hidden", "init", "bptt", "dropout", "clip", "flat", "epochs", "decay", "test"),
    [
        ("zaremba-small", 200, 0.1, 20, 0.0, 5.0, 4, 13, 0.5, 115.91),
        ("zaremba-medium", 650, 0.05, 35, 0.5, 5.0, 6, 39, 0.8, 82.07),
        ("zaremba-large", 1500, 0.04, 35, 0.65, 10.0, 14, 55, 1 / 1.15, 78.29),
    ],
)
def test_zaremba_recipes_are_the_published_ones(
    name: str,
    hidden: int,
    init: float,
    bptt: int,
    dropout: float,
    clip: float,
    flat: int,
    epochs: int,
    decay: float,
    test: float,
) -> None:
    recipe = load_recipe(name)
    model, train = recipe.model, recipe.train
    assert (model.embedding_size, model.hidden_sizes) == (hidden, (hidden, hidden))
    assert (model.init, model.init_scale, model.init_bias) == ("uniform", init, "uniform")
    assert model.forget_bias == 0.0
    assert model.dropout_input == model.dropout_between == model.dropout_output == dropout
    assert (train.batch_size, train.bptt, train.loss) == (20, bptt, "sum_time")
    assert (train.clip_norm, train.epochs) == (clip, epochs)
    assert (recipe.optimiser.kind, recipe.optimiser.lr) == ("sgd", 1.0)
    assert (recipe.schedule.kind, recipe.schedule.start_epoch) == ("step", flat)
    assert recipe.schedule.decay == pytest.approx(decay, rel=1e-12)
    assert recipe.figure is not None
    assert recipe.figure.test == test


def test_a_recipe_survives_toml(tmp_path: Path) -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        path = tmp_path / f"{name}.toml"
        path.write_text(to_toml(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe


def test_overrides_of_every_kind() -> None:
    recipe = load_recipe("zaremba-small")
    changed = apply_overrides(
        recipe,
        ["train.bptt=5", "model.hidden_sizes=[3, 4]", "model.cell=gru", "train.clip_norm=none"],
    )
    assert changed.train.bptt == 5
    assert changed.model.hidden_sizes == (3, 4)
    assert changed.model.cell == "gru"
    assert changed.train.clip_norm is None
    assert apply_overrides(recipe, {"train.bptt": 5}).train.bptt == 5
    assert apply_overrides(recipe, [("train.bptt", 5)]).train.bptt == 5
    assert recipe.train.bptt == 20, "the recipe itself is unchanged"


def test_values_are_read_as_toml_or_text() -> None:
    assert parse_override("a.b=1e-3") == ("a.b", 1e-3)
    assert parse_override("a.b = true") == ("a.b", True)
    assert parse_override("a.b=plain text") == ("a.b", "plain text")
    with pytest.raises(RecipeError, match=r"'train.bptt' must look like section.key=value"):
        parse_override("train.bptt")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.btpt", "train.bptt"),
        ("train.lr", "optimiser.lr"),
        ("optimizer.lr", "optimiser.lr"),
        ("lr", "optimiser.lr"),
        ("model.hidden_size", "model.hidden_sizes"),
        ("train.batchsize", "train.batch_size"),
        ("train.patience", "schedule.patience"),
    ],
)
def test_unknown_keys_name_the_nearest(key: str, nearest: str) -> None:
    assert nearest_key(key) == nearest
    with pytest.raises(RecipeError, match=f"unknown recipe key '{key}'; did you mean '{nearest}'"):
        apply_overrides(load_recipe("default"), [f"{key}=1"])


def test_unknown_keys_in_a_file_name_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nbatchsize = 3\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine.toml: unknown .*'train.batchsize'; did you mean"):
        load_recipe(path)
    path.write_text("[training]\nbptt = 3\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"unknown recipe key 'training'"):
        load_recipe(path)
    path.write_text("[train]\nbptt = 20\n", encoding="utf-8")
    assert load_recipe(path).name == "mine"


def test_bad_values_and_files_are_named(tmp_path: Path) -> None:
    recipe = load_recipe("default")
    with pytest.raises(RecipeError, match=r"train.bptt = 0"):
        apply_overrides(recipe, ["train.bptt=0"])
    with pytest.raises(RecipeError, match=r"override: model: hidden_sizes must be one or"):
        apply_overrides(recipe, ["model.hidden_sizes=[]"])
    with pytest.raises(RecipeError, match=r"no recipe named 'zaremba'; did you mean 'zaremba-"):
        load_recipe("zaremba")
    with pytest.raises(RecipeError, match=r"absent.toml does not exist"):
        load_recipe(tmp_path / "absent.toml")
    path = tmp_path / "broken.toml"
    path.write_text("[train\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"broken.toml: not a TOML file: .*line 1"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"the key 'name' is missing"):
        load_recipe({"train": {}})


def test_a_longest_sentence_needs_sentences() -> None:
    recipe = load_recipe("default")
    message = r"override: data: max_length = 9 cuts sentences, so it needs batching = 'sent"
    with pytest.raises(RecipeError, match=message):
        apply_overrides(recipe, ["data.max_length=9"])
    both = ["data.max_length=9", "data.batching=sentences"]
    assert apply_overrides(recipe, both).data.max_length == 9
    with pytest.raises(RecipeError, match=r"data.max_length = 0"):
        apply_overrides(recipe, ["data.max_length=0", "data.batching=sentences"])


def test_differences_are_listed_by_key() -> None:
    old = load_recipe("default")
    new = apply_overrides(old, ["train.bptt=7", "data.min_count=9"])
    assert differing_keys(old, old) == []
    assert differing_keys(old, new) == [
        ("data.min_count", old.data.min_count, 9),
        ("train.bptt", old.train.bptt, 7),
    ]
    without = Recipe.model_validate({**to_mapping(old), "figure": None})
    assert all(key.startswith("figure.") for key, _, _ in differing_keys(old, without))


def test_keys_are_dotted() -> None:
    assert {"name", "train.bptt", "figure.source", "schedule.early_stop"} <= set(recipe_keys())
