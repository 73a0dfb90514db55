"""How counts become a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynlm.text.coders import count_words, parse_id
from pynlm.text.files import PathLike, read_chunks
from pynlm.text.ids import is_array, load_array

EOS = "<eos>"
UNK = "<unk>"
LARGEST_INTEGER = 10_000_000
"""A vocabulary of plain integers has all from 0 to its largest, so there is a limit to that."""


def order(found: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """Tokens and counts by falling count, equal ones by code points."""
    tokens = sorted(found, key=lambda token: (-found[token], token))
    return tokens, [found[token] for token in tokens]


def cut(
    found: Mapping[str, int],
    *,
    min_count: int,
    max_size: int | None,
    lines: int | None,
    unk: str | None,
    always_unk: bool,
) -> tuple[dict[str, int], str | None]:
    """Leave out rare tokens; add the special ones.

    Parameters
    ----------
    found : counts of the text's tokens.
    min_count, max_size : see ``Tokenizer.train``.
    lines : how often ``<eos>`` stands between them; None for no ``<eos>``.
    unk : the token that stands for those left out, or None.
    always_unk : whether it is added even if none is left out.

    Returns
    -------
    counts, unk
        `unk` is None if the vocabulary has none.

    Raises
    ------
    ValueError
        Tokens would be left out with nothing to stand for them, or no token has room.
    """
    if unk is not None and not always_unk:
        rare = min(found.values()) < min_count
        size = len(found) + (lines is not None and EOS not in found)
        if not rare and (max_size is None or size <= max_size):
            unk = None
    special: dict[str, int] = {}
    if lines is not None:
        special[EOS] = lines + found.get(EOS, 0)
    if unk is not None:
        special[unk] = found.get(unk, 0)
    plain = {token: n for token, n in found.items() if token not in special}
    kept = {token: n for token, n in plain.items() if n >= min_count}
    if max_size is not None:
        room = max_size - len(special)
        if room < 1:
            raise ValueError(
                f"Tokenizer.train: max_size must leave room for a token beside "
                f"{' and '.join(special) or 'nothing'}, got {max_size}"
            )
        kept = {token: kept[token] for token in order(kept)[0][:room]}
    if unk is not None:
        special[unk] += sum(plain.values()) - sum(kept.values())
    elif len(kept) < len(plain):
        raise ValueError(
            f"Tokenizer.train: min_count={min_count} and max_size={max_size} leave out "
            f"{len(plain) - len(kept)} tokens, so unk must be a token, got None"
        )
    return {**kept, **special}, unk


def shown_bytes() -> list[str]:
    """The printable character that stands for each byte value (OpenAI's GPT-2 byte table).

    The same table as `tokenizers`' ByteLevel: printable Latin-1 as itself, the rest from U+0100.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value) if value in plain else chr(next(others)) for value in range(256)]


def count_ids(ids: NDArray[Any], name: str) -> NDArray[np.int64]:
    """How often each id occurs, int64 [largest + 1]; IndexError for one below 0 or too large."""
    if not len(ids):
        return np.zeros(0, np.int64)
    for at in (int(np.argmin(ids)), int(np.argmax(ids))):
        if not 0 <= ids[at] < LARGEST_INTEGER:
            raise IndexError(
                f"{name}: id {ids[at]} at position {at} is not in [0, {LARGEST_INTEGER})"
            )
    return np.bincount(ids).astype(np.int64)


def count_integers(paths: Iterable[PathLike]) -> tuple[NDArray[np.int64], int]:
    """Count plain integers in text files and ``.npy`` files.

    Returns
    -------
    counts : int64 [largest + 1]
    sequences : int
        Lines of the texts, and one for each array.

    Raises
    ------
    ValueError, IndexError
        Something that is no integer in plain digits; one that is too large for an id.
    """
    counts = np.zeros(0, np.int64)
    sequences = 0
    for path in paths:
        if is_array(path):
            more = count_ids(load_array(path), str(path))
            sequences += 1
        else:
            words, lines = count_words([read_chunks(path, "word")])
            ids = np.zeros(len(words), np.int64)
            for at, word in enumerate(words):
                value = parse_id(word)
                if value is None or value >= LARGEST_INTEGER:
                    raise _refusal(path, word)
                ids[at] = value
            more = np.zeros(ids.max() + 1 if len(ids) else 0, np.int64)
            more[ids] = list(words.values())
            sequences += lines
        counts = add_counts(counts, more)
    return counts, sequences


def add_counts(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of two count arrays of any length."""
    total = np.zeros(max(len(a), len(b)), np.int64)
    total[: len(a)] += a
    total[: len(b)] += b
    return total


def _refusal(path: PathLike, word: str) -> Exception:
    """The error for a word that is no id, naming the line where it first stands."""
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        lines = (number for number, line in enumerate(file, 1) if word in line.split())
        place = f"{path}: line {next(lines, '?')}"
    if parse_id(word) is None:
        return ValueError(f"{place}: expected an integer >= 0, got {word!r}")
    return IndexError(
        f"{place}: id {word} is not in [0, {LARGEST_INTEGER}) "
        f"(numbers that are names rather than ids can be read as words: level='word')"
    )
