"""Counting and encoding in bulk: one coder a level, all giving the ids `tokenizers` would give.

A coder turns checked :class:`~pynlm.text.files.Chunk` pieces into int32 ids; the functions
``count_*`` count what a vocabulary is made from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pynlm.text._text import WordTable
from pynlm.text.files import Chunk

IntArray = NDArray[np.int32]
_CODE_POINTS = 0x110000
# the Unicode property White_Space, where words end (re's white space differs)
_SPACES = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


class UnknownTokenError(ValueError):
    """A text has a token that the vocabulary does not have, and there is no ``<unk>``."""


class Coder(Protocol):
    """Encodes chunks of one level."""

    def encode(self, chunk: Chunk) -> IntArray:
        """Ids of the chunk's tokens, int32 [n]."""


class WordCounts(NamedTuple):
    """Counts of words, and of the lines they stand on."""

    words: dict[str, int]
    lines: int


def count_words(texts: Iterable[Iterable[Chunk]]) -> WordCounts:
    """Count the words and lines of several texts (a last line needs no newline)."""
    table = WordTable()
    lines = 0
    for text in texts:
        last = b"\n"
        for chunk in text:
            table.count(chunk.data)
            lines += chunk.data.count(b"\n")
            last = chunk.data[-1:]
        lines += last != b"\n"
    words = (word.decode("utf-8") for word in table.words())
    return WordCounts(dict(zip(words, table.counts().tolist(), strict=True)), lines)


def count_characters(texts: Iterable[Iterable[Chunk]]) -> dict[str, int]:
    """Count the characters (code points) of several texts."""
    counts = np.zeros(_CODE_POINTS, np.int64)
    for text in texts:
        for chunk in text:
            found = np.bincount(_code_points(chunk.data))
            counts[: len(found)] += found
    present = np.flatnonzero(counts)
    return {chr(point): int(counts[point]) for point in present}


def count_bytes(texts: Iterable[Iterable[Chunk]]) -> NDArray[np.int64]:
    """Count the bytes of several texts, int64 [256]."""
    counts = np.zeros(256, np.int64)
    for text in texts:
        for chunk in text:
            counts += np.bincount(np.frombuffer(chunk.data, np.uint8), minlength=256)
    return counts


class WordCoder:
    """Words between white space; `eos` at each newline unless None; `unk` or an error."""

    def __init__(self, tokens: Sequence[str], eos: int | None, unk: int | None) -> None:
        self._table = WordTable([token.encode("utf-8") for token in tokens])
        self._eos = -1 if eos is None else eos
        self._unk = -1 if unk is None else unk

    def encode(self, chunk: Chunk) -> IntArray:
        """Ids of the chunk's words.

        Raises
        ------
        UnknownTokenError
            A word is not in the vocabulary and there is no ``<unk>``.
        """
        ids, stop = self._table.encode(chunk.data, self._eos, self._unk)
        if stop >= 0:
            self._refuse(chunk, stop)
        return ids

    def _refuse(self, chunk: Chunk, at: int) -> None:
        word = _word_at(chunk, at)
        raise UnknownTokenError(
            f"{chunk.place(at)}: the word {word!r} is not in the vocabulary, which has no <unk>"
        )


class IntegerCoder(WordCoder):
    """Integers between white space, each of which is its own id, below `limit`."""

    def __init__(self, tokens: Sequence[str], eos: int | None, limit: int) -> None:
        super().__init__(tokens, eos, None)
        self._limit = limit

    def _refuse(self, chunk: Chunk, at: int) -> None:
        word = _word_at(chunk, at)
        if parse_id(word) is None:
            raise ValueError(f"{chunk.place(at)}: expected an integer >= 0, got {word!r}")
        raise IndexError(f"{chunk.place(at)}: id {word} is not in [0, {self._limit})")


class CharCoder:
    """Unicode code points, newlines among them."""

    def __init__(self, tokens: Sequence[str], unk: int | None) -> None:
        self._id = np.full(_CODE_POINTS, -1 if unk is None else unk, np.int32)
        for index, token in enumerate(tokens):
            if index != unk:
                self._id[ord(token)] = index

    def encode(self, chunk: Chunk) -> IntArray:
        """Ids of the chunk's characters.

        Raises
        ------
        UnknownTokenError
            A character is not in the vocabulary and there is no ``<unk>``.
        """
        points = _code_points(chunk.data)
        ids: IntArray = self._id[points]
        if len(ids) and ids.min() < 0:
            at = int(np.argmin(ids >= 0))
            character = chr(points[at])
            offset = len(chunk.data.decode("utf-8")[:at].encode("utf-8"))
            raise UnknownTokenError(
                f"{chunk.place(offset)}: the character {character!r} is not in the vocabulary, "
                f"which has no <unk> (a vocabulary made with min_count=2 has one)"
            )
        return ids


class ByteCoder:
    """Bytes, all 256 of which have an id."""

    def __init__(self, order: NDArray[np.uint8]) -> None:
        self._id = np.empty(256, np.int32)
        self._id[order] = np.arange(256, dtype=np.int32)

    def encode(self, chunk: Chunk) -> IntArray:
        """Ids of the chunk's bytes."""
        ids: IntArray = self._id[np.frombuffer(chunk.data, np.uint8)]
        return ids


def parse_id(word: str) -> int | None:
    """The integer that `word` writes in plain decimal digits, None if it does not."""
    if word.isascii() and word.isdigit() and (word == "0" or word[0] != "0"):
        return int(word)
    return None


def _word_at(chunk: Chunk, at: int) -> str:
    # as many bytes as a message has room for; cut off inside a character at worst
    text = chunk.data[at : at + 400].decode("utf-8", "ignore")
    return _SPACES.split(text, maxsplit=1)[0][:80]


def _code_points(data: bytes) -> NDArray[np.uint8] | NDArray[np.uint32]:
    if data.isascii():
        return np.frombuffer(data, np.uint8)
    return np.frombuffer(data.decode("utf-8").encode("utf-32-le"), "<u4").astype(np.uint32)
