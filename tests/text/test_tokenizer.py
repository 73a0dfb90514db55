"""Vocabularies: order, counts, limits, levels; the ids are those of the `tokenizers` library."""

import copy
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit

from pynlm.text import Tokenizer, UnknownTokenError, vocabulary
from pynlm.text._text import WordTable

DATA = os.environ.get("PYNLM_DATA")


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="text.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def by_library(tokenizer, text):
    """The ids that `tokenizers` gives for each line (at levels without lines, for all)."""
    library = tokenizer.backend()
    if tokenizer.level in ("char", "byte"):
        return library.encode(text).ids
    lines = text.split("\n")
    return [i for line in (lines if lines[-1] else lines[:-1]) for i in library.encode(line).ids]


# ---- order and counts


def test_ids_fall_in_count(write):
    tokenizer = Tokenizer.train(write("b a a c\nb b a\nz b\n"))
    assert tokenizer.tokens == ("b", "<eos>", "a", "c", "z", "<unk>")
    assert tokenizer.counts.tolist() == [4, 3, 3, 1, 1, 0]
    assert tokenizer.counts.dtype == np.int64
    assert (tokenizer.eos_id, tokenizer.unk_id, tokenizer.vocab_size) == (1, 5, 6)


def test_the_order_of_files_does_not_matter(write):
    a, b = write("x y\nz", "a.txt"), write("y z w\n", "b.txt")
    assert Tokenizer.train([a, b]).digest() == Tokenizer.train([b, a]).digest()


def test_unk_of_the_text_is_the_unk(write):
    tokenizer = Tokenizer.train(write("a <unk> <unk> rare\na <eos> b b\n"), min_count=2)
    assert dict(zip(tokenizer.tokens, tokenizer.counts.tolist(), strict=True)) == {
        "<unk>": 3,
        "<eos>": 3,
        "a": 2,
        "b": 2,
    }


def test_max_size_counts_special_tokens(write):
    path = write("a a a b b c d\n")
    tokenizer = Tokenizer.train(path, max_size=4)
    assert tokenizer.tokens == ("a", "<unk>", "b", "<eos>")
    assert tokenizer.counts.tolist() == [3, 2, 2, 1]
    assert tokenizer.counts.sum() == len(tokenizer.encode_file(path))
    with pytest.raises(ValueError, match="max_size must leave room"):
        Tokenizer.train(path, max_size=2)
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        Tokenizer.train(path, min_count=0)


def test_without_unk(write):
    path = write("a b\n")
    tokenizer = Tokenizer.train(path, unk=None)
    assert tokenizer.tokens == ("<eos>", "a", "b")
    assert tokenizer.unk_id is None
    other = write("a b\nb a\na  zebra b\n", "other.txt")
    with pytest.raises(
        UnknownTokenError, match=r"other\.txt: line 3, byte offset 11: the word 'zebra'"
    ):
        tokenizer.encode_file(other)
    with pytest.raises(KeyError, match="zebra"):
        tokenizer.id("zebra")
    with pytest.raises(Exception, match="UNK"):
        tokenizer.backend().encode("zebra")
    with pytest.raises(ValueError, match="leave out 1 tokens, so unk must be a token"):
        Tokenizer.train(write("a a b\n"), min_count=2, unk=None)


# ---- words and lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a", ["a", "<eos>"]),
        ("a\n", ["a", "<eos>"]),
        ("a\n\n b\n", ["a", "<eos>", "<eos>", "b", "<eos>"]),
        ("\n", ["<eos>"]),
        (" ", ["<eos>"]),
        ("a b\r\nb", ["a", "b", "<eos>", "b", "<eos>"]),
        ("a\vb\fa\u2028b\u3000a", ["a", "b", "a", "b", "a", "<eos>"]),
        ("a zebra", ["a", "<unk>", "<eos>"]),
    ],
)
def test_lines(text, expected):
    tokenizer = Tokenizer(["a", "b", "<eos>", "<unk>"], [1, 1, 1, 0], "word")
    assert [tokenizer.token(i) for i in tokenizer.encode(text)] == expected
    assert by_library(tokenizer, text) == tokenizer.encode(text).tolist()
    assert np.array_equal(tokenizer.encode(text.encode()), tokenizer.encode(text))


