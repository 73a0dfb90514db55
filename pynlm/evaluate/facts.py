"""Facts of a text that its token ids do not carry: words, characters, the start of its context."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TextCounts:
    """Words (divided by white space) and characters of a text.

    At word level a character count is that of the text the model codes: words joined by one space,
    each line ended by one newline. At other levels it is that of the text as it stands.
    """

    words: int
    characters: int


def count_lines(lines: Iterable[bytes], level: str) -> TextCounts:
    """Count UTF-8 ``lines`` (at byte level any bytes: a broken sequence counts as characters)."""
    words = characters = 0
    for line in lines:
        # bytes.split knows only ASCII's white space, which is all there is in an ASCII line
        text = line if line.isascii() else line.decode("utf-8", "replace")
        found = text.split()
        words += len(found)
        if level == "word":
            # one separator a word, the newline among them; a blank line is its newline
            characters += sum(map(len, found)) + max(len(found), 1)
        else:
            characters += len(text)
    return TextCounts(words, characters)


def count_text(text: str | bytes, level: str) -> TextCounts:
    """Counts of a text in memory."""
    data = text.encode("utf-8") if isinstance(text, str) else text
    return count_lines(io.BytesIO(data), level)


def count_file(path: str | Path, level: str) -> TextCounts:
    """Counts of a file, read line by line."""
    with open(path, "rb") as file:
        return count_lines(file, level)


def start_of(tokenizer: Any) -> tuple[int, str]:
    """``(id, name)`` of the token read, from a zero state, before the first scored one.

    ``<eos>`` where the vocabulary has it; else the newline (characters and bytes: a text begins as
    a line begins); else the most frequent token, id 0.
    """
    if tokenizer.eos_id is not None:
        return int(tokenizer.eos_id), str(tokenizer.token(tokenizer.eos_id))
    newline = _newline(tokenizer)
    if newline is not None:
        return newline, "newline"
    return 0, f"token 0 ({tokenizer.token(0)!r})"


def ends_sentences(tokenizer: Any) -> bool:
    """Whether some token ends a sentence: ``<eos>``, or the newline of characters and bytes."""
    return tokenizer.eos_id is not None or _newline(tokenizer) is not None


def _newline(tokenizer: Any) -> int | None:
    if tokenizer.level not in ("char", "byte"):
        return None
    try:
        ids = tokenizer.encode("\n")
    except (ValueError, KeyError):
        return None
    return int(ids[0]) if len(ids) == 1 and ids[0] != tokenizer.unk_id else None
