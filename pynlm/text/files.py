"""Reading text files piece by piece with errors that name the place, and writing files safely."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

PathLike = str | os.PathLike[str]
Unit = Literal["word", "char", "byte"]

CHUNK = 1 << 20
LONGEST_WORD = 16 << 20
"""A run of bytes without a space that is longer than this is no text (and would fill memory)."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Chunk:
    """A piece of a text that ends where a unit (word, character, byte) ends.

    Attributes
    ----------
    data : the bytes; valid UTF-8 unless the unit is the byte.
    name : where they come from, for messages.
    offset : byte offset of the first of them, from 0.
    line : number of the line on which they begin, from 1.
    """

    data: bytes
    name: str
    offset: int
    line: int

    def place(self, at: int) -> str:
        """``name: line n, byte offset m`` of byte `at` of this chunk."""
        line = self.line + self.data.count(b"\n", 0, at)
        return f"{self.name}: line {line}, byte offset {self.offset + at}"


def require_text(path: PathLike) -> Path:
    """`path` as a Path, if it is a file with something in it.

    Raises
    ------
    FileNotFoundError
        There is nothing there.
    IsADirectoryError
        It is a folder.
    ValueError
        The file is empty.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a text file, got a folder")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such text file")
    # a pipe or a device has no size to look at; read_chunks finds out whether it is empty
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    return path


def read_chunks(path: PathLike, unit: Unit, size: int = CHUNK) -> Iterator[Chunk]:
    """Yield the text file in pieces of about `size` bytes; see :func:`cut_stream`."""
    path = require_text(path)
    empty = True
    with open(path, "rb") as file:
        for chunk in cut_stream(file, str(path), unit, size):
            empty = False
            yield chunk
    if empty:
        raise ValueError(f"{path}: the file is empty")


def cut_text(text: str | bytes, unit: Unit, name: str = "text") -> Iterator[Chunk]:
    """Yield a text in memory in pieces; see :func:`cut_stream`."""
    if isinstance(text, str):
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            line = text.count("\n", 0, error.start) + 1
            raise ValueError(
                f"{name}: line {line}, character {error.start}: a lone surrogate "
                f"({text[error.start]!r}) is no text"
            ) from None
    else:
        data = text
    return cut_stream(io.BytesIO(data), name, unit)


def cut_stream(stream: BinaryIO, name: str, unit: Unit, size: int = CHUNK) -> Iterator[Chunk]:
    """Yield a stream in pieces that end where a `unit` ends.

    A UTF-8 byte order mark at the start is no part of the text (at byte level it is).

    Raises
    ------
    ValueError
        Bytes that are not UTF-8 (line and byte offset named), or a "word" of more than 16 MiB.
    """
    rest = b""
    offset, line = 0, 1
    while True:
        block = stream.read(size)
        data = rest + block
        if offset == 0 and unit != "byte":
            # may hold back up to two bytes of a first block that is shorter than the mark
            if block and len(data) < len(_BOM) and _BOM.startswith(data):
                rest = data
                continue
            if data.startswith(_BOM):
                data, offset = data[len(_BOM) :], len(_BOM)
        end = _cut(data, unit) if block else len(data)
        if len(data) - end > LONGEST_WORD:
            place = Chunk(data, name, offset, line).place(end)
            raise ValueError(f"{place}: {len(data) - end} bytes without a space are no text")
        piece, rest = data[:end], data[end:]
        if piece:
            chunk = Chunk(piece, name, offset, line)
            if unit != "byte":
                check_utf8(chunk)
            yield chunk
            offset += len(piece)
            line += piece.count(b"\n")
        if not block:
            return


def _cut(data: bytes, unit: Unit) -> int:
    """Length of the part of `data` after which a unit ends for certain."""
    if unit == "byte":
        return len(data)
    if unit == "word":
        # ASCII spaces are enough, and never lie inside a character
        return max(data.rfind(b"\n"), data.rfind(b" "), data.rfind(b"\t")) + 1
    # Hold back a last character whose bytes have not all come. Wrong bytes are left to the check.
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            width = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if width > back else len(data)
        if byte < 0x80:
            break
    return len(data)


def check_utf8(chunk: Chunk) -> None:
    """Raise ValueError, naming line and byte offset, for the first byte that is not UTF-8."""
    if chunk.data.isascii():
        return
    try:
        chunk.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{chunk.place(error.start)}: byte 0x{chunk.data[error.start]:02x} is not UTF-8 "
            f"({error.reason}); convert the text to UTF-8 (models of level 'byte' read any file)"
        ) from None


@contextlib.contextmanager
def write_aside(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file beside `path` for writing and put it in its place at the end, by one rename.

    What stood at `path` stays whole until then, and stays altogether if the block raises. File and
    folder are forced to the disk, so after a power cut, too, there is the old file or the new.

    Raises
    ------
    OSError
        The disk refused; where it is full, the error names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: processes that share a cache may write the same file at once.
    aside = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        # Only writing ends in these, so the file is ours, whatever else the block reads.
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if isinstance(error, OSError) and error.errno in full and error.filename is None:
            error.filename = str(path)
        raise


def fsync_folder(folder: PathLike) -> None:
    """Force the entries of a folder (what was renamed, made or linked in it) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
