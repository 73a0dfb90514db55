"""Token ids on disk, memory-mapped, so that a corpus larger than memory trains."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynlm.text.files import PathLike, require_text, write_aside
from pynlm.text.ids import IntArray, as_ids, check_ids

if TYPE_CHECKING:
    from pynlm.text.tokenizer import Tokenizer

_HEADER = 128
_BLOCK = 1 << 22


class TokenStore:
    """A file of token ids, opened without reading it.

    The file is a ``.npy`` file, int32 [n], that NumPy can open by itself.

    Parameters
    ----------
    path : path
        A file that :meth:`write` or :meth:`build` made.

    Attributes
    ----------
    path : Path
    ids : int32 [n], read-only
        The memory map. Reading a part of it reads that part of the file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no such file, or shorter than it says.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file of token ids")
        try:
            ids = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(
                f"{self.path}: not a file of token ids, or cut short ({error})"
            ) from None
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int32 or ids.ndim != 1:
            raise ValueError(f"{self.path}: expected int32 token ids [n], got another array")
        self.ids: IntArray = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"TokenStore({str(self.path)!r}, tokens={len(self)})"

    def check(self, vocab_size: int) -> None:
        """Read all ids; raise IndexError for the first outside [0, vocab_size)."""
        for start in range(0, len(self.ids), _BLOCK):
            check_ids(self.ids[start : start + _BLOCK], vocab_size, str(self.path), start)

    @classmethod
    def write(cls, path: PathLike, pieces: Iterable[Any]) -> TokenStore:
        """Write the ids of `pieces` (integer arrays, one after another) and open them.

        Only one piece is in memory at a time. The file appears under its name when it is whole.

        Raises
        ------
        ValueError
            There are no ids at all.
        OSError
            The disk is full, for one; what stood at `path` is untouched then.
        """
        path = Path(path)
        count = 0
        with write_aside(path) as file:
            file.write(bytes(_HEADER))
            for piece in pieces:
                ids = as_ids(piece, "TokenStore.write")
                file.write(ids.astype("<i4", copy=False).data)
                count += len(ids)
            if not count:
                raise ValueError(f"TokenStore.write: no token ids to write to {path}")
            file.seek(0)
            file.write(_header(count))
        return cls(path)

    @classmethod
    def build(
        cls, path: PathLike, tokenizer: Tokenizer, files: PathLike | Sequence[PathLike]
    ) -> TokenStore:
        """Encode text files into `path` in a stream, unless that has been done already.

        Beside the ids stands ``<path>.json``, which says from what they came: the vocabulary's
        digest and each file's name, size and time of change. If all of it still holds, the ids are
        opened as they are.

        Raises
        ------
        FileNotFoundError, ValueError, IndexError
            See ``Tokenizer.encode_chunks``.
        """
        path = Path(path)
        paths = [files] if isinstance(files, (str, Path)) else list(files)  # type: ignore[arg-type]
        if not paths:
            raise ValueError("TokenStore.build: files must name at least one file, got none")
        origin = _origin(tokenizer, [require_text(file) for file in paths])
        note = path.with_name(path.name + ".json")
        with contextlib.suppress(OSError, ValueError):
            if json.loads(note.read_bytes()) == {**origin, "tokens": len(store := cls(path))}:
                return store
        # first the note goes, then the ids come, then the new note: it never vouches for other ids
        note.unlink(missing_ok=True)
        store = cls.write(path, _encode(tokenizer, paths))
        with write_aside(note) as file:
            file.write(json.dumps({**origin, "tokens": len(store)}, indent=1).encode("utf-8"))
        return store


def _encode(tokenizer: Tokenizer, paths: Iterable[PathLike]) -> Iterator[IntArray]:
    for path in paths:
        yield from tokenizer.encode_chunks(path)


def _origin(tokenizer: Tokenizer, paths: Iterable[Path]) -> dict[str, Any]:
    files = []
    for path in paths:
        facts = path.stat()
        files.append([str(path.resolve()), facts.st_size, facts.st_mtime_ns])
    return {"vocabulary": tokenizer.digest(), "files": files}


def file_digest(path: PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _header(count: int) -> bytes:
    """A ``.npy`` header (format 1.0) of fixed length for int32 [count]."""
    facts = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({count},), }}"
    room = _HEADER - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", room) + facts.ljust(room - 1).encode() + b"\n"
