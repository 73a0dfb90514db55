"""Sampling from a next-token distribution, and turning tokens back into running text."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynlm.arrays import to_host
from pynlm.layers.context import Context


class Sampler:
    """Draws token ids from log-probabilities: temperature, then top-k, then top-p.

    Draw ``i`` uses the i-th word of NumPy's Philox stream keyed by ``seed``, so the same seed and
    the same distributions give the same ids on every machine.

    Parameters
    ----------
    temperature : divides the log-probabilities; 0 takes the most probable token.
    top_k : keep the k most probable tokens (ties: the lower id first).
    top_p : keep the smallest set of most probable tokens whose probability reaches p.
    seed : integer >= 0.
    exclude : ids never drawn.

    Raises
    ------
    ValueError : a parameter out of its range.

    Examples
    --------
    >>> sampler = Sampler(temperature=0.0)
    >>> sampler.draw(np.log(np.array([0.2, 0.5, 0.3])))
    1
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        exclude: tuple[int, ...] = (),
    ) -> None:
        if not (temperature >= 0.0 and np.isfinite(temperature)):
            raise ValueError(f"generate: temperature must be at least 0, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"generate: top_k must be at least 1, got {top_k}")
        if top_p is not None and not 0.0 < top_p <= 1.0:
            raise ValueError(f"generate: top_p must be in (0, 1], got {top_p}")
        if seed < 0:
            raise ValueError(f"generate: seed must be at least 0, got {seed}")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.exclude = np.array(exclude, np.int64)
        self._bits = np.random.Philox(key=seed)

    def draw(self, log_prob: NDArray[np.floating]) -> int:
        """One token id from ``log_prob`` ``[V]`` (nats; need not be normalised)."""
        order, probability = self.distribution(log_prob)
        # raw words, not Generator.random: the stream of words never changes between versions
        uniform = (int(self._bits.random_raw()) >> 11) * 2.0**-53
        cumulative = np.cumsum(probability)
        chosen = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        return int(order[min(chosen, len(order) - 1)])

    def distribution(
        self, log_prob: NDArray[np.floating]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """``(ids, probabilities)`` that :meth:`draw` chooses from, most probable first."""
        score = np.array(log_prob, np.float64)
        score[self.exclude] = -np.inf
        order = np.argsort(-score, kind="stable")
        if self.temperature == 0.0:
            order = order[:1]
            return order, np.ones(1)
        if self.top_k is not None:
            order = order[: self.top_k]
        kept = score[order] / self.temperature
        probability = np.exp(kept - kept[0])
        probability /= probability.sum()
        if self.top_p is not None:
            # keep a token while the mass before it has not yet reached p: never fewer than one
            before = np.cumsum(probability) - probability
            keep = before < self.top_p
            keep[0] = True
            order, probability = order[keep], probability[keep]
            probability = probability / probability.sum()
        alive = probability > 0.0
        return order[alive], probability[alive]


class Detokeniser:
    """Turns ids into running text piece by piece.

    Words are joined by single spaces and ``<eos>`` ends a line; characters stand as they are;
    bytes are decoded as UTF-8 (a broken sequence shows as U+FFFD); plain integers are spaced.
    ``after`` is the text that stands before the first piece.
    """

    def __init__(self, tokenizer: Any, after: str = "") -> None:
        self.tokenizer = tokenizer
        self._spaced = tokenizer.level not in ("char", "byte")
        self._line_start = not after or after[-1].isspace()
        decoder = codecs.getincrementaldecoder("utf-8")
        self._utf8 = decoder(errors="replace") if tokenizer.level == "byte" else None

    def push(self, token_id: int) -> str:
        """The text that this token adds (possibly empty inside a multi-byte character)."""
        if self._utf8 is not None:
            return self._utf8.decode(self.tokenizer.to_bytes([token_id]))
        if not self._spaced:
            return str(self.tokenizer.token(token_id))
        if token_id == self.tokenizer.eos_id:
            self._line_start = True
            return "\n"
        piece = str(self.tokenizer.token(token_id))
        piece = piece if self._line_start else " " + piece
        self._line_start = False
        return piece

    def finish(self) -> str:
        """What an unfinished multi-byte character leaves behind."""
        return self._utf8.decode(b"", final=True) if self._utf8 is not None else ""


def generate_ids(
    model: Any,
    context_ids: NDArray[np.int32],
    sampler: Sampler,
    tokens: int,
    *,
    backend: str | None = None,
) -> Iterator[int]:
    """Yield ``tokens`` ids that continue ``context_ids`` (non-empty: start token and prompt)."""
    if tokens < 0:
        raise ValueError(f"generate: tokens must be at least 0, got {tokens}")
    context = Context(train=False, seed=0, step=0, backend=backend)
    state = model.initial_state(1)
    ids = np.asarray(context_ids, np.int32).reshape(-1, 1)
    for _ in range(tokens):
        hidden, state = model.hidden(np.ascontiguousarray(ids), state, context)
        chosen = sampler.draw(to_host(model.log_prob(hidden[-1], context))[0])
        yield chosen
        ids = np.array([[chosen]], np.int32)
