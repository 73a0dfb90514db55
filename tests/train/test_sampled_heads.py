"""Runs with heads that learn from samples: what they learn, report, save, resume and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pynlm import LanguageModel
from pynlm.evaluate import NoPerplexity, TrainingLoss, evaluate_sentences, evaluate_stream
from pynlm.evaluate.report import to_json, to_text
from pynlm.heads import NCE, NegativeSampling, Sampled
from pynlm.train import Trainer, load_model
from pynlm.train.log import read_log

Make = Callable[..., Trainer]
CLASSES = {"sampled": Sampled, "nce": NCE, "negative-sampling": NegativeSampling}


def settings(kind: str, **more: Any) -> dict[str, Any]:
    return {"head.kind": kind, "head.samples": 5, "head.sampler": "unigram", **more}


@pytest.mark.parametrize("options", [{}, {"model.tied": True, "head.unique": False}])
@pytest.mark.parametrize("kind", ["sampled", "nce"])
def test_the_exact_perplexity_falls(
    make: Make, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    if "model.tied" in options:
        options = {**options, "model.hidden_sizes": [9, 6]}
    dropped = dict.fromkeys(("input", "between", "output"), 0.0)
    plain = {f"model.dropout_{place}": p for place, p in dropped.items()}
    constant = {"schedule.kind": "constant", "train.epochs": 15, "optimiser.weight_decay": 0.0}
    result = make(overrides=settings(kind, **options, **plain, **constant)).run()
    epochs = [e["valid_perplexity"] for e in read_log(tmp_path / "run" / "log.jsonl") if
              e["event"] == "epoch"]  # fmt: skip
    assert epochs[-1] < 0.8 * epochs[0] and epochs[-1] < 0.8 * result.unigram_perplexity
    assert result.valid_perplexity == pytest.approx(min(epochs))


@pytest.mark.parametrize("kind", CLASSES)
def test_resumed_is_bit_identical(
    make: Make, weights_of: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    overrides = settings(kind, **({"head.log_z": "learned"} if kind == "nce" else {}))
    make("whole", overrides={**overrides, "train.epochs": 2}).run()
    make("parts", overrides={**overrides, "train.epochs": 1}).run()
    make("parts", overrides={**overrides, "train.epochs": 2}, resume=True).run()
    make("other", overrides={**overrides, "train.epochs": 2, "train.seed": 2}).run()
    whole, parts, other = (weights_of(tmp_path / name) for name in ("whole", "parts", "other"))
    assert whole == parts != other


@pytest.mark.parametrize("kind", ["sampled", "nce"])
def test_training_losses_are_no_perplexities(
    make: Make, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pynlm.train.log.PLAIN_SECONDS", 0.0)
    make(overrides=settings(kind), quiet=False).run()
    out = capsys.readouterr().out
    assert "train (loss " in out and "ppl" not in out and "validation perplexity" in out
    for event in read_log(tmp_path / "run" / "log.jsonl"):
        if event["event"] == "epoch":
            assert event["train_perplexity"] is None and event["train_nats"] > 0
            assert event["valid_perplexity"] > 1


def test_the_curve_has_no_training_losses(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    trainer = make(overrides=settings("sampled"))
    monkeypatch.setattr(
        "pynlm.train.trainer.draw_curve", lambda *args, **given: drawn.append(given)
    )
    trainer.run()
    assert drawn and not any(given["training"] for given in drawn)
    monkeypatch.undo()
    from pynlm.train.curve import draw_curve

    pytest.importorskip("matplotlib")
    log, png = tmp_path / "run" / "log.jsonl", tmp_path / "curve.png"
    assert draw_curve(log, png, title="sampled", training=False) is None
    assert png.stat().st_size > 1000


def test_nce_reports_log_z(
    make: Make, tmp_path: Path, texts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = make(overrides=settings("nce"), quiet=False).run()
    assert result.valid is not None and result.valid.log_z_mean is not None
    assert f"validation log Z: mean {result.valid.log_z_mean:.4f}" in capsys.readouterr().out
    lm = LanguageModel.load(tmp_path / "run")
    one, parts = lm.evaluate(texts["test"]), lm.evaluate(texts["test"], chunk=7)
    record = json.loads(to_json(one))
    assert record["log_z_variance"] >= 0 and "mean log Z" in to_text(one, "x")
    sentences = lm.evaluate(texts["test"], carry=False)
    assert sentences.log_z_mean is not None
    for name in ("nats", "log_z_mean", "log_z_variance"):
        assert getattr(parts, name) == pytest.approx(getattr(one, name), rel=1e-4)


def test_other_heads_report_no_log_z(make: Make) -> None:
    result = make(overrides=settings("sampled")).run()
    assert result.valid is not None and result.valid.log_z_mean is None
    assert result.valid.to_dict()["log_z_mean"] is None


@pytest.mark.parametrize("kind", CLASSES)
def test_a_run_is_loaded(make: Make, tmp_path: Path, kind: str) -> None:
    make(overrides=settings(kind)).run()
    lm = LanguageModel.load(tmp_path / "run")
    assert type(lm.model.head) is CLASSES[kind]
    assert lm.generate("the", 5, seed=1).startswith("the")
    logp = lm.log_prob(lm.start())
    assert logp.shape == (1, lm.tokenizer.vocab_size)


def test_negative_sampling_has_no_perplexity(
    make: Make, tmp_path: Path, texts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = make(overrides=settings("negative-sampling"), quiet=False).run()
    out = capsys.readouterr().out
    assert "perplexity" not in out.replace("which has no perplexity", "").replace(
        "unigram perplexity", ""
    ).replace("negative-sampling has no perplexity", "")
    assert result.valid_perplexity is None and result.test_perplexity is None
    assert result.valid is not None and result.gaps == {}
    assert json.loads(to_json(result.valid))["loss"] == "negative-sampling"
    with pytest.raises(NoPerplexity, match="the loss of negative-sampling is no likelihood"):
        assert result.valid.perplexity
    epochs = [e for e in read_log(tmp_path / "run" / "log.jsonl") if e["event"] == "epoch"]
    assert all(e["valid_perplexity"] is None and e["valid_nats"] > 0 for e in epochs)
    lm = LanguageModel.load(tmp_path / "run")
    message = "evaluate_stream: a model trained by NegativeSampling has no perplexity"
    with pytest.raises(NoPerplexity, match=message):
        lm.perplexity(texts["test"])
    with pytest.raises(NoPerplexity, match=r"evaluate_sentences: .*NegativeSampling"):
        lm.evaluate(texts["test"], carry=False)
    for carry in (False, True):
        message = "^score: a model trained by NegativeSampling has no perplexity"
        with pytest.raises(NoPerplexity, match=message):
            lm.score(texts["test"], carry=carry)


def test_the_loss_that_chooses_does_not_depend_on_how_a_text_is_cut(
    make: Make, tmp_path: Path
) -> None:
    trainer = make(overrides=settings("negative-sampling"))
    trainer.run()
    model, tokenizer, _ = load_model(tmp_path / "run")
    loss, ids, eos = TrainingLoss(model, seed=1), trainer.data.valid, tokenizer.eos_id
    one = evaluate_stream(loss, ids, eos)
    assert evaluate_stream(loss, ids, eos, chunk=7).nats == pytest.approx(one.nats, rel=1e-5)
    apart = evaluate_sentences(loss, ids, eos, eos)
    assert evaluate_sentences(loss, ids, eos, eos, chunk=20).nats == pytest.approx(
        apart.nats, rel=1e-5
    )


def test_more_samples_than_tokens_are_refused_before_a_run_begins(
    make: Make, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="Sampled: samples must be at most V=12 when they are"):
        make(overrides=settings("sampled", **{"head.samples": 1000})).run()
    assert not (tmp_path / "run" / "config.toml").exists()
    make(overrides=settings("sampled", **{"head.samples": 1000, "head.unique": False})).run()
