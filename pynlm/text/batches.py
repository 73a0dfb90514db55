"""Batches: running text in windows with the state carried, or sentences with their lengths."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynlm.text._text import cut_window, pad_sentences
from pynlm.text.ids import IntArray, as_ids, check_ids, sentence_spans
from pynlm.text.store import TokenStore

_POOL = 32
"""How many batches' sentences are sorted by length together; see SentenceBatches."""


@dataclass(frozen=True)
class Batch:
    """What a model reads in one step.

    Attributes
    ----------
    ids : int32 [T, B]
        What it reads.
    targets : int32 [T, B]
        What it is to predict: the token after each.
    lengths : int32 [B], non-increasing, or None
        How many steps of each row count; None if all do.
    fresh : bool
        Whether the model begins from its initial state (otherwise from where the batch before
        left it).
    """

    ids: IntArray
    targets: IntArray
    lengths: IntArray | None
    fresh: bool

    @property
    def tokens(self) -> int:
        """How many targets count."""
        return self.ids.size if self.lengths is None else int(self.lengths.sum())


class _Batches(ABC):
    """Batches by position: ``batches[k]`` is made when asked for, and is always the same."""

    @abstractmethod
    def __len__(self) -> int:
        """How many batches an epoch has."""

    @abstractmethod
    def __getitem__(self, k: int) -> Batch:
        """Batch `k`; IndexError if there is none."""

    def __iter__(self) -> Iterator[Batch]:
        return (self[k] for k in range(len(self)))

    def _position(self, k: int) -> int:
        n = len(self)
        if not -n <= k < n:
            raise IndexError(f"{type(self).__name__}: batch {k} is not in [0, {n})")
        return k % n


class ContiguousBatches(_Batches):
    """Running text cut into `batch_size` stripes, read side by side in windows of `bptt` steps.

    Stripe b is ``ids[b * n : (b + 1) * n]`` with ``n = len(ids) // batch_size``, and window k
    covers its steps ``k * bptt`` to ``(k + 1) * bptt``; each step's target is the next id of the
    stripe. The ids are not copied, so they may be a memory map larger than memory.

    What does not fill a window is left out, as in Zaremba's, TensorFlow's and the Mikolov-style
    recipes: ``len(ids) % batch_size`` ids at the end, and fewer than `bptt` steps of each stripe.

    Parameters
    ----------
    ids : integers [n], or TokenStore
    batch_size : int
        B, the number of stripes.
    bptt : int
        T, the number of steps in a window.
    vocab_size : int, optional
        If given, all ids are checked to be in [0, vocab_size).

    Raises
    ------
    ValueError
        The text is shorter than one batch, or a size is not positive.
    IndexError
        An id is out of range.

    Examples
    --------
    >>> batches = ContiguousBatches(range(8), batch_size=2, bptt=3)
    >>> batches[0].ids.tolist(), batches[0].targets.tolist()
    ([[0, 4], [1, 5], [2, 6]], [[1, 5], [2, 6], [3, 7]])
    """

    def __init__(
        self,
        ids: Any,
        batch_size: int,
        bptt: int,
        *,
        vocab_size: int | None = None,
    ) -> None:
        name = type(self).__name__
        _check_positive(name, batch_size=batch_size, bptt=bptt)
        self.ids = _ids_of(ids, name, vocab_size)
        self.batch_size, self.bptt = batch_size, bptt
        self._stripe = len(self.ids) // batch_size
        self._windows = max(0, self._stripe - 1) // bptt
        if not self._windows:
            raise ValueError(
                f"{name}: the corpus is shorter than one batch: it has {len(self.ids)} tokens, and "
                f"batch_size * (bptt + 1) = {batch_size} * ({bptt} + 1) = "
                f"{batch_size * (bptt + 1)} are needed"
            )

    def __len__(self) -> int:
        return self._windows

    @property
    def tokens(self) -> int:
        """How many targets all the batches have together."""
        return self._windows * self.bptt * self.batch_size

    def __getitem__(self, k: int) -> Batch:
        k = self._position(k)
        start = k * self.bptt
        shape = (self.bptt, self.batch_size)
        inputs, targets = np.empty(shape, np.int32), np.empty(shape, np.int32)
        cut_window(self.ids, self._stripe, start, inputs, targets)
        return Batch(inputs, targets, None, fresh=k == 0)


