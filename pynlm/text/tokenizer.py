"""Vocabularies: text to token ids and back.

The `tokenizers` library owns segmentation, vocabularies and the file ``tokenizer.json``; what is
added here is the order of the ids (by falling count), the counts, ``<eos>``, and bulk encoding
that gives the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pynlm.text import coders, vocabulary
from pynlm.text.files import Chunk, PathLike, Unit, cut_text, read_chunks, write_aside
from pynlm.text.ids import IntArray, as_ids, check_ids, is_array, load_array, narrow
from pynlm.text.vocabulary import EOS, UNK

if TYPE_CHECKING:
    import tokenizers

Level = Literal["word", "char", "byte", "integer"]
Text = str | bytes | Sequence[int] | NDArray[np.integer[Any]]
LEVELS: tuple[Level, ...] = ("word", "char", "byte", "integer")

_UNIT: dict[Level, Unit] = {"word": "word", "char": "char", "byte": "byte", "integer": "word"}
_FORMAT = 1


class Tokenizer:
    """A vocabulary whose ids fall in frequency, with the counts they had in training text.

    Made by :meth:`train`, :meth:`from_ids` or :meth:`load`.

    Levels
    ------
    word
        Words are what stands between white space (Unicode's White_Space). Every line ends in
        ``<eos>``, a last line without a newline and a blank line too: that is how the published
        token counts of PTB and WikiText-2 come about. A word of the text that is spelled
        ``<eos>`` or ``<unk>`` is that token.
    char
        Unicode code points; the newline is one of them, and there is no ``<eos>``.
    byte
        The 256 byte values, whether the text has them or not. Any file can be read.
    integer
        Plain integers separated by white space, one sequence a line; or arrays of them. An integer
        *is* its id, so ids do not fall in frequency here. ``<eos>`` is the integer after the
        largest.

    Parameters
    ----------
    tokens : sequence of str
        Tokens in the order of their ids.
    counts : integer sequence [V]
        How often each occurred in the training text.
    level : str
        One of the levels above.
    eos, unk : str or None
        Which token ends a line, and which stands for tokens that are not in the vocabulary.

    Attributes
    ----------
    level : str
    counts : int64 [V], read-only
    eos_id, unk_id : int or None

    Raises
    ------
    ValueError
        Tokens repeat, counts do not fit, or a special token is not among the tokens.

    Examples
    --------
    >>> tokenizer = Tokenizer(["the", "<eos>", "cat", "<unk>"], [3, 2, 1, 0], "word")
    >>> tokenizer.encode("the dog")
    array([0, 3, 1], dtype=int32)
    >>> tokenizer.decode([0, 2, 1])
    'the cat\\n'
    """

    def __init__(
        self,
        tokens: Sequence[str],
        counts: Sequence[int] | NDArray[np.integer[Any]],
        level: Level,
        *,
        eos: str | None = EOS,
        unk: str | None = UNK,
    ) -> None:
        _check_level("Tokenizer", level)
        self.level: Level = level
        self._tokens = list(tokens)
        self._ids = {token: index for index, token in enumerate(self._tokens)}
        self.counts: NDArray[np.int64] = np.array(counts, np.int64)
        self.counts.flags.writeable = False
        if len(self._ids) != len(self._tokens):
            repeated = next(t for i, t in enumerate(self._tokens) if self._ids[t] != i)
            raise ValueError(f"Tokenizer: tokens must differ, got {repeated!r} twice")
        if self.counts.shape != (len(self._tokens),):
            raise ValueError(
                f"Tokenizer: counts must have shape [V={len(self._tokens)}], "
                f"got {list(self.counts.shape)}"
            )
        for role, token in (("eos", eos), ("unk", unk)):
            if token is not None and token not in self._ids:
                raise ValueError(f"Tokenizer: {role} {token!r} must be one of the tokens")
        self._eos, self._unk = eos, unk
        self.eos_id: int | None = None if eos is None else self._ids[eos]
        self.unk_id: int | None = None if unk is None else self._ids[unk]
        self._coder = self._make_coder()

    def _make_coder(self) -> coders.Coder:
        if self.level == "word":
            return coders.WordCoder(self._tokens, self.eos_id, self.unk_id)
        if self.level == "integer":
            return coders.IntegerCoder(self._tokens, self.eos_id, len(self._tokens))
        if self.level == "char":
            odd = [t for t in self._tokens if len(t) != 1 and t != self._unk]
            if odd:
                raise ValueError(f"Tokenizer: a character must be one code point, got {odd[0]!r}")
            return coders.CharCoder(self._tokens, self.unk_id)
        values = {shown: value for value, shown in enumerate(vocabulary.shown_bytes())}
        if set(values) != set(self._tokens):
            raise ValueError("Tokenizer: a byte vocabulary must have exactly the 256 byte tokens")
        self._bytes = np.array([values[token] for token in self._tokens], np.uint8)
        return coders.ByteCoder(self._bytes)

    # ---- making one

    @classmethod
    def train(
        cls,
        files: PathLike | Sequence[PathLike],
        level: Level = "word",
        *,
        min_count: int = 1,
        max_size: int | None = None,
        eos: bool = True,
        unk: str | None = UNK,
    ) -> Tokenizer:
        """Make a vocabulary from text files.

        Ids are given by falling count; equal counts in the order of the tokens' code points, so
        that the order of the files does not matter. ``<eos>`` counts the lines, and ``<unk>`` the
        tokens that were left out.

        Parameters
        ----------
        files : path or sequence of paths
            Text files; at level ``integer`` also ``.npy`` files of one-dimensional integer arrays.
        level : str
            ``word``, ``char``, ``byte`` or ``integer``.
        min_count : int
            Leave out words (characters) that occur less often.
        max_size : int, optional
            The largest number of ids, ``<eos>`` and ``<unk>`` included; the most frequent tokens
            stay. At level ``integer`` the number of integers, whether the files have them or not.
        eos : bool
            Whether a line (levels ``word`` and ``integer``) ends in ``<eos>``.
        unk : str or None
            What stands for tokens that are left out or not seen; None makes them an error. At
            level ``word`` the vocabulary always has it; at level ``char`` only if characters were
            left out, so that an untouched text gives exactly its own characters.

        Raises
        ------
        ValueError
            An empty file, bytes that are not UTF-8, no words at all, or an impossible size.
        FileNotFoundError
            A file is missing.
        """
        _check_level("Tokenizer.train", level)
        if min_count < 1:
            raise ValueError(f"Tokenizer.train: min_count must be at least 1, got {min_count}")
        paths = (
            [files] if isinstance(files, (str, Path)) else list(cast("Sequence[PathLike]", files))
        )
        if not paths:
            raise ValueError("Tokenizer.train: files must name at least one file, got none")
        if level == "integer":
            return cls._train_integers(paths, min_count, max_size, eos)
        texts = (read_chunks(path, _UNIT[level]) for path in paths)
        if level == "byte":
            if min_count > 1 or max_size is not None:
                raise ValueError(
                    "Tokenizer.train: min_count and max_size have no meaning at level 'byte'"
                )
            shown = vocabulary.shown_bytes()
            found = {shown[value]: int(n) for value, n in enumerate(coders.count_bytes(texts))}
            return cls(*vocabulary.order(found), level, eos=None, unk=None)
        lines = None
        if level == "word":
            counted = coders.count_words(texts)
            found = counted.words
            lines = counted.lines if eos else None
        else:
            found = coders.count_characters(texts)
        if not found:
            raise ValueError(f"Tokenizer.train: no words in {', '.join(map(str, paths))}")
        found, unk = vocabulary.cut(
            found,
            min_count=min_count,
            max_size=max_size,
            lines=lines,
            unk=unk,
            always_unk=level == "word",
        )
        return cls(*vocabulary.order(found), level, eos=None if lines is None else EOS, unk=unk)

    @classmethod
    def _train_integers(
        cls, paths: Sequence[PathLike], min_count: int, max_size: int | None, eos: bool
    ) -> Tokenizer:
        if min_count > 1:
            raise ValueError("Tokenizer.train: min_count has no meaning at level 'integer'")
        counts, lines = vocabulary.count_integers(paths)
        if not len(counts):
            raise ValueError(f"Tokenizer.train: no integers in {', '.join(map(str, paths))}")
        return cls._from_counts(counts, max_size, lines if eos else None, "Tokenizer.train")

    @classmethod
    def from_ids(cls, ids: Any, *, vocab_size: int | None = None, eos: bool = False) -> Tokenizer:
        """Make an ``integer`` vocabulary from an array of token ids.

        Parameters
        ----------
        ids : integers [n]
            One sequence.
        vocab_size : int, optional
            Number of ids without ``<eos>``; default the largest id + 1.
        eos : bool
            Whether the vocabulary has an ``<eos>``, as its last id.

        Examples
        --------
        >>> Tokenizer.from_ids([3, 1, 1], vocab_size=5).counts
        array([0, 2, 0, 1, 0])
        """
        counts = vocabulary.count_ids(as_ids(ids, "Tokenizer.from_ids"), "Tokenizer.from_ids: ids")
        return cls._from_counts(counts, vocab_size, 1 if eos else None, "Tokenizer.from_ids")

    @classmethod
    def _from_counts(
        cls, counts: NDArray[np.int64], size: int | None, lines: int | None, function: str
    ) -> Tokenizer:
        size = len(counts) if size is None else size
        if len(counts) > size:
            raise IndexError(f"{function}: id {len(counts) - 1} is not in [0, {size})")
        tokens = [str(i) for i in range(size)]
        counts = vocabulary.add_counts(counts, np.zeros(size, np.int64))
        if lines is None:
            return cls(tokens, counts, "integer", eos=None, unk=None)
        return cls([*tokens, EOS], np.append(counts, lines), "integer", eos=EOS, unk=None)

    # ---- looking things up

    @property
    def vocab_size(self) -> int:
        """V, the number of ids."""
        return len(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def __repr__(self) -> str:
        return f"Tokenizer(level={self.level!r}, vocab_size={self.vocab_size})"

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens in the order of their ids."""
        return tuple(self._tokens)

    def token(self, id: int) -> str:
        """The token with this id (IndexError outside [0, V)).

        A byte is shown as the printable character that `tokenizers` uses for it; see
        :meth:`to_bytes`.
        """
        if not 0 <= id < len(self._tokens):
            raise IndexError(f"Tokenizer.token: id {id} is not in [0, {len(self._tokens)})")
        return self._tokens[id]

    def id(self, token: str) -> int:
        """The id of a token, that of ``<unk>`` if the vocabulary does not have it.

        Raises
        ------
        KeyError
            It does not have ``<unk>`` either.
        """
        found = self._ids.get(token, self.unk_id)
        if found is None:
            raise KeyError(f"Tokenizer.id: {token!r} is not in the vocabulary, which has no <unk>")
        return found

    # ---- encoding

    def encode(self, text: Text) -> IntArray:
        """Token ids of a text, int32 [n].

        Parameters
        ----------
        text : str, bytes, or integers
            Integers are ids already: they are checked, and nothing is added to them.

        Raises
        ------
        UnknownTokenError
            A token is not in the vocabulary, which has no ``<unk>``.
        IndexError
            An id outside [0, V).
        """
        if isinstance(text, (str, bytes)):
            return _join(self._encode(cut_text(text, _UNIT[self.level])))
        ids = as_ids(text, "Tokenizer.encode")
        check_ids(ids, self.vocab_size, "Tokenizer.encode")
        return ids

    def encode_file(self, path: PathLike) -> IntArray:
        """Token ids of a file, int32 [n]; see :meth:`encode_chunks` for one larger than memory."""
        return _join(self.encode_chunks(path))

    def encode_chunks(self, path: PathLike) -> Iterator[IntArray]:
        """Yield the token ids of a file piece by piece, int32 arrays.

        At level ``integer`` a ``.npy`` file is one sequence and read as it is, without an
        ``<eos>`` at its end.

        Raises
        ------
        FileNotFoundError, ValueError, UnknownTokenError, IndexError
            The file is missing; it is empty or not UTF-8; a token is unknown; an id is too large.
        """
        if self.level == "integer" and is_array(path):
            array = load_array(path)
            for start in range(0, len(array), 1 << 18):
                ids = narrow(array[start : start + (1 << 18)], str(path), start)
                check_ids(ids, self.vocab_size, str(path), start)
                yield ids
        else:
            yield from self._encode(read_chunks(path, _UNIT[self.level]))

    def _encode(self, chunks: Iterable[Chunk]) -> Iterator[IntArray]:
        last = b"\n"
        for chunk in chunks:
            last = chunk.data[-1:]
            yield self._coder.encode(chunk)
        # at levels without lines there is no eos
        if self.eos_id is not None and last != b"\n":
            yield np.array([self.eos_id], np.int32)

    # ---- decoding

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of these ids.

        Words are joined by one space and ``<eos>`` is a newline; bytes that are not UTF-8 become
        U+FFFD.
        """
        ids = self.encode(ids)
        if self.level == "byte":
            return self.to_bytes(ids).decode("utf-8", "replace")
        found = [self._tokens[i] for i in ids.tolist()]
        if self.level == "char":
            return "".join(found)
        text = " ".join("\n" if i == self.eos_id else t for i, t in zip(ids, found, strict=True))
        return text.replace(" \n", "\n").replace("\n ", "\n")

    def to_bytes(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> bytes:
        """The text of these ids as bytes: UTF-8, and at level ``byte`` exactly those bytes."""
        if self.level == "byte":
            return self._bytes[self.encode(ids)].tobytes()
        return self.decode(ids).encode("utf-8")

    # ---- keeping

    def backend(self) -> tokenizers.Tokenizer:
        """The same vocabulary as an object of the `tokenizers` library.

        For a line of text it gives the same ids as :meth:`encode`.
        """
        from pynlm.text.backend import build

        return build(self._tokens, self.level, self._eos, self._unk)

    def digest(self) -> str:
        """SHA-256 of all that the vocabulary is (tokens, order, counts, level, special tokens)."""
        facts = [self.level, self._eos, self._unk, self._tokens, self.counts.tolist()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def save(self, path: PathLike) -> None:
        """Write ``tokenizer.json``, put in place by one rename.

        The file can be read by `tokenizers` too; level and counts stand in its model section.
        """
        facts = json.loads(self.backend().to_str())
        facts["model"]["pynlm"] = {
            "format": _FORMAT,
            "level": self.level,
            "eos": self._eos,
            "unk": self._unk,
            "counts": self.counts.tolist(),
        }
        with write_aside(path) as file:
            file.write(json.dumps(facts, ensure_ascii=False).encode("utf-8"))

    @classmethod
    def load(cls, path: PathLike) -> Tokenizer:
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            There is none.
        ValueError
            It is damaged, or was written by something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such tokenizer.json")
        try:
            facts = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: not JSON, or cut short ({error})") from None
        try:
            ours = facts["model"]["pynlm"]
            if ours["format"] != _FORMAT:
                raise ValueError(f"{path}: format {ours['format']!r} is newer than this pynlm")
            vocabulary: Mapping[str, int] = facts["model"]["vocab"]
            tokens = sorted(vocabulary, key=vocabulary.__getitem__)
            if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
                raise ValueError(f"{path}: ids must be 0 to {len(tokens) - 1} without gaps")
            return cls(tokens, ours["counts"], ours["level"], eos=ours["eos"], unk=ours["unk"])
        except (KeyError, TypeError):
            raise ValueError(f"{path}: not a vocabulary that pynlm saved") from None


def _check_level(function: str, level: str) -> None:
    if level not in LEVELS:
        raise ValueError(f"{function}: level must be one of {', '.join(LEVELS)}, got {level!r}")


def _join(pieces: Iterable[IntArray]) -> IntArray:
    found = list(pieces)
    return np.concatenate(found) if found else np.zeros(0, np.int32)
