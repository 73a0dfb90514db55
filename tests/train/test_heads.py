"""What a recipe says of its head: trained with, saved, loaded, and never in a reported loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pynlm.evaluate import evaluate_stream
from pynlm.heads import Adaptive, Full, HeadOptions, Mixture, choose_cutoffs
from pynlm.heads.cutoffs import TERMS
from pynlm.layers import AdaptiveEmbedding
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


ADAPTIVE = {"head.kind": "adaptive", "head.cutoffs": [3, 6], "head.div_value": 2.0}


def test_an_adaptive_head_chooses_its_cutoffs(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They go into config.toml; the run loads and goes on with them.

    Of so few words only products may cost, for clusters to be worth it.
    """
    prices = {**dict.fromkeys(TERMS, 0.0), "products": 1e-9}
    table = {"softmax": prices, "projection": prices}
    chosen = {"head.kind": "adaptive", "head.div_value": 2.0}
    first = make(overrides={**chosen, "train.epochs": 1})
    with monkeypatch.context() as other:
        other.setattr("pynlm.heads.cutoffs._table", lambda: table)
        first.run()
        want = choose_cutoffs(first.tokenizer.counts, 7, 24, 2.0)
    assert len(want) == 1 and 1 <= want[0] < first.tokenizer.vocab_size
    assert load_recipe(tmp_path / "run" / "config.toml").head.cutoffs == want
    model, _, _ = load_model(tmp_path / "run")
    assert isinstance(model.head, Adaptive) and model.head.cutoffs == want
    # Without the table none would be chosen, but the run has its own.
    again = make(overrides={**chosen, "train.epochs": 2}, resume=True)
    again.run()
    assert again.recipe.head.cutoffs == want
    more = want[0] + 1
    with pytest.raises(ResumeError, match=rf"cutoffs was \[{want[0]}\], now \[{more}\]"):
        make(overrides={**chosen, "head.cutoffs": [more]}, resume=True).run()


def test_an_adaptive_head_may_choose_no_clusters(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    """As it does for so few words; the empty choice is one that a run is held to."""
    chosen = {"head.kind": "adaptive"}
    whole = make("whole", overrides={**chosen, "train.epochs": 2}).run()
    make("broken", overrides={**chosen, "train.epochs": 1}).run()
    assert load_recipe(tmp_path / "broken" / "config.toml").head.cutoffs == ()
    again = make("broken", overrides={**chosen, "train.epochs": 2}, resume=True)
    again.run()
    assert again.recipe.head.cutoffs == ()
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "broken")
    model, tokenizer, _ = load_model(tmp_path / "broken")
    assert isinstance(model.head, Adaptive) and model.head.cutoffs == () == model.head.tails
    eos = tokenizer.eos_id
    found = evaluate_stream(model, again.data.valid, eos, eos_id=eos)
    assert whole.valid is not None and found.nats_per_token == whole.valid.nats_per_token
    with pytest.raises(ResumeError, match=r"head\.cutoffs was \[\], now \[4\]"):
        make("broken", overrides={**chosen, "head.cutoffs": [4]}, resume=True).run()


def test_a_resumed_adaptive_run_has_the_same_bits(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    make("whole", overrides={**ADAPTIVE, "train.epochs": 2}).run()
    make("broken", overrides={**ADAPTIVE, "train.epochs": 1}).run()
    make("broken", overrides={**ADAPTIVE, "train.epochs": 2}, resume=True).run()
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "broken")


@pytest.mark.parametrize("tied", [False, True])
def test_adaptive_input_trains_and_loads(make: Make, tied: bool, tmp_path: Path) -> None:
    shape = {"model.adaptive_input": True, "model.tied": tied, "model.hidden_sizes": [9, 6]}
    shape["train.epochs"] = 10
    trainer = make(overrides={**ADAPTIVE, **shape})
    result = trainer.run()
    model, tokenizer, _ = load_model(tmp_path / "run")
    assert isinstance(model.embedding, AdaptiveEmbedding) and isinstance(model.head, Adaptive)
    shared = [t.weight for t in model.embedding.tables] == model.head.tables
    assert shared is tied and ("embedding.0.0.weight" in model.parameters) is not tied
    again = evaluate_stream(model, trainer.data.valid, tokenizer.eos_id, eos_id=tokenizer.eos_id)
    assert result.valid is not None
    assert again.nats_per_token == result.valid.nats_per_token
    assert result.valid.perplexity < result.unigram_perplexity


def test_cutoffs_beyond_the_vocabulary_leave_no_run(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Adaptive: cutoffs\[1\] must be in \[1, \d+\], got 900"):
        make(overrides={**ADAPTIVE, "head.cutoffs": [3, 900]}).run()
    assert not (tmp_path / "run" / "config.toml").exists()


def test_hint_at_large_vocabularies(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = "--set head.kind=adaptive"
    make("small", quiet=False, overrides={"train.epochs": 1}).run()
    assert hint not in capsys.readouterr().out
    monkeypatch.setattr("pynlm.train.settings.MANY_WORDS", 5)
    make("large", quiet=False, overrides={"train.epochs": 1}).run()
    assert hint in capsys.readouterr().out
    make("adaptive", quiet=False, overrides={**ADAPTIVE, "train.epochs": 1}).run()
    said = capsys.readouterr().out
    assert hint not in said and "adaptive softmax, cutoffs [3, 6]" in said


def test_ids_that_are_not_sorted_need_cutoffs(make: Make, tmp_path: Path) -> None:
    ids = {"text": [0, 1, 1] * 100, "valid": [1, 0, 1], "test": None}
    with pytest.raises(ValueError, match="sorted by falling count, which those of level 'integer'"):
        make(**ids, overrides={"head.kind": "adaptive"}).run()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {**ADAPTIVE, "model.tied": True},
            "tied must be false for head kind 'adaptive' without",
        ),
        ({"model.adaptive_input": True}, "adaptive_input must be false for head kind 'full'"),
        (
            {**ADAPTIVE, "head.div_value": 1000.0},
            r"Adaptive: div_value=1000 leaves tail 0 no dimension: 7 // 1000\^1 = 0",
        ),
        (
            {**ADAPTIVE, "model.adaptive_input": True, "head.div_value": 2.5},
            r"AdaptiveEmbedding: div_value=2.5 leaves tail 1 no dimension: 6 // 2.5\^2 = 0",
        ),
        ({"head.kind": "sampled", "head.alpha": 0.3}, "alpha is not defined for sampler 'log-unif"),
        ({**ADAPTIVE, "head.cutoffs": [6, 3]}, "cutoffs must be strictly increasing"),
        ({"head.cutoffs": [3, 6]}, "cutoffs is not defined for kind 'full'"),
        ({**ADAPTIVE, "head.z_loss": 0.1}, "z_loss is not defined for kind 'adaptive'"),
    ],
)
def test_options_that_contradict(make: Make, overrides: dict[str, Any], message: str) -> None:
    """They are refused before any text is read."""
    with pytest.raises(ValueError, match=message):
        make(overrides=overrides)