class SentenceBatches(_Batches):
    """Sentences, each read from the initial state, padded to the longest of their batch.

    A sentence goes up to and with its `eos_id`; what stands behind the last one is a sentence too.
    A row predicts its sentence, and reads the token before each: `eos_id`, then the sentence
    without its last token. Padding holds `eos_id`. The last batch may have fewer rows.

    The order is drawn anew each epoch by NumPy's Philox generator keyed by (seed, epoch). So that
    little is padded, the sentences of each 32 batches are sorted by length before they are cut
    into batches, and then the batches are put in random order again.

    Parameters
    ----------
    ids : integers [n], or TokenStore
    eos_id : int
        The id that ends a sentence.
    batch_size : int
        B, the number of sentences in a batch.
    seed : int or None
        None keeps the order of the text.
    epoch : int
        Which order of that seed.
    max_length : int, optional
        Longer sentences are cut into pieces of this many tokens, which count as sentences (but
        a piece reads the token before its first one). Padding needs memory for the longest
        sentence, and some texts have whole chapters on a line.
    vocab_size : int, optional
        If given, all ids are checked to be in [0, vocab_size).

    Raises
    ------
    ValueError
        There are fewer sentences than fill one batch, or a size is not positive.
    IndexError
        An id is out of range.

    Examples
    --------
    >>> batches = SentenceBatches([5, 6, 0, 7, 0], eos_id=0, batch_size=2, seed=None)
    >>> batches[0].ids.tolist(), batches[0].targets.tolist(), batches[0].lengths.tolist()
    ([[0, 0], [5, 7], [6, 0]], [[5, 7], [6, 0], [0, 0]], [3, 2])
    """

    def __init__(
        self,
        ids: Any,
        eos_id: int,
        batch_size: int,
        seed: int | None,
        epoch: int = 0,
        *,
        max_length: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        name = type(self).__name__
        _check_positive(
            name, batch_size=batch_size, max_length=1 if max_length is None else max_length
        )
        self.ids = _ids_of(ids, name, vocab_size)
        self.eos_id, self.batch_size = eos_id, batch_size
        self._starts, self._lengths = sentence_spans(self.ids, eos_id)
        if max_length is not None:
            self._starts, self._lengths = _cut_long(self._starts, self._lengths, max_length)
        n = len(self._starts)
        if n < batch_size:
            raise ValueError(
                f"{name}: the corpus is shorter than one batch: it has {n} sentences, and "
                f"batch_size = {batch_size} are needed"
            )
        self._rows = _cut_rows(self._lengths, batch_size, seed, epoch)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def tokens(self) -> int:
        """How many targets all the batches have together."""
        return len(self.ids)

    def __getitem__(self, k: int) -> Batch:
        rows = self._rows[self._position(k)]
        # longest first, which is the order in which recurrent kernels take rows
        rows = rows[np.argsort(-self._lengths[rows], kind="stable")]
        lengths: IntArray = self._lengths[rows].astype(np.int32)
        shape = (int(lengths[0]), len(rows))
        inputs, targets = np.empty(shape, np.int32), np.empty(shape, np.int32)
        pad_sentences(self.ids, self._starts[rows], lengths, self.eos_id, inputs, targets)
        return Batch(inputs, targets, lengths, fresh=True)


def _cut_rows(
    lengths: NDArray[np.int64], batch_size: int, seed: int | None, epoch: int
) -> list[NDArray[np.int64]]:
    """Which sentences each batch has."""
    n = len(lengths)
    if seed is None:
        return _split(np.arange(n), batch_size)
    # Raw words rather than Generator.permutation: NumPy promises to keep the former as they are.
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    shuffled = np.argsort(words.random_raw(n), kind="stable")
    rows: list[NDArray[np.int64]] = []
    for pool in _split(shuffled, _POOL * batch_size):
        rows += _split(pool[np.argsort(-lengths[pool], kind="stable")], batch_size)
    # the batch with fewer rows stays last, as it does when nothing is shuffled
    whole = len(rows) - (len(rows[-1]) < batch_size)
    places = np.argsort(words.random_raw(whole), kind="stable")
    return [rows[i] for i in places] + rows[whole:]


def _split(values: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def _cut_long(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and lengths with each longer sentence as pieces of `most`, the last one shorter."""
    pieces = -(-lengths // most)
    # which piece of its sentence each one is: a count that begins again at every sentence
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    offset = number * most
    return np.repeat(starts, pieces) + offset, np.minimum(np.repeat(lengths, pieces) - offset, most)


def _ids_of(ids: Any, name: str, vocab_size: int | None) -> IntArray:
    if isinstance(ids, TokenStore):
        if vocab_size is not None:
            ids.check(vocab_size)
        return ids.ids
    array = as_ids(ids, name)
    if vocab_size is not None:
        check_ids(array, vocab_size, name)
    return array


def _check_positive(name: str, **sizes: int) -> None:
    for argument, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}: {argument} must be at least 1, got {value}")