def test_without_eos(write):
    path = write("a b\nb\n")
    tokenizer = Tokenizer.train(path, eos=False)
    assert tokenizer.tokens == ("b", "a", "<unk>")
    assert tokenizer.encode_file(path).tolist() == [1, 0, 0]


def test_decode():
    tokenizer = Tokenizer(["a", "b", "<eos>", "<unk>"], [1, 1, 1, 0], "word")
    assert tokenizer.decode(tokenizer.encode("a b\n\nb a\n")) == "a b\n\nb a\n"
    assert tokenizer.decode([]) == ""
    with pytest.raises(IndexError, match=r"id 4 at position 1 is not in \[0, 4\)"):
        tokenizer.decode([0, 4])
    with pytest.raises(IndexError, match="id -1"):
        tokenizer.token(-1)


def test_white_space_is_that_of_the_library():
    points = [*range(0xD800), *range(0xE000, 0x11000)]
    split = WhitespaceSplit()
    for point in points:
        if chr(point).isspace() or not chr(point).isprintable():
            text = f"a{chr(point)}b"
            table = WordTable()
            table.count(text.encode())
            expected = [word for word, _ in split.pre_tokenize_str(text)]
            assert [word.decode() for word in table.words()] == expected, hex(point)


WORDS = st.text(
    alphabet="ab\u00e9\u6f22\U0001f600 \n\r\t\x1c\x85\xa0\u2003\u200b\u3000<>eos", max_size=40
)


@given(train=WORDS.filter(lambda text: text.strip()), text=WORDS)
def test_words_are_those_of_the_library(tmp_path_factory, train, text):
    path = tmp_path_factory.mktemp("words") / "train.txt"
    path.write_bytes(train.encode())
    try:
        tokenizer = Tokenizer.train(path, min_count=2)
    except ValueError as error:
        assert "no words" in str(error) or "no room" in str(error)
        return
    for piece in (train, text):
        assert tokenizer.encode(piece).tolist() == by_library(tokenizer, piece)
    ids = tokenizer.encode_file(path)
    assert np.array_equal(np.bincount(ids, minlength=tokenizer.vocab_size), tokenizer.counts)


def test_many_words_in_small_pieces(write, monkeypatch):
    words = [f"w{i * i % 1009}" for i in range(30_000)]
    text = "\n".join(" ".join(words[i : i + 7]) for i in range(0, len(words), 7))
    path = write(text)
    whole = Tokenizer.train(path)
    ids = whole.encode_file(path)
    monkeypatch.setattr("pynlm.text.files.read_chunks.__defaults__", (1000,))
    pieces = Tokenizer.train(path)
    assert pieces.digest() == whole.digest()
    assert len(list(pieces.encode_chunks(path))) > 100
    assert np.array_equal(pieces.encode_file(path), ids)
    assert by_library(whole, text) == ids.tolist()


# ---- characters, bytes, integers


def test_characters(write):
    text = "caf\u00e9 \u6f22\n\r\nae\u0301 \U0001f600\n"
    tokenizer = Tokenizer.train(write(text), "char")
    assert tokenizer.vocab_size == len(set(text))
    assert (tokenizer.eos_id, tokenizer.unk_id) == (None, None)
    assert np.all(np.diff(tokenizer.counts) <= 0)
    ids = tokenizer.encode(text)
    assert ids.tolist() == by_library(tokenizer, text)
    assert tokenizer.decode(ids) == text
    with pytest.raises(UnknownTokenError, match="line 2, byte offset 7: the character 'x'"):
        tokenizer.encode("caf\u00e9\naxe")


