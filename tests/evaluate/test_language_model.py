"""The Python interface: evaluation, steps and branches, samples."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pynlm.evaluate import count_file, count_text, start_of
from pynlm.language_model import LanguageModel, LMState
from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.text import Tokenizer


def stepped_nats(lm: LanguageModel, ids: np.ndarray) -> float:
    state = lm.start()
    logp = lm.log_prob(state)[0]
    nats = 0.0
    for token in ids.tolist():
        nats -= float(logp[token])
        logp, state = lm.step(token, state)
    return nats


def test_evaluation_is_what_stepping_gives(any_lm: LanguageModel, text_file: Path) -> None:
    ids = any_lm.tokenizer.encode_file(text_file)
    result = any_lm.evaluate(text_file)
    assert result.tokens == len(ids)
    assert result.nats == pytest.approx(stepped_nats(any_lm, ids), rel=1e-5)
    assert any_lm.perplexity(text_file) == result.perplexity


def test_chunk_and_form_of_the_text_do_not_matter(any_lm: LanguageModel, text_file: Path) -> None:
    expected = any_lm.evaluate(text_file)
    text = text_file.read_text()
    for chunk in (1, 13, 4096):
        assert any_lm.evaluate(text, chunk=chunk).nats == pytest.approx(expected.nats, rel=1e-6)
    assert any_lm.evaluate(text) == expected
    assert any_lm.evaluate(text.encode()) == expected
    ids = any_lm.tokenizer.encode(text)
    from_ids = any_lm.evaluate(ids)
    assert (from_ids.nats, from_ids.tokens) == (expected.nats, expected.tokens)
    assert from_ids.characters is None


def test_counts_of_the_report(word_lm: LanguageModel, text_file: Path) -> None:
    result = word_lm.evaluate(text_file)
    text = text_file.read_text()
    assert (result.eos_tokens, result.words) == (6, len(text.split()))
    assert result.tokens == result.words + 6
    assert result.unk_tokens == list(Counter(text.split()).values()).count(1)  # min_count is 2
    assert result.characters == len(text)
    assert result.start_token == "<eos>"


def test_sentence_models_are_evaluated_by_sentence(word_lm: LanguageModel, text_file: Path) -> None:
    lm = LanguageModel(
        word_lm.model, word_lm.tokenizer, batching="sentences", backend=word_lm.backend
    )
    assert lm.evaluate(text_file) == word_lm.evaluate(text_file, carry=False)
    assert not lm.evaluate(text_file).state_carried
    assert lm.evaluate(text_file, carry=True) == word_lm.evaluate(text_file)
    with pytest.raises(ValueError, match="stripes are pieces of one stream"):
        lm.evaluate(text_file, stripes=2)


def test_probabilities_sum_to_one(any_lm: LanguageModel) -> None:
    logp = any_lm.log_prob(any_lm.start(batch=3))
    np.testing.assert_allclose(np.exp(logp.astype(np.float64)).sum(1), 1.0, rtol=1e-5)


def test_states_branch(word_lm: LanguageModel) -> None:
    the, cat, dog = (word_lm.tokenizer.id(w) for w in ("the", "cat", "dog"))
    _, root = word_lm.step(the, word_lm.start())
    kept = [part.copy() for layer in root.layers for part in layer]
    cats, state_cat = word_lm.step(cat, root)
    dogs, state_dog = word_lm.step("dog", root)
    both, state = word_lm.step([cat, dog], root)  # one history becomes two
    assert both.shape == (2, word_lm.tokenizer.vocab_size)
    np.testing.assert_allclose(both, [cats, dogs], rtol=1e-5)
    assert state.batch == 2
    again, _ = word_lm.step(["cat", "cat"], state[[1, 0]])
    stacked, _ = word_lm.step(["cat", "cat"], LMState.stack([state_dog, state_cat]))
    np.testing.assert_allclose(again, stacked, rtol=1e-5)
    single, _ = word_lm.step("cat", state[1])
    np.testing.assert_allclose(single, again[0], rtol=1e-5)
    for before, after in zip(kept, (p for layer in root.layers for p in layer), strict=True):
        np.testing.assert_array_equal(before, after)
        with pytest.raises(ValueError, match="read-only"):
            after[0, 0] = 1.0
    with pytest.raises(ValueError, match=r"step: tokens must be one a history \[2\], got \[3\]"):
        word_lm.step([cat, cat, cat], state)
    with pytest.raises(IndexError, match="id 99"):
        word_lm.step(99, root)


def test_generation_is_deterministic_and_streams(any_lm: LanguageModel) -> None:
    first = any_lm.generate("the cat", tokens=30, seed=5)
    assert first == any_lm.generate("the cat", tokens=30, seed=5)
    assert first != any_lm.generate("the cat", tokens=30, seed=6)
    assert first.startswith("the cat")
    assert any_lm.generate("the cat", tokens=0) == "the cat"
    longer = any_lm.generate("the cat", tokens=40, seed=5)
    assert longer.startswith(first.rstrip("\ufffd"))


def test_generation_follows_the_model(any_lm: LanguageModel) -> None:
    ids = any_lm.tokenizer.encode("the cat")
    ids = ids[:-1] if any_lm.tokenizer.eos_id is not None else ids
    state = any_lm.start()
    for token in ids.tolist():
        logp, state = any_lm.step(token, state)
    expected = []
    for _ in range(8):
        expected.append(int(np.argmax(logp)))
        logp, state = any_lm.step(expected[-1], state)
    got = any_lm.generate(ids, tokens=8, temperature=0.0)
    assert got.dtype == np.int32
    assert got.tolist() == [*ids.tolist(), *expected]
    text = any_lm.generate("the cat", tokens=8, temperature=0.0)
    decoded = any_lm.tokenizer.decode(got)
    assert text.split() == decoded.split()


def test_a_prompt_that_ends_its_line_starts_the_next(word_lm: LanguageModel) -> None:
    eos = word_lm.tokenizer.eos_id
    ids = word_lm.tokenizer.encode("the cat\n")
    assert ids[-1] == eos
    text = word_lm.generate("the cat\n", tokens=1, temperature=0.0)
    new = word_lm.generate(ids, tokens=1, temperature=0.0)[-1]
    assert text == "the cat\n" + word_lm.tokenizer.token(int(new)).replace("<eos>", "\n")


def test_unk_can_be_excluded(word_lm: LanguageModel) -> None:
    unk = word_lm.tokenizer.unk_id
    assert unk in word_lm.generate([unk], tokens=300)[1:]
    assert unk not in word_lm.generate([unk], tokens=300, exclude_unk=True)[1:]
    assert word_lm.unknown("the zebra saw the zebra") == ["zebra", "saw"]


def test_integer_sequences() -> None:
    tokenizer = Tokenizer.from_ids([0, 1, 2, 3, 4, 2, 2])
    model = RecurrentLM(RecurrentLMConfig(vocab_size=5, embedding_size=4, hidden_sizes=(6,)))
    model.initialise(3)
    lm = LanguageModel(model, tokenizer, backend="reference")
    assert start_of(tokenizer) == (0, "token 0 ('0')")
    result = lm.evaluate([1, 2, 3, 4])
    assert (result.tokens, result.words, result.eos_tokens) == (4, None, None)
    assert result.nats == pytest.approx(stepped_nats(lm, np.array([1, 2, 3, 4])), rel=1e-5)
    assert lm.perplexity("1 2 3 4") == result.perplexity
    assert len(lm.score([[1, 2], [3]])) == 2
    assert lm.generate([1, 2], tokens=3).shape == (5,)
    assert len(lm.generate("1 2", tokens=3).split()) == 5
    with pytest.raises(IndexError, match="id 5"):
        lm.perplexity([1, 5])
    with pytest.raises(TypeError, match="float64"):
        lm.perplexity([0.5])  # type: ignore[list-item]


@pytest.fixture
def integer_lm() -> LanguageModel:
    """A model of the ids 0 to 4."""
    config = RecurrentLMConfig(vocab_size=5, embedding_size=4, hidden_sizes=(6,))
    return LanguageModel(RecurrentLM(config), Tokenizer.from_ids([0, 4]), backend="reference")


@pytest.mark.parametrize("bad", [5, -1, 2**40])
def test_token_ids_out_of_range_are_refused(integer_lm: LanguageModel, bad: int) -> None:
    lm = integer_lm
    message = rf"id {bad} at position 1 is (not in \[0, 5\)|too large)"
    for call in (lm.evaluate, lm.perplexity, lm.score, lm.generate):
        for ids in ([1, bad, 2], np.array([1, bad])):
            with pytest.raises(IndexError, match=message):
                call(ids)  # type: ignore[operator]
    with pytest.raises(IndexError, match=message):
        lm.score([[1, 2, 3], [1, bad]])
    with pytest.raises(IndexError, match=message):
        lm.step([1, bad], lm.start(2))


def test_integers_out_of_range_in_a_text_are_named(
    integer_lm: LanguageModel, tmp_path: Path
) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("1 2\n3 99\n")
    with pytest.raises(IndexError, match=r"ids.txt: line 2, byte offset 6: id 99 is not in \[0, 5"):
        integer_lm.perplexity(path)
    with pytest.raises(IndexError, match=r"ids.txt: line 2: byte offset 2: id 99 is not in \[0, 5"):
        integer_lm.score(path)
    with pytest.raises(IndexError, match=r"text: line 2: byte offset 2: id 99 is not in \[0, 5"):
        integer_lm.score("1 2\n3 99\n")


def test_start_of_characters_and_bytes_is_the_newline(any_lm: LanguageModel) -> None:
    start, name = start_of(any_lm.tokenizer)
    if any_lm.tokenizer.level == "word":
        assert (start, name) == (any_lm.tokenizer.eos_id, "<eos>")
    else:
        assert name == "newline"
        assert any_lm.tokenizer.decode([start]) == "\n"


def test_text_counts(tmp_path: Path) -> None:
    text = " aer  é\u00a0bank\r\n\nend"
    assert count_text(text, "char") == count_text(text.encode(), "char")
    assert (count_text(text, "char").words, count_text(text, "char").characters) == (4, 18)
    # word level: "aer é bank\n" + "\n" + "end\n"
    assert count_text(text, "word").characters == 11 + 1 + 4
    path = tmp_path / "t"
    path.write_bytes(text.encode())
    assert count_file(path, "word") == count_text(text, "word")
    assert count_text(b"\xff\xfe", "byte").characters == 2


def test_uniform_model_has_the_perplexity_of_its_vocabulary(word_lm: LanguageModel) -> None:
    for array in word_lm.model.state_dict().values():
        array[...] = 0.0
    size = word_lm.tokenizer.vocab_size
    assert word_lm.perplexity("the cat sat") == pytest.approx(size, rel=1e-6)
    assert word_lm.score("the")[0].log2_probs[0] == pytest.approx(-math.log2(size), rel=1e-6)


def test_packed_weights_score_the_same(word_lm: LanguageModel) -> None:
    """Steps of many histories, sentences and a stream, to the bit."""

    def figures() -> list[np.ndarray]:
        logp, state = word_lm.step(list(range(6)), word_lm.start())
        more, _ = word_lm.step(list(range(6)), state)
        text = "the cat sat\na dog saw the mat\nthe old dog"
        scores = word_lm.score(text)
        return [logp, more, *(s.log2_probs for s in scores), word_lm.perplexity(text)]

    before = [np.array(a) for a in figures()]
    word_lm.model.parameters.pack()
    for a, b in zip(figures(), before, strict=True):
        np.testing.assert_array_equal(a, b)
