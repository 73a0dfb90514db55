"""Honest perplexity: every scored token once, from a stated start state, over an exact count.

A contiguous text is one stream. Row ``x[i] = ids[i - 1]`` predicts ``ids[i]``; the first token is
predicted from a zero state that has read ``start_id`` (``<eos>`` at word level). The recurrence
runs at ``B = 1`` in chunks of time with the state carried between them, so the chunk length
changes the speed and never the result. ``stripes=N`` reads N pieces of the text side by side: each
piece starts from a zero state, so the result is a little pessimistic, and is labelled.

Model protocol (``pynlm.models``)::

    state = model.initial_state(B)
    nll[T, B], state, _ = model(ids[T, B], targets[T, B], state, ctx, lengths=None)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynlm.arrays import to_host
from pynlm.layers.context import Context
from pynlm.layers.convert import take
from pynlm.text.ids import sentence_spans

CHUNK = 1024
"""Tokens a forward call reads at most (T times B)."""

_WINDOW = 4096  # sentences sorted by length together: little padding, little memory

Progress = Callable[[int], None]
"""Called after each chunk with the number of tokens it scored."""


class NoPerplexity(ValueError):
    """The losses at hand are no likelihoods, so that no perplexity can be made of them."""


@dataclass(frozen=True)
class Evaluation:
    """Summed negative log-likelihood of a text, and every count needed to read it.

    All sums are in nats (float64). ``eos_*`` and ``unk_*`` are None where the vocabulary has no
    such token, ``words`` and ``characters`` where the text behind the ids is not known, ``log_z_*``
    (the normaliser's logarithm over the tokens, 0 for a head that normalises itself) where the head
    does not learn to. ``loss`` names the training loss that ``nats`` are of where that is no
    likelihood: there is no perplexity then.
    """

    nats: float
    tokens: int
    eos_tokens: int | None = None
    unk_tokens: int | None = None
    unk_nats: float | None = None
    words: int | None = None
    characters: int | None = None
    state_carried: bool = True
    stripes: int = 1
    sentences: int | None = None
    start_token: str | None = None
    log_z_mean: float | None = None
    log_z_variance: float | None = None
    loss: str | None = None

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-likelihood, nats a token."""
        return self.nats / self.tokens

    @property
    def bits_per_token(self) -> float:
        """Mean negative log-likelihood, bits a token."""
        return self.nats_per_token / math.log(2.0)

    @property
    def perplexity(self) -> float:
        """``exp(nats / tokens)``: every scored token counts, ``<eos>`` and ``<unk>`` included.

        NoPerplexity where the nats are those of a training loss.
        """
        if self.loss is not None:
            raise NoPerplexity(f"perplexity: the loss of {self.loss} is no likelihood")
        return _exp(self.nats_per_token)

    @property
    def perplexity_without_eos(self) -> float | None:
        """All nats over the tokens that are not ``<eos>`` (SRILM's ``ppl1``)."""
        if self.eos_tokens is None:
            return None
        return _ratio_exp(self.nats, self.tokens - self.eos_tokens)

    @property
    def perplexity_without_unk(self) -> float | None:
        """Perplexity of the targets that are not ``<unk>``: their own nats, their own count."""
        if self.unk_tokens is None or self.unk_nats is None:
            return None
        return _ratio_exp(self.nats - self.unk_nats, self.tokens - self.unk_tokens)

    @property
    def perplexity_per_word(self) -> float | None:
        """All nats over the words of the text: comparable between vocabularies without OOVs."""
        return None if self.words is None else _ratio_exp(self.nats, self.words)

    @property
    def bits_per_character(self) -> float | None:
        """All bits over the characters of the text."""
        return self.nats / math.log(2.0) / self.characters if self.characters else None

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain values, in the order of the JSON report."""
        if self.loss is not None:
            per_token = {"loss": self.loss, "loss_per_token": self.nats_per_token}
            return {**per_token, "tokens": self.tokens, "stripes": self.stripes}
        return {
            "perplexity": self.perplexity,
            "nats_per_token": self.nats_per_token,
            "bits_per_token": self.bits_per_token,
            "bits_per_character": self.bits_per_character,
            "perplexity_without_eos": self.perplexity_without_eos,
            "perplexity_without_unk": self.perplexity_without_unk,
            "perplexity_per_word": self.perplexity_per_word,
            "nats": self.nats,
            "tokens": self.tokens,
            "eos_tokens": self.eos_tokens,
            "unk_tokens": self.unk_tokens,
            "words": self.words,
            "characters": self.characters,
            "sentences": self.sentences,
            "state_carried": self.state_carried,
            "stripes": self.stripes,
            "start_token": self.start_token,
            "log_z_mean": self.log_z_mean,
            "log_z_variance": self.log_z_variance,
        }


def evaluate_stream(
    model: Any,
    ids: NDArray[np.int32],
    start_id: int,
    *,
    stripes: int = 1,
    chunk: int = CHUNK,
    eos_id: int | None = None,
    unk_id: int | None = None,
    words: int | None = None,
    characters: int | None = None,
    start_token: str | None = None,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score ``ids`` as one contiguous stream with the state carried throughout.

    Parameters
    ----------
    model : the model protocol of this module.
    ids : integer ``[n]`` (an array or a memory map; read chunk by chunk).
    start_id : the token read, from a zero state, before the first scored one.
    stripes : pieces read side by side, each from a zero state (its context token is the token
        before it). 1 is the exact figure; more is faster.
    chunk : tokens a forward call reads (T times B); the result does not depend on it.
    eos_id, unk_id : ids counted apart in the report, or None.
    words, characters, start_token : facts of the text, copied into the report.
    backend : of the kernels; None: by where the model is.
    progress : called with the number of tokens of each chunk.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError : no ids, fewer ids than stripes, ``chunk`` or ``stripes`` below 1.
    NoPerplexity (a ValueError) : the model was trained by negative sampling.
    FloatingPointError : the model gives a log-probability that is not finite.
    """
    check_likelihood("evaluate_stream", model)
    ids = _check_ids("evaluate_stream", ids)
    if chunk < 1:
        raise ValueError(f"evaluate_stream: chunk must be at least 1, got {chunk}")
    if not 1 <= stripes <= len(ids):
        raise ValueError(
            f"evaluate_stream: stripes must be between 1 and the number of tokens {len(ids)}, "
            f"got {stripes}"
        )
    whole, extra = divmod(len(ids), stripes)
    lengths = np.full(stripes, whole, np.int64)
    lengths[:extra] += 1  # the longer rows first: lengths never increase
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    first = np.where(starts > 0, ids[np.maximum(starts - 1, 0)], start_id)

    totals = _Totals(eos_id, unk_id)
    for _, valid, targets, nll, log_z in _walk(model, ids, starts, lengths, first, chunk, backend):
        totals.add(targets[valid], nll[valid], log_z)
        if progress is not None:
            progress(int(valid.sum()))
    return totals.evaluation(
        words=words,
        characters=characters,
        start_token=start_token,
        state_carried=stripes == 1,
        stripes=stripes,
    )


def evaluate_sentences(
    model: Any,
    ids: NDArray[np.int32],
    start_id: int,
    eos_id: int,
    *,
    chunk: int = CHUNK,
    unk_id: int | None = None,
    words: int | None = None,
    characters: int | None = None,
    start_token: str | None = None,
    count_eos: bool = True,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score every sentence of ``ids`` (each ends with ``eos_id``) from a zero state.

    Sentences are read in batches of like length; the result does not depend on the batches.
    Tokens after the last ``eos_id`` count as one more sentence. ``count_eos=False`` says that
    ``eos_id`` only marks the ends (a newline at character level) and is no ``<eos>`` in reports.
    Other parameters and errors as in :func:`evaluate_stream`.
    """
    check_likelihood("evaluate_sentences", model)
    ids = _check_ids("evaluate_sentences", ids)
    starts, lengths = sentence_spans(ids, eos_id)
    totals = _Totals(eos_id if count_eos else None, unk_id)
    walk = _walk_spans(model, ids, starts, lengths, start_id, chunk, backend)
    for valid, targets, nll, log_z in walk:
        totals.add(targets[valid], nll[valid], log_z)
        if progress is not None:
            progress(int(valid.sum()))
    return totals.evaluation(
        words=words,
        characters=characters,
        start_token=start_token,
        state_carried=False,
        sentences=len(starts),
    )


def stream_nll(
    model: Any,
    ids: NDArray[np.int32],
    start_id: int,
    state: Any = None,
    *,
    chunk: int = CHUNK,
    backend: str | None = None,
) -> tuple[NDArray[np.float64], Any]:
    """``(nll[n], state)`` of ``ids`` read from ``state`` (None: zero) after ``start_id``, nats.

    Calling it again with the last id and the returned state continues the stream. Errors as in
    :func:`evaluate_stream`.
    """
    check_likelihood("stream_nll", model)
    ids = _check_ids("stream_nll", ids)
    out = np.empty(len(ids), np.float64)
    context = Context(train=False, seed=0, step=0, backend=backend)
    state = model.initial_state(1) if state is None else state
    x = np.empty((chunk, 1), np.int32)
    for t in range(0, len(ids), chunk):
        y = np.ascontiguousarray(ids[t : t + chunk], np.int32).reshape(-1, 1)
        x[0] = start_id if t == 0 else ids[t - 1]
        x[1 : len(y)] = y[:-1]
        nll, state, _ = model(x[: len(y)], y, state, context)
        out[t : t + len(y)] = to_host(nll)[:, 0]
    _check_finite(out, 0)
    return out, state


def span_nll(
    model: Any,
    ids: NDArray[np.int32],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    start_id: int,
    *,
    chunk: int = CHUNK,
    backend: str | None = None,
) -> NDArray[np.float64]:
    """``nll[n]`` (nats) of ``ids``, each span read from a zero state after ``start_id``.

    Errors as in :func:`evaluate_stream`.
    """
    check_likelihood("span_nll", model)
    ids = _check_ids("span_nll", ids)
    out = np.zeros(len(ids), np.float64)
    walk = _walk_spans(model, ids, starts, lengths, start_id, chunk, backend, out)
    for _ in walk:
        pass
    return out


class _Totals:
    """Float64 sums over the scored tokens."""

    def __init__(self, eos_id: int | None, unk_id: int | None) -> None:
        self.eos_id, self.unk_id = eos_id, unk_id
        self.nats = self.unk_nats = 0.0
        self.tokens = self.eos_tokens = self.unk_tokens = 0
        self.log_z: NDArray[np.float64] | None = None  # sums of log Z and of its squares

    def add(
        self,
        targets: NDArray[np.int32],
        nll: NDArray[np.float64],
        log_z: NDArray[np.float64] | None,
    ) -> None:
        _check_finite(nll, self.tokens)
        if log_z is not None:
            sums = np.array([log_z.sum(), (log_z**2).sum()])
            self.log_z = sums if self.log_z is None else self.log_z + sums
        self.nats += float(nll.sum())
        self.tokens += len(nll)
        if self.eos_id is not None:
            self.eos_tokens += int(np.count_nonzero(targets == self.eos_id))
        if self.unk_id is not None:
            unknown = targets == self.unk_id
            self.unk_tokens += int(np.count_nonzero(unknown))
            self.unk_nats += float(nll[unknown].sum())

    def evaluation(self, **facts: Any) -> Evaluation:
        if self.log_z is not None:
            mean, square = self.log_z / self.tokens
            facts |= {"log_z_mean": float(mean), "log_z_variance": float(square - mean**2)}
        return Evaluation(
            nats=self.nats,
            tokens=self.tokens,
            eos_tokens=None if self.eos_id is None else self.eos_tokens,
            unk_tokens=None if self.unk_id is None else self.unk_tokens,
            unk_nats=None if self.unk_id is None else self.unk_nats,
            **facts,
        )


_Scores = tuple[NDArray[np.float64], "NDArray[np.float64] | None", Any]
_Chunk = tuple[
    int, NDArray[np.bool_], NDArray[np.int32], NDArray[np.float64], "NDArray[np.float64] | None"
]


def _score(
    model: Any, x: Any, y: Any, state: Any, context: Context, lengths: Any, valid: Any
) -> _Scores:
    """nll [T, B], log Z of the valid tokens from a head that learns it, and the new state."""
    head: Any = getattr(model, "head", None)
    if not hasattr(head, "nll_and_log_z"):
        nll, state, _ = model(x, y, state, context, lengths=lengths)
        return to_host(nll).astype(np.float64), None, state
    hidden, state = model.hidden(x, state, context, lengths)
    flat = hidden.reshape(y.size, hidden.shape[2])
    read = take(flat, np.flatnonzero(valid), model.pool)
    found, log_z = head.nll_and_log_z(read, y[valid], context)
    scores = np.zeros(y.shape)
    scores[valid] = to_host(found)
    return scores, to_host(log_z).astype(np.float64), state


def _walk(
    model: Any,
    ids: NDArray[np.int32],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    first: NDArray[np.int32],
    chunk: int,
    backend: str | None,
) -> Iterator[_Chunk]:
    """Read rows ``ids[start : start + length]`` side by side (lengths never increase).

    Yields ``(t0, valid[T, B], targets[T, B], nll[T, B], log_z)`` chunk by chunk of time.
    """
    context = Context(train=False, seed=0, step=0, backend=backend)
    rows = len(starts)
    state = model.initial_state(rows)
    last = first.astype(np.int32)
    steps = max(1, chunk // rows)
    longest = int(lengths[0])
    for t in range(0, longest, steps):
        count = min(steps, longest - t)
        here = np.clip(lengths - t, 0, count).astype(np.int32)
        time = np.arange(count)[:, None]
        valid = time < here
        position = starts + t + np.minimum(time, np.maximum(here - 1, 0))
        # Rows that have ended point at their own last token: read, never scored.
        y = np.ascontiguousarray(ids[np.minimum(position, len(ids) - 1)], np.int32)
        x = np.empty_like(y)
        x[0] = last
        x[1:] = y[:-1]
        ragged = None if here[-1] == count else here
        nll, log_z, state = _score(model, x, y, state, context, ragged, valid)
        last = y[-1]
        yield t, valid, y, nll, log_z


def _walk_spans(
    model: Any,
    ids: NDArray[np.int32],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    start_id: int,
    chunk: int,
    backend: str | None,
    out: NDArray[np.float64] | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Read spans from zero states in batches of like length; fill ``out`` by position."""
    for low in range(0, len(starts), _WINDOW):
        window = np.arange(low, min(low + _WINDOW, len(starts)))
        order = window[np.argsort(-lengths[window], kind="stable")]
        order = order[lengths[order] > 0]
        while len(order):
            rows = order[: max(1, min(64, chunk // int(lengths[order[0]])))]
            order = order[len(rows) :]
            first = np.full(len(rows), start_id, np.int32)
            walk = _walk(model, ids, starts[rows], lengths[rows], first, chunk, backend)
            for t, valid, targets, nll, log_z in walk:
                if out is not None:
                    step, row = np.nonzero(valid)
                    _check_finite(nll[valid], int(starts[rows[0]]))
                    out[starts[rows][row] + t + step] = nll[valid]
                yield valid, targets, nll, log_z


def check_likelihood(function: str, model: Any) -> None:
    """Raise NoPerplexity for a model whose head learns no probabilities."""
    head = getattr(model, "head", None)
    if not getattr(head, "learns_likelihood", True):
        raise NoPerplexity(
            f"{function}: a model trained by {type(head).__name__} has no perplexity: its scores "
            "approach log p(token) - log q(token), not log-probabilities (train it with head.kind "
            "full, sampled or nce)"
        )


def _check_ids(function: str, ids: Any) -> Any:
    ids = ids if isinstance(ids, np.ndarray) else np.asarray(ids)
    if ids.ndim != 1 or not len(ids):
        raise ValueError(
            f"{function}: ids must be a non-empty integer array [n], got shape {ids.shape}: "
            "there is nothing to score"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{function}: ids must be integers, got {ids.dtype}")
    return ids


def _check_finite(nll: NDArray[np.float64], before: int) -> None:
    bad = np.flatnonzero(~np.isfinite(nll))
    if len(bad):
        raise FloatingPointError(
            f"the model gives log-probability {-nll[bad[0]]} near token {before + int(bad[0])}: "
            "its parameters are not finite or its logits overflow"
        )


def _exp(value: float) -> float:
    return math.exp(value) if value < 709.0 else math.inf


def _ratio_exp(nats: float, count: int) -> float | None:
    return _exp(nats / count) if count > 0 else None
