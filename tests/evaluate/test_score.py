"""Scores of lines: sums, independence, streams, files, escapes."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from pynlm.evaluate import read_lines, split_lines
from pynlm.evaluate.score import TSV_HEADER, escape, to_dict, write_tsv
from pynlm.language_model import LanguageModel

LOG2 = np.log(2.0)


def test_carried_scores_sum_to_the_evaluation(any_lm: LanguageModel, text_file: Path) -> None:
    whole = any_lm.evaluate(text_file, carry=True)
    scores = any_lm.score(text_file, carry=True)
    assert sum(len(s.ids) for s in scores) == whole.tokens
    assert -sum(s.log2_prob for s in scores) * LOG2 == pytest.approx(whole.nats, rel=1e-6)


def test_independent_scores_sum_to_the_evaluation(any_lm: LanguageModel, text_file: Path) -> None:
    whole = any_lm.evaluate(text_file, carry=False)
    scores = any_lm.score(text_file)
    assert len(scores) == whole.sentences == 6
    assert -sum(s.log2_prob for s in scores) * LOG2 == pytest.approx(whole.nats, rel=1e-6)


def test_a_line_scores_the_same_anywhere(any_lm: LanguageModel, text_file: Path) -> None:
    for line, score in zip(
        split_lines(text_file.read_text()), any_lm.score(text_file), strict=True
    ):
        alone = any_lm.score(line)[0]
        np.testing.assert_allclose(alone.log2_probs, score.log2_probs, rtol=1e-5)
        assert alone.tokens == score.tokens


def test_text_lists_bytes_and_ids_agree(any_lm: LanguageModel, text_file: Path) -> None:
    text = text_file.read_text()
    expected = any_lm.score(text_file)
    lines = split_lines(text)
    ids = [any_lm.tokenizer.encode(line) for line in lines]
    for same in (text, text.encode(), lines, ids, [row.tolist() for row in ids]):
        got = any_lm.score(same)
        assert [s.sentence for s in got] == [1, 2, 3, 4, 5, 6]
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a.log2_probs, b.log2_probs, rtol=1e-5)
    one = any_lm.score(ids[0])
    np.testing.assert_allclose(one[0].log2_probs, expected[0].log2_probs, rtol=1e-5)


def test_scores_of_pieces_carry_on(word_lm: LanguageModel, text_file: Path) -> None:
    lines = word_lm.encode(split_lines(text_file.read_text()))
    scorer = word_lm.scorer(carry=True)
    pieces = [*scorer.score(lines[:2]), *scorer.score([]), *scorer.score(lines[2:])]
    whole = word_lm.scorer(carry=True).score(lines)
    assert [s.sentence for s in pieces] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(pieces, whole, strict=True):
        np.testing.assert_allclose(a.log2_probs, b.log2_probs, rtol=1e-5)


def test_tsv_and_jsonl(word_lm: LanguageModel) -> None:
    scores = word_lm.score("the cat\nthe zebra\n")
    out = io.StringIO()
    write_tsv(scores, out)
    table = [line.split("\t") for line in out.getvalue().splitlines()]
    assert [row[:3] for row in table] == [
        ["1", "1", "the"],
        ["1", "2", "cat"],
        ["1", "3", "<eos>"],
        ["2", "1", "the"],
        ["2", "2", "<unk>"],
        ["2", "3", "<eos>"],
    ]
    assert len(TSV_HEADER.split("\t")) == len(table[0]) == 5
    running = 0.0
    for row in table[:3]:
        running += float(row[3])
        assert float(row[3]) < 0.0
        assert float(row[4]) == pytest.approx(running, abs=2e-6)
    record = json.loads(json.dumps(to_dict(scores[1])))
    assert record["sentence"] == 2
    assert record["tokens"] == ["the", "<unk>", "<eos>"]
    assert sum(record["log2_probs"]) == pytest.approx(record["log2_prob"], abs=1e-5)
    np.testing.assert_array_equal(scores[0].surprisals, -scores[0].log2_probs)


def test_tokens_fit_one_cell() -> None:
    assert escape("word") == "word"
    assert escape("\n") == "\\n"
    assert escape("a\tb\\c\r") == "a\\tb\\\\c\\r"
    assert escape("\x00\u2028é") == "\\x00\\u2028é"


def test_lines_come_as_they_are_written() -> None:
    reading, writing = os.pipe()
    lines = read_lines(reading, "pipe")
    os.write(writing, b"one\ntw")
    assert next(lines) == [b"one\n"]
    os.write(writing, "o\nthré".encode())
    assert next(lines) == [b"two\n"]
    os.close(writing)
    assert next(lines) == ["thré".encode()]
    assert list(lines) == []
    os.close(reading)


def test_lines_longer_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"a" * 200_000 + b"\n\nb\rc")
    with path.open("rb") as file:
        found = [line for lines in read_lines(file.fileno(), "long") for line in lines]
    assert [len(line) for line in found] == [200_001, 1, 3]


def test_undecodable_bytes_are_named(word_lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("the cat\nthe caf\u00e9\n".encode("latin-1"))
    message = r"latin.txt: line 2, byte offset 15: byte 0xe9 is not UTF-8"
    with pytest.raises(ValueError, match=message):
        word_lm.score(path)


def test_undecodable_bytes_are_named_in_a_pipe() -> None:
    reading, writing = os.pipe()
    lines = read_lines(reading, "stdin")
    os.write(writing, "thré\nand\n".encode())
    assert len(next(lines)) == 2
    os.write(writing, b"more\nca\xff\n")
    with pytest.raises(ValueError, match=r"^stdin: line 4, byte offset 17: byte 0xff is not"):
        next(lines)
    os.close(writing)
    os.close(reading)


def test_bytes_need_not_be_utf8(any_lm: LanguageModel, tmp_path: Path) -> None:
    if any_lm.tokenizer.level != "byte":
        return
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\x00 a\\\n")
    tokens = any_lm.score(path)[0].tokens
    assert tokens == ["<0xFF>", "<0x00>", " ", "a", "\\", "<0x0A>"]


def test_an_unknown_character_is_found_in_a_stream(char_lm: LanguageModel) -> None:
    lines = [b"the cat\n", "a cat\u00e9\n".encode()]
    with pytest.raises(ValueError, match=r"^stdin: line 42: byte offset 5: the character '\u00e9'"):
        char_lm.encode(lines, name="stdin", first=41)