def test_rare_characters_become_unk(write):
    tokenizer = Tokenizer.train(write("aaabbc"), "char", min_count=2)
    assert tokenizer.tokens == ("a", "b", "<unk>")
    assert tokenizer.counts.tolist() == [3, 2, 1]
    assert tokenizer.encode("abx\n").tolist() == [0, 1, 2, 2] == by_library(tokenizer, "abx\n")
    assert Tokenizer.train(write("aaabbc"), "char", max_size=2).tokens == ("<unk>", "a")
    assert Tokenizer.train(write("a?b?"), "char", unk="?").unk_id is None
    assert Tokenizer.train(write("aa?b?"), "char", unk="?", min_count=2).encode("a?b").tolist() == [
        1,
        0,
        0,
    ]


def test_bytes(write):
    data = b"caf\xc3\xa9\xff\x00\n"
    tokenizer = Tokenizer.train(write(data), "byte")
    assert tokenizer.vocab_size == 256
    assert tokenizer.counts.sum() == len(data)
    assert tokenizer.to_bytes(tokenizer.encode(data)) == data
    every = bytes(range(256))
    assert tokenizer.to_bytes(tokenizer.encode(every)) == every
    text = "na\u00efve \U0001f600\r\n"
    assert tokenizer.encode(text).tolist() == by_library(tokenizer, text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert set(vocabulary.shown_bytes()) == set(ByteLevel.alphabet())
    with pytest.raises(ValueError, match="no meaning at level 'byte'"):
        Tokenizer.train(write(data), "byte", min_count=2)


def test_integer_files(write, tmp_path):
    path = write("3 0 3\n1 3\n")
    tokenizer = Tokenizer.train(path, "integer")
    assert tokenizer.tokens == ("0", "1", "2", "3", "<eos>")
    assert tokenizer.counts.tolist() == [1, 1, 0, 3, 2]
    assert tokenizer.encode_file(path).tolist() == [3, 0, 3, 4, 1, 3, 4]
    assert tokenizer.encode("2 1").tolist() == [2, 1, 4] == by_library(tokenizer, "2 1")
    assert tokenizer.decode([2, 1, 4]) == "2 1\n"
    assert Tokenizer.train(path, "integer", max_size=10, eos=False).vocab_size == 10

    array = tmp_path / "ids.npy"
    np.save(array, np.array([5, 2, 5], np.int64))
    both = Tokenizer.train([path, array], "integer", eos=False)
    assert both.counts.tolist() == [1, 1, 1, 3, 0, 2]
    assert both.encode_file(array).tolist() == [5, 2, 5]


def test_integer_errors(write, tmp_path):
    tokenizer = Tokenizer.train(write("3 0\n"), "integer")
    with pytest.raises(IndexError, match=r"line 2, byte offset 4: id 9 is not in \[0, 5\)"):
        tokenizer.encode("1\n2 9")
    with pytest.raises(
        ValueError, match="line 1, byte offset 2: expected an integer >= 0, got '-1'"
    ):
        tokenizer.encode("1 -1")
    with pytest.raises(
        ValueError, match=r"text\.txt: line 2: expected an integer >= 0, got '1\.5'"
    ):
        Tokenizer.train(write("1\n2 1.5"), "integer")
    with pytest.raises(IndexError, match=r"line 1: id 123456789 .*level='word'"):
        Tokenizer.train(write("123456789\n"), "integer")
    with pytest.raises(IndexError, match=r"id 7 is not in \[0, 5\)"):
        Tokenizer.train(write("7\n"), "integer", max_size=5)
    for name, value, message in (
        ("real.npy", np.zeros(3), "one-dimensional integer array, got float64"),
        ("flat.npy", np.zeros((2, 2), int), r"got int64 \[2, 2\]"),
        ("none.npy", np.zeros(0, int), "the array is empty"),
    ):
        np.save(tmp_path / name, value)
        with pytest.raises(ValueError, match=message):
            Tokenizer.train(tmp_path / name, "integer")
    write(b"\x93NUMPY\x01", "short.npy")
    with pytest.raises(ValueError, match="not an array that can be read"):
        Tokenizer.train(tmp_path / "short.npy", "integer")
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        Tokenizer.train(tmp_path / "gone.npy", "integer")
    np.save(tmp_path / "far.npy", np.array([1, 2, 99]))
    with pytest.raises(IndexError, match=r"far\.npy: id 99 at position 2 is not in \[0, 5\)"):
        tokenizer.encode_file(tmp_path / "far.npy")


def test_from_ids():
    tokenizer = Tokenizer.from_ids([3, 1, 1], vocab_size=6, eos=True)
    assert tokenizer.counts.tolist() == [0, 2, 0, 1, 0, 0, 1]
    assert tokenizer.eos_id == 6
    with pytest.raises(IndexError, match="id -2 at position 1"):
        Tokenizer.from_ids([1, -2])
    with pytest.raises(IndexError, match=r"id 3 is not in \[0, 2\)"):
        Tokenizer.from_ids([3], vocab_size=2)


@pytest.mark.parametrize("level", ["word", "char", "byte", "integer"])
def test_integers_are_ids_at_every_level(write, level):
    tokenizer = Tokenizer.train(write("1 2 3\n"), level)
    size = tokenizer.vocab_size
    ids = tokenizer.encode(np.array([0, size - 1], np.int64))
    assert ids.dtype == np.int32 and ids.tolist() == [0, size - 1]
    assert tokenizer.encode([]).shape == (0,)
    for bad in (size, -1, 2**40):
        with pytest.raises(IndexError, match=f"id {bad} at position 1"):
            tokenizer.encode([0, bad])
    with pytest.raises(TypeError, match="ids must be integers, got float64"):
        tokenizer.encode([0.5])
    with pytest.raises(ValueError, match=r"one dimension, got \[1, 1\]"):
        tokenizer.encode([[0]])


# ---- files


@pytest.mark.parametrize(
    ("level", "options"),
    [("word", {}), ("word", {"eos": False, "unk": None}), ("char", {"min_count": 2}), ("byte", {}),
     ("integer", {})],
)  # fmt: skip
def test_save_and_load(write, tmp_path, level, options):
    text = "1 22 3\n22 1\n"
    tokenizer = Tokenizer.train(write(text), level, **options)
    path = tmp_path / "run" / "tokenizer.json"
    tokenizer.save(path)
    again = Tokenizer.load(path)
    assert again.digest() == tokenizer.digest()
    assert (again.level, again.eos_id, again.unk_id) == (level, tokenizer.eos_id, tokenizer.unk_id)
    assert np.array_equal(again.counts, tokenizer.counts)
    assert np.array_equal(again.encode(text), tokenizer.encode(text))
    line = "1 22 3"
    assert LibraryTokenizer.from_file(str(path)).encode(line).ids == again.encode(line).tolist()


def test_digest_sees_every_change():
    base = Tokenizer(["a", "b", "<eos>", "<unk>"], [2, 1, 1, 0], "word")
    others = [
        Tokenizer(["b", "a", "<eos>", "<unk>"], [2, 1, 1, 0], "word"),
        Tokenizer(["a", "b", "<eos>", "<unk>"], [3, 1, 1, 0], "word"),
        Tokenizer(["a", "b", "<eos>", "<unk>"], [2, 1, 1, 0], "word", eos=None),
        Tokenizer(["a", "b", "<eos>", "<unk>"], [2, 1, 1, 0], "word", unk=None),
    ]
    assert len({tokenizer.digest() for tokenizer in [base, *others]}) == 5


def test_files_that_are_no_vocabulary(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    path = tmp_path / "saved.json"
    Tokenizer(["a", "<eos>", "<unk>"], [1, 1, 0], "word").save(path)
    whole = path.read_text()
    with pytest.raises(ValueError, match="not JSON, or cut short"):
        Tokenizer.load(write(whole[:-20], "cut.json"))
    facts = json.loads(whole)
    for change in (
        lambda f: f["model"].pop("pynlm"),
        lambda f: f["model"]["pynlm"].pop("counts"),
        lambda f: f.pop("model"),
    ):
        changed = json.loads(whole)
        change(changed)
        with pytest.raises(ValueError, match="not a vocabulary that pynlm saved"):
            Tokenizer.load(write(json.dumps(changed), "foreign.json"))
    with pytest.raises(ValueError, match="not a vocabulary that pynlm saved"):
        Tokenizer.load(write("[1]", "list.json"))
    facts["model"]["vocab"]["a"] = 7
    with pytest.raises(ValueError, match="without gaps"):
        Tokenizer.load(write(json.dumps(facts), "gap.json"))
    facts["model"]["pynlm"]["format"] = 99
    with pytest.raises(ValueError, match="format 99"):
        Tokenizer.load(write(json.dumps(facts), "new.json"))


def test_wrong_arguments(write):
    with pytest.raises(ValueError, match="level must be one of word, char, byte, integer, got 'w'"):
        Tokenizer.train(write("a"), "w")
    with pytest.raises(ValueError, match="at least one file"):
        Tokenizer.train([])
    with pytest.raises(ValueError, match="no words in"):
        Tokenizer.train(write(" \n\n"))
    with pytest.raises(ValueError, match="got 'a' twice"):
        Tokenizer(["a", "a"], [1, 1], "word", eos=None, unk=None)
    with pytest.raises(ValueError, match=r"counts must have shape \[V=1\], got \[2\]"):
        Tokenizer(["a"], [1, 1], "word", eos=None, unk=None)
    with pytest.raises(ValueError, match="eos '<eos>' must be one of the tokens"):
        Tokenizer(["a"], [1], "word", unk=None)
    with pytest.raises(ValueError, match="one code point, got 'ab'"):
        Tokenizer(["ab"], [1], "char", eos=None, unk=None)
    with pytest.raises(ValueError, match="exactly the 256"):
        Tokenizer(["a"], [1], "byte", eos=None, unk=None)
    with pytest.raises(ValueError, match=r"twice"):
        WordTable([b"a", b"a"])
    with pytest.raises(ValueError, match=r"one a word \[1\], got \[2\]"):
        WordTable([b"a"], [1, 2])


def test_a_vocabulary_can_be_pickled(write):
    tokenizer = Tokenizer.train(write("a b b\n"))
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.digest() == tokenizer.digest()
    assert again.encode("b a zebra").tolist() == tokenizer.encode("b a zebra").tolist()
    table = WordTable()
    table.count(b"x y x")
    copied = copy.copy(table)
    table.count(b"x z")
    assert (copied.words(), copied.counts().tolist()) == ([b"x", b"y"], [2, 1])


# ---- real text, where it is at hand

if DATA:

    def test_ptb_counts():
        folder = Path(DATA) / "ptb"
        tokenizer = Tokenizer.train(folder / "ptb.train.txt")
        assert tokenizer.vocab_size == 10_000
        sizes = [
            len(tokenizer.encode_file(folder / f"ptb.{p}.txt")) for p in ("train", "valid", "test")
        ]
        assert sizes == [929_589, 73_760, 82_430]
        assert tokenizer.tokens[:4] == ("the", "<unk>", "<eos>", "N")

    def test_novels_are_encoded_as_the_library_does():
        folder = Path(DATA) / "novels"
        tokenizer = Tokenizer.train(folder / "novels.train.txt", min_count=3)
        assert tokenizer.vocab_size == 41_668 + 2
        assert tokenizer.counts.sum() == 8_984_206 + 99_996
        path = folder / "novels.valid.txt"
        text = path.read_text(encoding="utf-8")
        assert tokenizer.encode_file(path).tolist() == by_library(tokenizer, text)
