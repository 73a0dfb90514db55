"""Corpora by name: found, downloaded, refused; and the text that every Python carries."""

import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading

import pytest

from pynlm.text import corpus, corpus_names, load_corpus, python_reference
from pynlm.text.corpus import _Source

DATA = os.environ.get("PYNLM_DATA")
TEXT = {"train": b"a b c\n", "valid": b"b c\n", "test": b"c\n"}


def source(url=None):
    files = {
        part: (f"small/small.{part}.txt", hashlib.sha256(data).hexdigest())
        for part, data in TEXT.items()
    }
    return _Source("a small text", files, url)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A corpus named small, and the folder that PYNLM_DATA names."""
    monkeypatch.setitem(corpus._SOURCES, "small", source())
    folder = tmp_path / "data"
    (folder / "small").mkdir(parents=True)
    monkeypatch.setenv("PYNLM_DATA", str(folder))
    monkeypatch.setenv("PYNLM_CACHE", str(tmp_path / "cache"))
    return folder / "small"


def fill(folder):
    for part, data in TEXT.items():
        (folder / f"small.{part}.txt").write_bytes(data)


def test_found_in_the_data_folder(small):
    fill(small)
    found = load_corpus("small")
    assert found.train == small / "small.train.txt"
    assert found.test.read_bytes() == TEXT["test"]
    assert found.sha256["valid"] == hashlib.sha256(TEXT["valid"]).hexdigest()


def test_another_text_of_that_name_is_refused(small):
    fill(small)
    (small / "small.valid.txt").write_bytes(b"changed\n")
    with pytest.raises(ValueError, match=r"small\.valid\.txt is not the known text of small"):
        load_corpus("small")


def test_a_missing_corpus_names_the_place(small, monkeypatch):
    with pytest.raises(FileNotFoundError) as error:
        load_corpus("small")
    assert str(small / "small.train.txt") in str(error.value)
    monkeypatch.delenv("PYNLM_DATA")
    with pytest.raises(FileNotFoundError, match=r"\$PYNLM_DATA.*set PYNLM_DATA"):
        load_corpus("small")


def test_unknown_name():
    with pytest.raises(ValueError, match="did you mean 'ptb'"):
        load_corpus("ptv")
    assert corpus_names() == ("python-reference", "ptb", "novels", "tinyshakespeare")


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    fill(folder)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_download_with_checksum(small, server, monkeypatch, tmp_path):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder, url = server
    monkeypatch.setitem(corpus._SOURCES, "small", source(url))
    found = load_corpus("small")
    assert found.train.read_bytes() == TEXT["train"]
    assert tmp_path / "cache" in found.train.parents
    (folder / "small.train.txt").unlink()
    assert load_corpus("small").train == found.train  # not downloaded again

    found.valid.unlink()
    (folder / "small.valid.txt").write_bytes(b"something else\n")
    with pytest.raises(ValueError, match="is not the known file"):
        load_corpus("small")
    (folder / "small.valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        load_corpus("small")


def test_one_file_is_cut(small, monkeypatch, tmp_path):
    data = b"0123456789" * 3 + b"x"
    one = _Source(
        "one file",
        {"all": ("small/input.txt", hashlib.sha256(data).hexdigest())},
        None,
        (("train", 0.9), ("valid", 1.0)),
    )
    monkeypatch.setitem(corpus._SOURCES, "small", one)
    (small / "input.txt").write_bytes(data)
    found = load_corpus("small", cache=tmp_path / "other")
    assert found.train.read_bytes() == data[:27]
    assert found.valid.read_bytes() == data[27:]
    assert found.test is None
    found.valid.write_bytes(b"spoilt")
    assert load_corpus("small", cache=tmp_path / "other").valid.read_bytes() == data[27:]
    (small / "input.txt").write_bytes(data[1:])
    with pytest.raises(ValueError, match="is not the known text"):
        load_corpus("small", cache=tmp_path / "other")


# ---- the Python language reference


def test_python_reference(tmp_path):
    found = load_corpus(cache=tmp_path)
    again = load_corpus("default", cache=tmp_path)
    assert found == again and found.name == "python-reference"
    lines = {
        part: path.read_text(encoding="utf-8").splitlines()
        for part, path in (("train", found.train), ("valid", found.valid), ("test", found.test))
    }
    words = {part: sum(len(line.split()) for line in text) for part, text in lines.items()}
    total = sum(words.values())
    assert total > 40_000
    assert 0.85 < words["train"] / total < 0.95
    # no paragraph stands in two parts
    every = [line for text in lines.values() for line in text]
    assert len(set(every)) == len(every)
    assert sum("the" in line.split() for line in every) > 0.6 * len(every)
    digest = hashlib.sha256(found.train.read_bytes()).hexdigest()
    assert found.sha256["train"] == digest and digest[:12] in str(found.train)


def test_paragraphs_are_prose():
    bound = "The object is *bound* to the name, e.g. “x”: it’s the user-%sdefined one."
    topics = {
        "b": "Same text\n*********\n\n"
        + bound % "\n"
        + "\n\n   >>> for the in of: to = is\n\n   a ::= b | the 'of' to | in the\n\nShort.\n",
        "a": "* The first item of a list is used for this (and that).\n"
        "* The second item of the list is not a part of it.\n\n"
        + bound % ""
        + "\n\nA table of the values in the order\n",
    }
    assert python_reference.paragraphs(topics) == [
        "The first item of a list is used for this ( and that ) .",
        "The second item of the list is not a part of it .",
        'The object is bound to the name , e.g. " x " : it\'s the user-defined one .',
    ]


def test_split_is_by_place():
    lines = [str(i) for i in range(400)]
    parts = python_reference.split(lines)
    assert parts["valid"] == lines[90:100] + lines[290:300]
    assert parts["test"] == lines[190:200] + lines[390:400]
    assert sorted(line for part in parts.values() for line in part) == sorted(lines)


def test_a_python_without_the_reference(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match=r"pydoc_data\.topics, which this Python lacks"):
        python_reference.paragraphs()


def test_importing_is_light():
    code = (
        "import sys, pynlm.text; "
        "print([m for m in ('tokenizers', 'pooch', 'requests', 'pydoc_data') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


if DATA:

    @pytest.mark.parametrize("name", ["ptb", "novels", "tinyshakespeare"])
    def test_known_corpora_are_there(name, tmp_path):
        found = load_corpus(name, cache=tmp_path)
        assert found.train.stat().st_size > found.valid.stat().st_size > 0

    def test_tinyshakespeare_is_cut_as_nanogpt_cuts_it(tmp_path):
        from pynlm.text import Tokenizer

        found = load_corpus("tinyshakespeare", cache=tmp_path)
        tokenizer = Tokenizer.train(found.train, "char")
        assert tokenizer.vocab_size == 65
        assert len(tokenizer.encode_file(found.train)) == 1_003_854
        assert len(tokenizer.encode_file(found.valid)) == 111_540
