"""Pieces of text files, errors that name the place, and files that appear whole or not at all."""

import errno
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynlm.text import files
from pynlm.text.files import cut_stream, cut_text, read_chunks, write_aside

UNITS = ("word", "char", "byte")


@pytest.mark.parametrize("unit", UNITS)
@given(text=st.text(alphabet="aé ́\n漢😀\t", max_size=60), size=st.integers(1, 9))
def test_pieces_join_to_the_text(unit, text, size):
    data = text.encode()
    chunks = list(cut_stream(io.BytesIO(data), "t", unit, size))
    assert b"".join(chunk.data for chunk in chunks) == data
    at = 0
    for chunk in chunks:
        assert (chunk.offset, chunk.line) == (at, data[:at].count(b"\n") + 1)
        at += len(chunk.data)
        if unit != "byte":
            chunk.data.decode()
        if unit == "word" and at < len(data):
            assert chunk.data[-1:] in (b" ", b"\n", b"\t")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("unit", ["word", "char"])
@pytest.mark.parametrize(
    ("data", "line", "offset", "byte"),
    [
        (b"one\ntwo \xff three\n", 2, 8, "0xff"),
        (b"caf\xc3\xa9\nx\xc3 y\n", 2, 7, "0xc3"),
        (b"ok\nends \xe2\x82", 2, 8, "0xe2"),
        (b"\x80", 1, 0, "0x80"),
        (b"\xef\xbb\xbfmark \xfe", 1, 8, "0xfe"),
        (b"\xef\xbbx", 1, 0, "0xef"),
        (b"a surrogate \xed\xa0\x80 ", 1, 12, "0xed"),
    ],
)
def test_bytes_that_are_not_utf8_are_named(tmp_path, unit, size, data, line, offset, byte):
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=f"line {line}, byte offset {offset}: byte {byte}"
    ) as error:
        list(read_chunks(path, unit, size))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_byte_order_mark(size):
    data = b"\xef\xbb\xbfa b"
    for unit, expected in (("word", b"a b"), ("char", b"a b"), ("byte", data)):
        chunks = cut_stream(io.BytesIO(data), "t", unit, size)
        assert b"".join(chunk.data for chunk in chunks) == expected


def test_missing_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt: no such text file"):
        list(read_chunks(tmp_path / "nothing.txt", "word"))
    with pytest.raises(IsADirectoryError, match="got a folder"):
        list(read_chunks(tmp_path, "word"))
    for name, data in (("empty.txt", b""), ("mark.txt", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}: the file is empty"):
            list(read_chunks(tmp_path / name, "word"))


def test_a_file_without_spaces_does_not_fill_memory(monkeypatch):
    monkeypatch.setattr(files, "LONGEST_WORD", 50)
    data = b"two lines\nof text " + b"x" * 100
    with pytest.raises(ValueError, match=r"t: line 2, byte offset 18: .* without a space"):
        list(cut_stream(io.BytesIO(data), "t", "word", 10))


def test_a_lone_surrogate_is_no_text():
    with pytest.raises(ValueError, match="line 2, character 3: a lone surrogate"):
        cut_text("a\nb\ud800", "word")


def test_write_aside(tmp_path):
    path = tmp_path / "new" / "file"
    with write_aside(path) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with pytest.raises(OSError, match="full"), write_aside(path) as file:
        file.write(b"sec")
        raise OSError("the disk is full")
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_write_aside_forces_file_and_folder_to_the_disk(tmp_path, monkeypatch):
    done = []

    def record(name):
        real = getattr(os, name)

        def call(what, *rest):
            place = os.readlink(f"/proc/self/fd/{what}") if name == "fsync" else what
            done.append((name, Path(place).name))
            return real(what, *rest)

        monkeypatch.setattr(os, name, call)

    record("fsync")
    record("replace")
    with write_aside(tmp_path / "file") as file:
        file.write(b"x")
    aside = done[0][1]
    assert aside.startswith(".file.")
    assert done == [("fsync", aside), ("replace", aside), ("fsync", tmp_path.name)]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*file'"), write_aside(path):
        pass
    assert path.read_bytes() == b"old"
    # an error about another file keeps its name
    with pytest.raises(FileNotFoundError, match="other"), write_aside(path):
        (tmp_path / "other").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
