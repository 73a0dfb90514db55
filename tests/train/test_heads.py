"""What a recipe says of its head: trained with, saved, loaded, and never in a reported loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pynlm.evaluate import evaluate_stream
from pynlm.heads import Full, HeadOptions, Mixture
from pynlm.models import RecurrentLM
from pynlm.train import RecipeError, Trainer, load_model
from pynlm.train.config import apply_overrides, load_recipe
from pynlm.train.settings import ResumeError, model_config

Make = Callable[..., Trainer]
SMOOTHED = {"head.label_smoothing": 0.2, "head.z_loss": 0.01}


def test_a_penalised_run_reports_the_plain_loss(make: Make, tmp_path: Path) -> None:
    trainer = make(overrides=SMOOTHED)
    result = trainer.run()
    model, tokenizer, recipe = load_model(tmp_path / "run")
    assert recipe.head.label_smoothing == 0.2
    assert model.config.head == HeadOptions(label_smoothing=0.2, z_loss=0.01)
    plain = RecurrentLM(replace(model.config, head=HeadOptions()))
    plain.load_state_dict(model.state_dict())
    assert result.valid is not None
    again = evaluate_stream(plain, trainer.data.valid, tokenizer.eos_id, eos_id=tokenizer.eos_id)
    assert again.nats_per_token == result.valid.nats_per_token


def test_what_is_minimised_decides_the_weights(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    for name, value in {"plain": 0.0, "named": 0.0, "smoothed": 0.1}.items():
        chosen = {} if name == "plain" else {"head.label_smoothing": value}
        make(name, overrides={"train.epochs": 1, **chosen}).run()
    plain, named, smoothed = (weights_of(tmp_path / n) for n in ("plain", "named", "smoothed"))
    assert plain == named != smoothed


def test_a_temperature_is_part_of_the_model(make: Make, tmp_path: Path) -> None:
    make(overrides={"head.temperature": 2.0, "train.epochs": 1}).run()
    model, _, _ = load_model(tmp_path / "run")
    assert isinstance(model.head, Full) and model.head.temperature == 2.0


def test_a_mixture_is_trained_and_saved(make: Make, tmp_path: Path) -> None:
    chosen = {"head.kind": "mixture", "head.experts": 3}
    result = make(overrides=chosen).run()
    model, _, recipe = load_model(tmp_path / "run")
    assert isinstance(model.head, Mixture) and model.head.experts == recipe.head.experts == 3
    assert result.valid is not None and result.valid.perplexity < result.unigram_perplexity


def test_a_run_goes_on_with_the_head_it_began_with(make: Make) -> None:
    make(overrides={**SMOOTHED, "train.epochs": 1}).run()
    with pytest.raises(ResumeError, match=r"head\.z_loss"):
        make(overrides={**SMOOTHED, "head.z_loss": 0.5, "train.epochs": 2}, resume=True).run()


def test_models_of_before_have_the_exact_head() -> None:
    config = model_config(load_recipe("default"), vocab_size=5)
    values = config.to_dict()
    assert values["head"] == HeadOptions().to_dict()
    assert type(config).from_dict(values) == config
    del values["head"]
    assert type(config).from_dict(values) == config


@pytest.mark.parametrize(
    "override",
    [
        "head.label_smoothing=1.5",
        "head.z_loss=-1",
        "head.temperature=0",
        "head.kind=flat",
        "head.experts=0",
    ],
)
def test_bad_options_are_named(override: str) -> None:
    key = override.partition("=")[0].replace(".", r"\.")
    with pytest.raises(RecipeError, match=key):
        apply_overrides(load_recipe("default"), [override])
