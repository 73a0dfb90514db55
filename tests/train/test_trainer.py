"""A run from recipe to result: files, report, figures, early stop, NaN, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm.train import RecipeError, Trainer, TrainingDiverged, load_model, run_training
from pynlm.train.config import Recipe, load_recipe, to_mapping, to_toml
from pynlm.train.data import make_batches, unigram_perplexity
from pynlm.train.log import read_log

Make = Callable[..., Trainer]


def test_a_run_leaves_what_it_promises(make: Make, tmp_path: Path) -> None:
    trainer = make()
    result = trainer.run()
    run = tmp_path / "run"
    assert result.out == run
    for name in ("config.toml", "tokenizer.json", "log.jsonl"):
        assert (run / name).is_file()
    for which in ("best", "last"):
        assert (run / which / "model.safetensors").is_file()
        assert (run / which / "state.json").is_file()
    assert result.stopped == "finished"
    assert not result.interrupted
    assert result.epochs == 3
    assert result.valid is not None
    assert result.test is not None
    assert result.tokens_per_second > 0.0
    log = read_log(run / "log.jsonl")
    events = [event["event"] for event in log]
    assert events[0] == "start"
    assert events[-1] == "finished"
    epochs = [event for event in log if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2, 3]
    assert epochs[-1]["tokens"] == result.tokens
    assert epochs[result.best_epoch - 1]["valid_nats"] == result.valid.nats_per_token
    steps = [event for event in log if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(4, result.steps + 1, 4))
    # The trainer ends with the best model, which is the one on the disk.
    model, tokenizer, recipe = load_model(run)
    assert model.parameters.data.tobytes() == trainer.model.parameters.data.tobytes()
    assert tokenizer.digest() == trainer.tokenizer.digest()
    assert recipe == result.recipe


def test_what_there_is_to_learn_is_learnt(make: Make) -> None:
    easy = {f"model.dropout_{place}": 0.0 for place in ("input", "between", "output")}
    result = make(overrides={**easy, "train.epochs": 12, "model.hidden_sizes": [16]}).run()
    assert result.test is not None
    assert result.test.perplexity < 0.5 * result.unigram_perplexity


def test_five_lines_of_python(texts: dict[str, Path], tmp_path: Path) -> None:
    overrides = ["model.hidden_sizes=[8]", "train.epochs=1", "train.bptt=5", "train.batch_size=4"]
    result = run_training(
        "default",
        text=str(texts["text"]),
        out=tmp_path / "run",
        seed=3,
        overrides=overrides,
        quiet=True,
    )
    assert result.recipe.train.seed == 3
    assert result.valid_perplexity is not None
    assert result.test is None
    assert result.gap is None
    assert (tmp_path / "run" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_the_seed_decides_the_model(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    short = {"train.epochs": 1}
    make("a", overrides=short, seed=7).run()
    make("b", overrides=short, seed=7).run()
    make("c", overrides=short, seed=8).run()
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    assert weights_of(tmp_path / "a") != weights_of(tmp_path / "c")


def test_plain_lines_are_printed(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pynlm.train.log.PLAIN_SECONDS", 0.0)
    result = make(quiet=False).run()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("recipe tiny, seed 1: lstm 9-7") for line in lines)
    assert any("tokens/s" in line and "left" in line and "loss" in line for line in lines)
    assert any(line.startswith("epoch 3/3  train") and "valid" in line for line in lines)
    assert any(line.startswith("unigram perplexity of the same test text") for line in lines)
    assert f"test perplexity {result.test_perplexity:.2f}" in "\n".join(lines)
    make("other").run()
    assert capsys.readouterr().out == ""


def test_a_bar_is_drawn_on_a_terminal(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("pynlm.train.log.BAR_SECONDS", 0.0)
    make(quiet=False, overrides={"train.epochs": 1}).run()
    out = capsys.readouterr().out
    assert "epoch 1/1" in out
    assert out.count("tokens/s") > 5  # drawn at steps, not at the epoch's end alone
    assert "test perplexity" in out


def test_the_gap_to_the_published_figure(make: Make, tiny: dict[str, Any]) -> None:
    result = make().run()
    assert (result.figure, result.gap, result.gaps) == (None, None, {})
    figure = {"corpus": "mine", "valid": 5.0, "test": 4.0, "source": "a paper"}
    values = {**result.recipe.model_dump(), "figure": figure}
    values["data"] = {**values["data"], "corpus": "mine"}
    named = type(result)(**{**vars(result), "recipe": Recipe.model_validate(values)})
    assert named.gap == pytest.approx(result.test_perplexity - 4.0)
    assert set(named.gaps) == {"valid", "test"}
    report = "\n".join(named.lines())
    assert f"published test perplexity 4: gap {named.gap:+.2f}" in report
    assert "source: a paper" in report
    figure["metric"] = "nats_per_token"
    values["figure"] = {**figure, "test": None}
    named = type(result)(**{**vars(result), "recipe": Recipe.model_validate(values)})
    assert result.valid is not None
    assert named.gap == pytest.approx(result.valid.nats_per_token - 5.0)


@pytest.mark.parametrize(
    ("arguments", "applies"),
    [
        ({}, True),
        ({"seed": 7}, True),
        ({"overrides": ["train.dtype=float64", "train.seed=3"]}, True),
        ({"overrides": ["train.log_every=1", "train.checkpoint_seconds=5"]}, True),
        ({"overrides": ["train.bptt=20"]}, True),  # as it was
        ({"corpus": "ptb"}, True),
        ({"corpus": "novels"}, False),
        ({"text": "ptb.train.txt"}, False),
        ({"overrides": ["data.level=char"]}, False),
        ({"overrides": ["data.min_count=2"]}, False),
        ({"overrides": ["data.max_size=5000"]}, False),
        ({"overrides": ["data.batching=sentences"]}, False),
        ({"overrides": ["model.hidden_sizes=[300]"]}, False),
        ({"overrides": ["train.epochs=1"]}, False),
        ({"overrides": ["optimiser.lr=2"]}, False),
        ({"overrides": ["schedule.decay=0.6"]}, False),
        ({"overrides": ["train.epochs=1", "figure.test=300.0"]}, True),
    ],
    ids=str,
)
def test_the_figure_is_that_of_the_recipe_as_it_stands(
    tmp_path: Path, arguments: dict[str, Any], applies: bool
) -> None:
    recipe = Trainer("zaremba-small", out=tmp_path / "run", **arguments).recipe
    assert recipe.figure_applies is applies
    # So says the run's own config.toml, too.
    assert load_recipe(to_mapping(recipe)).figure_applies is applies


def test_more_epochs_are_another_run_than_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(to_toml(load_recipe("zaremba-small")))
    for overrides, applies in (
        ([], True),
        (["train.checkpoint_seconds=5"], True),
        (["train.epochs=20"], False),
    ):
        trainer = Trainer(out=tmp_path, resume=True, overrides=overrides)
        assert trainer.recipe.figure_applies is applies


def test_early_stop(make: Make) -> None:
    overrides = {"optimiser.lr": 1e-30, "optimiser.kind": "sgd", "schedule.early_stop": 2}
    result = make(overrides={**overrides, "train.epochs": 9}).run()
    # No weight moves, so the first epoch stays the best.
    assert (result.stopped, result.epochs, result.best_epoch) == ("early stop", 3, 1)


def test_the_best_model_is_reported_not_the_last(make: Make) -> None:
    result = make(overrides={"schedule.kind": "constant", "optimiser.lr": 0.3}).run()
    log = read_log(result.out / "log.jsonl")
    losses = [event["valid_nats"] for event in log if event["event"] == "epoch"]
    assert result.valid is not None
    assert result.valid.nats_per_token == min(losses)
    assert losses.index(min(losses)) == result.best_epoch - 1


def test_stripes_are_for_choosing_only(make: Make) -> None:
    striped = make(overrides={"train.valid_stripes": 3}).run()
    whole = make("whole").run()
    assert striped.valid is not None
    assert striped.valid.stripes == 1
    assert striped.valid == whole.valid


@pytest.mark.parametrize("poison", ["loss", "gradient", "weight"])
def test_nan_stops_and_keeps_the_last_good_checkpoint(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    def on_step(progress: Any) -> None:
        if progress.step != 10:
            return
        if poison == "gradient":
            monkeypatch.setattr("pynlm.train.bptt.gradient_norm", lambda *_, **__: math.inf)
        else:
            trainer.model.parameters["head.bias"].data[0] = np.nan
            if poison == "loss":  # otherwise it is found before it is saved
                trainer.recipe.train.__dict__["checkpoint_seconds"] = 1e9

    trainer = make(overrides={"train.checkpoint_seconds": 0}, on_step=on_step)
    with pytest.raises(TrainingDiverged) as caught:
        trainer.run()
    message = str(caught.value)
    step = {"loss": "loss of step 11", "gradient": "norm of step 11", "weight": "after step 10"}
    assert step[poison] in message
    good = 10 if poison == "gradient" else 9
    assert f"the last good checkpoint is {tmp_path / 'run' / 'last'} (after step {good})" in message
    model, _, _ = load_model(tmp_path / "run", "last")
    assert np.isfinite(model.parameters.data).all()
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["event"] == "diverged"


def test_nan_between_checkpoints_names_the_step(make: Make) -> None:
    def on_step(progress: Any) -> None:
        if progress.step == 10:
            trainer.model.parameters["head.bias"].data[0] = np.inf

    trainer = make(on_step=on_step)
    message = r"loss of step 11 is nan.*no checkpoint had been saved"
    with pytest.raises(TrainingDiverged, match=message):
        trainer.run()


def test_an_explosion_is_caught(make: Make) -> None:
    wild = {"optimiser.kind": "sgd", "optimiser.lr": 1e38, "train.clip_norm": None}
    message = r"(loss|gradient's norm) of step \d+ is|not finite"
    with pytest.raises(TrainingDiverged, match=message):
        make(overrides=wild).run()


def test_the_end_is_held_out_without_a_validation_text(
    texts: dict[str, Path], tiny: dict[str, Any], tmp_path: Path
) -> None:
    trainer = Trainer(tiny, text=texts["text"], out=tmp_path / "run", quiet=True)
    trainer.run()
    data = trainer.data
    ids = data.tokenizer.encode_file(texts["text"])
    np.testing.assert_array_equal(np.concatenate([data.train, data.valid]), ids)
    assert data.train[-1] == data.tokenizer.eos_id
    assert 0 < len(data.valid) < len(ids) // 10
    assert any("held out" in note for note in data.notes)


def test_several_training_files(
    texts: dict[str, Path], tiny: dict[str, Any], tmp_path: Path
) -> None:
    both = [texts["text"], str(texts["test"])]
    trainer = Trainer(tiny, text=both, valid=texts["valid"], out=tmp_path / "run", quiet=True)
    trainer.run()
    sizes = [len(trainer.tokenizer.encode_file(path)) for path in both]
    assert len(trainer.data.train) == sum(sizes)


def test_long_sentences_are_trained_in_pieces(make: Make, texts: dict[str, Path]) -> None:
    overrides = {"data.batching": "sentences", "train.epochs": 1}
    shorter = {**overrides, "data.max_length": 4}
    whole, cut = make("whole", overrides=overrides), make("cut", overrides=shorter)
    results = [trainer.run() for trainer in (whole, cut)]
    lengths = [len(line.split()) + 1 for line in texts["text"].read_text().splitlines()]
    assert max(lengths) > 4
    rows = sum(-(-length // 4) for length in lengths)
    assert [result.steps for result in results] == [len(lengths) // 4, -(-rows // 4)]
    batches = make_batches(cut.recipe, cut.data, 0)
    assert max(len(batch.ids) for batch in batches) == 4
    # Each token is a target once, cut or not, and evaluation reads whole sentences.
    for result in results:
        assert result.tokens == sum(lengths)
        assert result.valid is not None
        assert result.valid.sentences == 15


def test_bad_input_is_named_and_loses_nothing(
    make: Make, texts: dict[str, Path], tmp_path: Path
) -> None:
    empty, bad = tmp_path / "empty.txt", tmp_path / "bad.txt"
    empty.write_text("")
    bad.write_bytes(b"the cat\nthe \xff dog\n")
    for number, (arguments, kind, message) in enumerate(
        [
            ({"text": tmp_path / "none.txt"}, FileNotFoundError, r"none.txt: no such text file"),
            ({"text": empty}, ValueError, r"empty.txt: the file is empty"),
            ({"text": bad}, ValueError, r"bad.txt: line 2, byte offset 12: byte 0xff"),
            ({"valid": tmp_path / "none.txt"}, FileNotFoundError, r"none.txt"),
        ]
    ):
        with pytest.raises(kind, match=message):
            make(f"run{number}", **arguments).run()
        assert not (tmp_path / f"run{number}" / "last").exists()


IDS = np.arange(600) * 7 % 31


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        (
            "text",
            ["train.batch_size=400"],
            r"has \d+ tokens, and batch_size \* \(bptt \+ 1\) = 400 ",
        ),
        (
            "text",
            ["train.bptt=9999"],
            r"has \d+ tokens, .* = 4 \* \(9999 \+ 1\) = 40000 are needed",
        ),
        (
            "text",
            ["train.batch_size=81", "data.batching=sentences"],
            r"has 80 sentences, and batch_size = 81 are needed",
        ),
        ("ids", ["train.batch_size=100"], r"has 600 tokens, .* = 100 \* \(6 \+ 1\) = 700 are"),
    ],
)
def test_a_corpus_shorter_than_one_batch_is_refused(
    make: Make, tmp_path: Path, source: str, overrides: list[str], message: str
) -> None:
    ids = {"text": IDS, "valid": IDS[:50], "test": None} if source == "ids" else {}
    with pytest.raises(ValueError, match=f"the corpus is shorter than one batch: it {message}"):
        make(overrides=overrides, **ids).run()
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left <= {".lock", "ids"}, "no run is left behind"


@pytest.mark.parametrize(
    ("ids", "overrides", "message"),
    [
        ({"text": [1, -2] * 99}, [], r"id -2 at position 1 is not in \[0, "),
        (
            {"text": [1, 2**40] * 99},
            [],
            r"train: train: id 1099511627776 at position 1 is too large",
        ),
        ({"valid": [1, -2]}, [], r"train: valid: id -2 at position 1 is not in \[0, 31\)"),
        ({"test": [1, 2, -1]}, [], r"train: test: id -1 at position 2 is not in \[0, 31\)"),
        ({}, ["data.max_size=30"], r"id 30 is not in \[0, 30\)"),
        ({"valid": [1, 40]}, ["data.max_size=31"], r"valid: id 40 at position 1 is not in \[0, 31"),
    ],
    ids=str,
)
def test_token_ids_out_of_range_are_refused(
    make: Make, tmp_path: Path, ids: dict[str, Any], overrides: list[str], message: str
) -> None:
    arrays: dict[str, Any] = {"text": IDS, "valid": IDS[:50], "test": None, **ids}
    with pytest.raises(IndexError, match=message):
        make(overrides=overrides, **arrays).run()
    assert not (tmp_path / "run" / "last").exists()


@pytest.mark.parametrize("recipe", ["default", "char-lstm"])
@pytest.mark.parametrize("level", ["integer", "byte"])
def test_a_recipe_trains_on_integers_and_bytes(
    make: Make, tmp_path: Path, recipe: str, level: str
) -> None:
    """The counts that `default` asks for are about its words."""
    text = tmp_path / "ids.txt"
    text.write_text(" ".join(map(str, IDS)) + "\n")
    small = [f"data.level={level}", "model.hidden_sizes=[6]", "train.epochs=1", "train.bptt=5"]
    trainer = make(recipe=recipe, text=text, valid=text, test=None, overrides=small)
    assert (trainer.recipe.data.min_count, trainer.recipe.data.max_size) == (1, None)
    trainer.run()
    assert trainer.tokenizer.vocab_size == {"integer": 32, "byte": 256}[level]
    # It goes on by the same words, or none.
    for asked in ({"recipe": recipe, "overrides": small}, {"recipe": None}):
        make(text=text, valid=text, test=None, resume=True, **asked)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.level=integer", "data.min_count=3"],
            "min_count = 3 has no meaning at level 'integer'",
        ),
        (["data.level=byte", "data.min_count=3"], "min_count = 3 has no meaning at level 'byte'"),
        (["data.level=byte", "data.max_size=9"], "max_size = 9 has no meaning at level 'byte'"),
    ],
)
def test_counts_that_a_level_does_not_have_are_refused(
    make: Make, overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=f"override: data: {message}"):
        make(recipe="default", overrides=overrides)


def test_the_number_of_integers_may_be_given(make: Make) -> None:
    ids: dict[str, Any] = {"text": IDS, "valid": IDS[:50], "test": None}
    trainer = make(recipe="default", overrides=["data.level=integer", "data.max_size=50"], **ids)
    assert trainer.recipe.data.max_size == 50
    with pytest.raises(
        ValueError, match=r"token ids are of level 'integer', got data.level = 'wor"
    ):
        make(overrides=["data.level=word"], **ids)


def test_integers_out_of_range_in_a_text_are_named(make: Make, tmp_path: Path) -> None:
    text, valid = tmp_path / "ids.txt", tmp_path / "valid.txt"
    text.write_text(" ".join(map(str, IDS)) + "\n")
    valid.write_text("1 2\n3 99\n")
    trainer = make(text=text, valid=valid, test=None, overrides=["data.level=integer"])
    with pytest.raises(
        IndexError, match=r"valid.txt: line 2, byte offset 6: id 99 is not in \[0, 3"
    ):
        trainer.run()


def test_bad_arguments_are_named(make: Make, texts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'train.lr'; did you mean 'optimiser.lr'"):
        make(overrides=["train.lr=3"])
    with pytest.raises(ValueError, match=r"device must be 'cpu' or 'cuda', got 'tpu'"):
        make(device="tpu")
    with pytest.raises(ValueError, match=r"give a corpus by name or texts, not both"):
        make(corpus="ptb")
    with pytest.raises(ValueError, match=r"valid is given, but no text to train on"):
        make(text=None)
    with pytest.raises(ValueError, match=r"all texts must be files or all token ids; valid is a"):
        make(text=np.arange(99))
    with pytest.raises(ValueError, match=r"valid must be one file, got 2"):
        make(valid=[texts["valid"], texts["test"]])
    with pytest.raises(ValueError, match=r"hidden_sizes must be ended by embedding_size=6 when"):
        make(overrides={"model.tied": True})
    with pytest.raises(ValueError, match=r"'sentences' needs a vocabulary with <eos>"):
        make(overrides={"data.batching": "sentences", "data.level": "char"}).run()
    with pytest.raises(ValueError, match=r"no text to train on; give a corpus"):
        make(text=None, valid=None, test=None).run()


def test_default_folders_are_numbered(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pynlm.train.settings import _default_folder

    monkeypatch.chdir(tmp_path)
    assert _default_folder("a-1", resume=False) == Path("runs/a-1")
    Path("runs/a-1").mkdir(parents=True)
    assert _default_folder("a-1", resume=True) == Path("runs/a-1")
    assert _default_folder("a-1", resume=False) == Path("runs/a-1-2")
    Path("runs/a-1-2").mkdir()
    assert _default_folder("a-1", resume=True) == Path("runs/a-1-2")


def test_unigram_perplexity_is_the_closed_form() -> None:
    counts = np.array([6, 3, 0])
    ids = np.array([0, 0, 1, 2], np.int32)
    p = np.array([7, 4, 1]) / 12
    expected = math.exp(-(2 * math.log(p[0]) + math.log(p[1]) + math.log(p[2])) / 4)
    assert unigram_perplexity(counts, ids) == pytest.approx(expected, rel=1e-14)


def test_long_lines_of_the_report_fit(make: Make) -> None:
    assert max(map(len, make().run().lines())) <= 110
