"""Perplexity: each token once, exact denominators, no dependence on chunks or batches."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from pynlm.evaluate import (
    Evaluation,
    evaluate_sentences,
    evaluate_stream,
    span_nll,
    stream_nll,
)
from pynlm.evaluate.report import rows, to_json, to_text
from pynlm.text import sentence_spans

EOS, UNK = 0, 3
IDS = np.random.default_rng(5).integers(1, 7, 203).astype(np.int32)
IDS[[10, 11, 40, 90, 91, 150, 202]] = EOS


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 203, 1024])
def test_stream_is_one_token_stepping(toy: Any, chunk: int) -> None:
    hand = toy.by_hand(IDS, EOS)
    result = evaluate_stream(toy, IDS, EOS, chunk=chunk, eos_id=EOS, unk_id=UNK)
    assert result.nats == pytest.approx(hand.sum(), rel=1e-12)
    assert result.tokens == 203
    assert result.state_carried
    assert toy.steps_read == 203
    assert toy.longest <= chunk
    assert result.nats_per_token == pytest.approx(hand.mean(), rel=1e-12)
    assert result.bits_per_token == pytest.approx(hand.mean() / math.log(2), rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(hand.mean()), rel=1e-12)


def test_denominators(toy: Any) -> None:
    hand = toy.by_hand(IDS, EOS)
    result = evaluate_stream(toy, IDS, EOS, eos_id=EOS, unk_id=UNK, words=196, characters=900)
    ends, unknown = IDS == EOS, IDS == UNK
    assert result.eos_tokens == 7 == ends.sum()
    assert result.unk_tokens == unknown.sum() > 0
    # without <eos>: all nats, fewer tokens; without <unk>: its nats go with its count
    assert result.perplexity_without_eos == pytest.approx(math.exp(hand.sum() / 196), rel=1e-12)
    assert result.perplexity_without_unk == pytest.approx(
        math.exp(hand[~unknown].mean()), rel=1e-12
    )
    assert result.perplexity_per_word == result.perplexity_without_eos
    assert result.bits_per_character == pytest.approx(hand.sum() / math.log(2) / 900, rel=1e-12)


def test_figures_that_do_not_exist_are_none(toy: Any) -> None:
    result = evaluate_stream(toy, IDS, EOS)
    assert result.perplexity_without_eos is None
    assert result.perplexity_without_unk is None
    assert result.perplexity_per_word is None
    assert result.bits_per_character is None
    only_eos = Evaluation(nats=3.0, tokens=2, eos_tokens=2, unk_tokens=2, unk_nats=3.0)
    assert only_eos.perplexity_without_eos is None
    assert only_eos.perplexity_without_unk is None
    assert Evaluation(nats=1e6, tokens=1).perplexity == math.inf


@pytest.mark.parametrize("stripes", [2, 3, 7, 203])
@pytest.mark.parametrize("chunk", [1, 10, 1024])
def test_stripes_score_every_token_once_and_say_so(toy: Any, stripes: int, chunk: int) -> None:
    pieces = np.array_split(IDS, stripes)
    contexts = [EOS, *(int(piece[-1]) for piece in pieces[:-1])]
    hand = sum(toy.by_hand(p, c).sum() for p, c in zip(pieces, contexts, strict=True))
    result = evaluate_stream(toy, IDS, EOS, stripes=stripes, chunk=chunk, eos_id=EOS)
    assert result.nats == pytest.approx(hand, rel=1e-12)
    assert (result.tokens, result.eos_tokens, result.stripes) == (203, 7, stripes)
    label = next(row for row in rows(result) if row[0] == "state")
    assert label[2] == f"in {stripes} stripes, each from zero: approximate"


@pytest.mark.parametrize("chunk", [1, 5, 33, 1024])
def test_sentences_start_from_zero(toy: Any, chunk: int) -> None:
    starts, lengths = sentence_spans(IDS, EOS)
    assert lengths.tolist() == [11, 1, 29, 50, 1, 59, 52]
    hand = sum(toy.by_hand(IDS[a : a + n], EOS).sum() for a, n in zip(starts, lengths, strict=True))
    result = evaluate_sentences(toy, IDS, EOS, EOS, chunk=chunk, unk_id=UNK)
    assert result.nats == pytest.approx(hand, rel=1e-12)
    assert (result.tokens, result.eos_tokens, result.sentences) == (203, 7, 7)
    assert not result.state_carried
    assert toy.steps_read == 203
    assert toy.longest <= max(chunk, 1)


def test_token_scores_stand_at_their_tokens(toy: Any) -> None:
    starts, lengths = sentence_spans(IDS, EOS)
    nll = span_nll(toy, IDS, starts, lengths, EOS, chunk=20)
    for a, n in zip(starts, lengths, strict=True):
        np.testing.assert_allclose(nll[a : a + n], toy.by_hand(IDS[a : a + n], EOS), rtol=1e-12)


def test_a_stream_can_be_continued(toy: Any) -> None:
    first, state = stream_nll(toy, IDS[:77], EOS, chunk=9)
    second, _ = stream_nll(toy, IDS[77:], int(IDS[76]), state, chunk=50)
    np.testing.assert_allclose(np.concatenate([first, second]), toy.by_hand(IDS, EOS), rtol=1e-12)


def test_progress_counts_every_token(toy: Any) -> None:
    seen: list[int] = []
    evaluate_stream(toy, IDS, EOS, chunk=50, stripes=3, progress=seen.append)
    assert sum(seen) == 203
    assert len(seen) > 3


def test_ids_may_be_memory_mapped_and_of_any_integer_type(toy: Any, tmp_path: Any) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, IDS.astype(np.int64))
    expected = evaluate_stream(toy, IDS, EOS).nats
    assert evaluate_stream(toy, np.load(path, mmap_mode="r"), EOS).nats == expected
    assert evaluate_stream(toy, IDS.tolist(), EOS, stripes=1).nats == expected


@pytest.mark.parametrize(
    ("ids", "options", "error", "message"),
    [
        ([], {}, ValueError, "ids must be a non-empty integer array"),
        ([[1]], {}, ValueError, r"got shape \(1, 1\)"),
        ([0.5], {}, TypeError, "ids must be integers, got float64"),
        ([1, 2], {"stripes": 3}, ValueError, "between 1 and the number of tokens 2, got 3"),
        ([1, 2], {"stripes": 0}, ValueError, "got 0"),
        ([1, 2], {"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
    ],
)
def test_wrong_input(
    toy: Any, ids: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate_stream(toy, ids, EOS, **options)


def test_a_broken_model_gives_no_figure(toy: Any) -> None:
    toy.embedding[2] = np.nan
    with pytest.raises(FloatingPointError, match="log-probability nan near token"):
        evaluate_stream(toy, IDS, EOS)


def test_text_report_fits_a_terminal(toy: Any) -> None:
    facts = {"words": 196, "characters": 900, "start_token": "<eos>"}
    for stripes in (1, 20):
        result = evaluate_stream(toy, IDS, EOS, eos_id=EOS, unk_id=UNK, stripes=stripes, **facts)
        lines = to_text(result, "title").splitlines()
        assert lines[0] == "title"
        assert max(map(len, lines)) <= 80
        assert lines[1].split()[:2] == ["perplexity", f"{result.perplexity:.4f}"]


def test_json_has_the_keys_of_the_design(toy: Any) -> None:
    result = evaluate_stream(toy, IDS, EOS, eos_id=EOS, unk_id=UNK, start_token="<eos>")
    record = json.loads(to_json(result, run="runs/x"))
    assert list(record) == [
        "run",
        "perplexity",
        "nats_per_token",
        "bits_per_token",
        "bits_per_character",
        "perplexity_without_eos",
        "perplexity_without_unk",
        "perplexity_per_word",
        "nats",
        "tokens",
        "eos_tokens",
        "unk_tokens",
        "words",
        "characters",
        "sentences",
        "state_carried",
        "stripes",
        "start_token",
        "log_z_mean",
        "log_z_variance",
    ]
    assert record["perplexity"] == result.perplexity
    assert json.loads(to_json(Evaluation(nats=1e9, tokens=1)))["perplexity"] is None
