"""Token ids on disk."""

import json
import os
import tracemalloc

import numpy as np
import pytest

from pynlm.text import ContiguousBatches, Tokenizer, TokenStore


def test_write_and_open(tmp_path):
    path = tmp_path / "a.ids"
    store = TokenStore.write(path, iter([[1, 2], np.array([3], np.int64), []]))
    assert store.ids.tolist() == [1, 2, 3]
    assert isinstance(store.ids, np.memmap) and not store.ids.flags.writeable
    assert np.load(path).tolist() == [1, 2, 3]
    assert len(TokenStore(path)) == 3
    store.check(4)
    with pytest.raises(IndexError, match=r"a\.ids: id 3 at position 2 is not in \[0, 3\)"):
        store.check(3)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.ids"
    TokenStore.write(path, [[1]])

    def pieces():
        yield [2, 3]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        TokenStore.write(path, pieces())
    with pytest.raises(ValueError, match="no token ids to write"):
        TokenStore.write(path, [])
    assert TokenStore(path).ids.tolist() == [1]
    assert os.listdir(tmp_path) == ["a.ids"]


def test_files_that_are_no_store(tmp_path):
    path = tmp_path / "a.ids"
    with pytest.raises(FileNotFoundError, match="no such file of token ids"):
        TokenStore(path)
    TokenStore.write(path, [range(100)])
    whole = path.read_bytes()
    for data in (b"", whole[:60], whole[:-4]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a file of token ids, or cut short"):
            TokenStore(path)
    np.save(tmp_path / "real.npy", np.zeros(3))
    with pytest.raises(ValueError, match="expected int32 token ids"):
        TokenStore(tmp_path / "real.npy")


def test_build_encodes_once(tmp_path):
    text, path = tmp_path / "text.txt", tmp_path / "text.ids"
    text.write_text("a b\na\n")
    tokenizer = Tokenizer.train(text)
    store = TokenStore.build(path, tokenizer, text)
    assert np.array_equal(store.ids, tokenizer.encode_file(text))
    made = path.stat().st_ino
    assert TokenStore.build(path, tokenizer, [text]).ids.tolist() == store.ids.tolist()
    assert path.stat().st_ino == made

    text.write_text("a b\nb b b\n")
    assert len(TokenStore.build(path, tokenizer, text)) == 7
    other = Tokenizer.train(text, eos=False)
    assert len(TokenStore.build(path, other, text)) == 5
    assert len(TokenStore.build(path, other, [text, text])) == 10
    path.write_bytes(path.read_bytes()[:-4])
    assert len(TokenStore.build(path, other, [text, text])) == 10
    (tmp_path / "text.ids.json").write_text("{")
    assert len(TokenStore.build(path, other, [text, text])) == 10
    assert json.loads((tmp_path / "text.ids.json").read_text())["tokens"] == 10


def test_build_errors(tmp_path):
    text, path = tmp_path / "text.txt", tmp_path / "text.ids"
    text.write_text("a b\n")
    tokenizer = Tokenizer.train(text, unk=None)
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        TokenStore.build(path, tokenizer, tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="at least one file"):
        TokenStore.build(path, tokenizer, [])
    text.write_text("a c\n")
    with pytest.raises(ValueError, match="the word 'c'"):
        TokenStore.build(path, tokenizer, text)
    assert not path.exists()


def test_memory_does_not_grow_with_the_text(tmp_path):
    text = tmp_path / "text.txt"
    tokenizer = Tokenizer(["a", "b", "<eos>", "<unk>"], [0] * 4, "word")
    text.write_bytes(b"a b b a zebra a b\n" * 1_000_000)
    tracemalloc.start()
    store = TokenStore.build(tmp_path / "text.ids", tokenizer, text)
    batches = ContiguousBatches(store, 20, 35)
    for k in (0, len(batches) - 1):
        assert batches[k].tokens == 700
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(store) == 8_000_000
    assert peak < 12e6  # its ids are 32 MB, its text 18 MB
