"""English prose out of the language reference that every CPython carries (`pydoc_data.topics`).

It is no large text (about 60,000 words) and differs a little between Python versions, but it is
there on every machine without a download.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Mapping, Sequence

_TOPICS_NEEDED = 20
_BLOCK = 10
"""Consecutive paragraphs that stay together when the text is split."""
_CYCLE = 20
"""Of this many blocks one validates and one tests."""

# Words of every English sentence: what tells prose from code, grammar and tables.
_COMMON = {
    *("a", "an", "and", "are", "as", "at", "be", "but", "by", "can", "for", "from", "has", "have"),
    *("if", "in", "is", "it", "may", "not", "of", "on", "or", "that", "the", "this", "to", "used"),
    *("was", "when", "which", "will", "with"),
}
_STRAIGHT = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "...", "\u00a0": " "}
)
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*\n]+?)(?<=\S)\1(?![\w*])")
_BULLET = re.compile(r"^(?:[*•-]|\d+\.|\[\d+\]|\(?[a-z]\))\s+")
_UNDERLINE = re.compile(r"^\s*([*=\-~^\"])\1{2,}\s*$")
_TOKEN = re.compile(r"(?:[a-z]\.){2,}|etc\.|\w+(?:[-'.]\w+)*|\.\.\.|[^\w\s]")


def paragraphs(topics: Mapping[str, str] | None = None) -> list[str]:
    """The prose paragraphs of the reference, words and punctuation marks separated by one space.

    Paragraphs that several topics share are there once. Headings, code, grammar and tables are
    left out.

    Parameters
    ----------
    topics : mapping of names to texts, optional
        Default ``pydoc_data.topics.topics``.

    Raises
    ------
    FileNotFoundError
        This Python has no such text (some distributions package it apart).
    """
    if topics is None:
        topics = _all_topics()
    seen: dict[str, None] = {}
    for name in sorted(topics):
        for block in _blocks(topics[name]):
            tokens = _TOKEN.findall(_EMPHASIS.sub(r"\2", block.translate(_STRAIGHT)))
            if _is_prose(tokens):
                seen.setdefault(" ".join(tokens))
    return list(seen)


def _all_topics() -> Mapping[str, str]:
    found: Mapping[str, str] = {}
    with contextlib.suppress(ImportError):
        found = importlib.import_module("pydoc_data.topics").topics
    if len(found) < _TOPICS_NEEDED:
        raise FileNotFoundError(
            "the default corpus is the module pydoc_data.topics, which this Python lacks; "
            "name another corpus, or give text files"
        )
    return found


def split(lines: Sequence[str]) -> dict[str, list[str]]:
    """Split paragraphs into train, valid and test (about 90, 5 and 5 per cent).

    Blocks of ten consecutive paragraphs; of each 20 blocks one validates and one tests, so both
    have something of every part of the book.
    """
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for number, line in enumerate(lines):
        place = number // _BLOCK % _CYCLE
        parts["valid" if place == 9 else "test" if place == 19 else "train"].append(line)
    return parts


def _blocks(text: str) -> list[str]:
    """Paragraphs, each on one line, without list marks; headings have gone."""
    blocks: list[str] = []
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        stripped = line.strip()
        if _UNDERLINE.match(line):
            lines.clear()  # and the heading above it
        elif not stripped:
            blocks += _joined(lines)
            lines = []
        else:
            begins = _BULLET.match(stripped)
            if begins:
                blocks += _joined(lines)
                lines = []
                stripped = stripped[begins.end() :]
            lines.append(stripped)
    return blocks


def _joined(lines: Sequence[str]) -> list[str]:
    """The lines as one paragraph, or none; a hyphen at a line's end belongs to its word."""
    return [re.sub(r"(?<=\w)- (?=\w)", "-", " ".join(lines))] if lines else []


def _is_prose(tokens: Sequence[str]) -> bool:
    if len(tokens) < 8 or tokens[-1] not in (".", ":", ";", "?", "!", ")", '"'):
        return False
    if ">>>" in " ".join(tokens[:3]).replace(" ", "") or tokens.count("=") > 2:
        return False
    common = sum(token.lower() in _COMMON for token in tokens)
    words = sum(token[0].isalpha() for token in tokens)
    return common >= 0.15 * len(tokens) and words >= 0.6 * len(tokens)
