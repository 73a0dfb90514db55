"""Token-by-token scores of lines of text, independent of each other or as one stream."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from pynlm.evaluate.perplexity import CHUNK, check_likelihood, span_nll, stream_nll
from pynlm.text.files import Chunk, check_utf8

_READ = 1 << 16


@dataclass(frozen=True)
class SentenceScore:
    """Scores of one line: log-probabilities in bits (log2, so at most 0)."""

    sentence: int
    """Number of the line in the input, from 1."""
    ids: NDArray[np.int32]
    tokens: list[str]
    log2_probs: NDArray[np.float64]

    @property
    def cumulative(self) -> NDArray[np.float64]:
        """Running sum of ``log2_probs``, bits."""
        return np.cumsum(self.log2_probs)

    @property
    def log2_prob(self) -> float:
        """Log-probability of the whole line, bits."""
        return float(self.log2_probs.sum())

    @property
    def surprisals(self) -> NDArray[np.float64]:
        """``-log2_probs``: surprisal of each token, bits."""
        return -self.log2_probs


class Scorer:
    """Scores lines in the order given; each call continues the numbering.

    Parameters
    ----------
    model, tokenizer : the trained model and its vocabulary.
    start_id : context of the first token (of every line, or of the stream with ``carry``).
    carry : read the lines as one stream with the state carried, so that the sum over all lines is
        that of ``eval``; otherwise every line starts from a zero state.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        start_id: int,
        *,
        carry: bool = False,
        chunk: int = CHUNK,
        backend: str | None = None,
    ) -> None:
        check_likelihood("score", model)
        self.model, self.tokenizer, self.carry = model, tokenizer, carry
        self.start_id, self.chunk, self.backend = start_id, chunk, backend
        self.lines = 0  # read so far
        self._state: Any = None
        self._last = start_id

    def score(self, lines: Sequence[Sequence[int] | NDArray[np.int32]]) -> list[SentenceScore]:
        """Scores of encoded lines; a line without tokens is counted and left out."""
        rows = [np.asarray(line, np.int32) for line in lines]
        numbers = range(self.lines + 1, self.lines + 1 + len(rows))
        self.lines += len(rows)
        lengths = np.array([len(row) for row in rows], np.int64)
        if not lengths.sum():
            return []
        ids = np.concatenate(rows)
        starts = np.cumsum(lengths) - lengths
        if self.carry:
            nll, self._state = stream_nll(
                self.model, ids, self._last, self._state, chunk=self.chunk, backend=self.backend
            )
            self._last = int(ids[-1])
        else:
            nll = span_nll(
                self.model,
                ids,
                starts,
                lengths,
                self.start_id,
                chunk=self.chunk,
                backend=self.backend,
            )
        log2 = nll / -math.log(2.0) + 0.0  # no negative zero
        return [
            SentenceScore(number, row, [self._shown(int(i)) for i in row], log2[a : a + n])
            for number, row, a, n in zip(numbers, rows, starts, lengths, strict=True)
            if n
        ]

    def _shown(self, token_id: int) -> str:
        if self.tokenizer.level != "byte":
            return str(self.tokenizer.token(token_id))
        value = self.tokenizer.to_bytes([token_id])[0]
        return chr(value) if 0x20 <= value < 0x7F else f"<0x{value:02X}>"


TSV_HEADER = "sentence\ttoken_index\ttoken\tlog2_prob\tcumulative\n"


def write_tsv(scores: Sequence[SentenceScore], out: TextIO) -> None:
    """One line a token: sentence, index in it (from 1), token, log2-probability, running sum."""
    for score in scores:
        rows = zip(score.tokens, score.log2_probs, score.cumulative, strict=True)
        for index, (token, log2_prob, cumulative) in enumerate(rows, 1):
            cells = f"{escape(token)}\t{log2_prob:.6f}\t{cumulative:.6f}"
            out.write(f"{score.sentence}\t{index}\t{cells}\n")


def to_dict(score: SentenceScore) -> dict[str, Any]:
    """One JSONL record."""
    return {
        "sentence": score.sentence,
        "tokens": score.tokens,
        "log2_probs": [round(float(value), 6) for value in score.log2_probs],
        "log2_prob": round(score.log2_prob, 6),
    }


_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escape(token: str) -> str:
    """``token`` on one TSV cell: backslash, newline, tab and control characters escaped."""
    if token.isprintable() and "\\" not in token:
        return token
    return "".join(
        _ESCAPES.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode())
        for c in token
    )


def read_lines(descriptor: int, name: str, *, utf8: bool = True) -> Iterator[list[bytes]]:
    """Lists of complete lines (their newline kept) as they arrive from a file descriptor.

    A pipe yields what has been written so far, so a scorer behind it answers at once.

    Raises
    ------
    ValueError : bytes that are not UTF-8, unless ``utf8`` is False; names line and byte offset.
    """
    rest = bytearray()
    number, offset = 1, 0
    while True:
        block = os.read(descriptor, _READ)
        cut = block.rfind(b"\n") + 1
        complete = rest + block[:cut] if cut or not block else b""
        if complete:
            rest.clear()
            lines = list(io.BytesIO(complete))
            if utf8:
                check_utf8(Chunk(bytes(complete), name, offset, number))
            number += len(lines)
            offset += len(complete)
            yield lines
        if not block:
            return
        rest += block[cut:]


def split_lines(text: str) -> list[str]:
    """The lines of ``text``, newlines kept; only the newline character ends a line."""
    lines = text.split("\n")
    ended = [line + "\n" for line in lines[:-1]]
    return ended + lines[-1:] if lines[-1] else ended
