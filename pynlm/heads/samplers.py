"""Tokens drawn for a batch from a fixed distribution, and how often each was to be expected."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pynlm.arrays import check_integer, check_number, describe
from pynlm.layers.context import Site
from pynlm.layers.convert import IntArray, as_counts
from pynlm.reference.philox import philox_4x32

Reals = npt.NDArray[np.float64]

SAMPLERS = ("log-uniform", "unigram", "uniform")

MOST_TRIES = 1 << 22
"""Distinct samples that need more tries than these are refused: a step would only draw."""


class Samples(NamedTuple):
    """What was drawn.

    Attributes
    ----------
    ids
        int32 [n], distinct and rising.
    counts
        float64 [n]: how many times each was drawn; None where that is once.
    tries
        How many numbers were drawn in all; 0 where every token of the vocabulary is a sample.
    """

    ids: IntArray
    counts: Reals | None
    tries: int


class TokenSampler:
    """Draws tokens; a draw depends on (seed, step) and its number alone.

    Parameters
    ----------
    kind
        "log-uniform": p(k) = log((k + 2) / (k + 1)) / log(V + 1), Zipf's law for ids by falling
        frequency. "unigram": p(k) proportional to counts[k] ** alpha. "uniform": 1 / V.
    vocab_size
        V.
    size
        K, how many to draw.
    unique
        Draw until there are K distinct ones (at most V). Else draw K, of which some may be equal.
    counts
        Integers [V], for "unigram". A count of 0 counts as 1, so that every token can be drawn.
    alpha
        At least 0, for "unigram".

    Attributes
    ----------
    probabilities
        float64 [V].

    Raises
    ------
    TypeError, ValueError
        An unknown kind; a parameter of a wrong kind or range; K > V if unique, or more than the
        distinct tokens to be expected in 2^22 tries; counts that are missing or do not match the
        vocabulary; an alpha with which a token's probability is 0 in float64.

    Notes
    -----
    Source: TensorFlow's candidate sampling (`range_sampler.cc`), whose log-uniform distribution and
    expected counts these are; alias tables: Walker, ACM TOMS 3 (1977), built by the sweep of
    Huebschle-Schneider & Sanders, arXiv:1903.00227, §4.1. Random numbers: `pynlm.reference.philox`,
    site 12; number i in [0, 1) has 53 bits of words 2 i and 2 i + 1.

    Examples
    --------
    >>> sampler = TokenSampler("log-uniform", vocab_size=1000, size=5)
    >>> drawn = sampler.draw(seed=1, step=0)
    >>> drawn.ids, drawn.tries
    (array([ 11,  27, 125, 141, 563], dtype=int32), 5)
    >>> sampler.expected([0, 999], drawn.tries).round(4)
    array([0.4106, 0.0007])
    """

    def __init__(
        self,
        kind: str,
        *,
        vocab_size: int,
        size: int,
        unique: bool = True,
        counts: object = None,
        alpha: float = 0.75,
        func: str = "TokenSampler",
    ) -> None:
        check_options(func, kind, size, alpha, unique)
        if unique and size > vocab_size:
            raise ValueError(
                f"{func}: samples must be at most V={vocab_size} when they are unique, got {size}"
            )
        self.kind, self.size, self.unique, self.vocab_size = kind, size, unique, vocab_size
        if counts is not None:
            counts = as_counts(counts, func=func, size=vocab_size)
        if kind == "unigram":
            if counts is None:
                raise ValueError(f"{func}: sampler 'unigram' needs counts, int [V={vocab_size}]")
            logs = np.log(np.maximum(counts, 1))
            weights = np.exp(alpha * (logs - logs.max()))  # of which none overflows
            self.probabilities: Reals = weights / weights.sum()
            if not self.probabilities.all():
                v = int(np.argmin(self.probabilities))
                raise ValueError(
                    f"{func}: alpha must leave each token a probability above 0, got {alpha:g} "
                    f"with counts[{v}]={counts[v]} of at most {counts.max()}"
                )
            self._accept, self._alias = alias_table(self.probabilities)
        elif kind == "uniform":
            self.probabilities = np.full(vocab_size, 1.0 / vocab_size)
        else:
            rank = np.arange(1, vocab_size + 1, dtype=np.float64)
            self.probabilities = np.log1p(1.0 / rank) / np.log(vocab_size + 1.0)
        if unique and size < vocab_size:
            most = float(self.expected(np.arange(vocab_size), MOST_TRIES).sum())
            if most < size:
                raise ValueError(
                    f"{func}: samples must be at most {int(most)} when they are unique, the "
                    f"distinct tokens to be expected in {MOST_TRIES} tries, got {size}"
                )

    def draw(self, *, seed: int, step: int) -> Samples:
        """The samples of a step: the same bits whenever they are asked for."""
        if not self.unique:
            drawn = self._ids(uniforms(0, self.size, seed=seed, step=step))
            ids, counts = np.unique(drawn, return_counts=True)
            return Samples(ids, counts.astype(np.float64), self.size)
        if self.size == self.vocab_size:
            return Samples(np.arange(self.vocab_size, dtype=np.int32), None, 0)
        drawn, first, more = np.empty(0, np.int32), np.empty(0, np.intp), 2 * self.size
        while len(first) < self.size:
            u = uniforms(len(drawn), more, seed=seed, step=step)
            drawn = np.concatenate([drawn, self._ids(u)])
            # Of equal ids the last one assigned stays: written backwards, the first.
            place = np.empty(self.vocab_size, np.intp)
            numbers = np.arange(len(drawn))
            place[drawn[::-1]] = numbers[::-1]
            first = numbers[place[drawn] == numbers]
            more = len(drawn)
        last = first[self.size - 1]
        return Samples(np.sort(drawn[first[: self.size]]), None, int(last) + 1)

    def expected(self, ids: object, tries: int) -> Reals:
        """How many times tokens are expected among samples of so many tries, float64 like `ids`.

        Where samples are unique, the probability that one is drawn at all: 1 - (1 - p)^tries.
        """
        p = self.probabilities[np.asarray(ids)]
        if not self.unique:
            return tries * p
        if tries == 0:
            return np.ones_like(p)
        with np.errstate(divide="ignore"):  # p = 1
            expected: Reals = -np.expm1(tries * np.log1p(-p))
        return expected

    def _ids(self, u: Reals) -> IntArray:
        size = self.vocab_size
        if self.kind == "log-uniform":
            found = np.exp(u * np.log(size + 1.0)).astype(np.int32) - np.int32(1)
            return np.minimum(found, np.int32(size - 1))
        scaled = u * size
        cell = np.minimum(scaled.astype(np.int32), np.int32(size - 1))
        if self.kind == "uniform":
            return cell
        return np.where(scaled - cell < self._accept[cell], cell, self._alias[cell])


def check_options(func: str, kind: str, size: int, alpha: float, unique: bool) -> None:
    """Raise unless these can be of a `TokenSampler`, whatever its vocabulary."""
    if kind not in SAMPLERS:
        raise ValueError(f"{func}: sampler must be one of {', '.join(SAMPLERS)}, got {kind!r}")
    check_integer(size, func=func, name="samples", low=1, high=2**31 - 1)
    check_number(alpha, func=func, name="alpha", low=0.0)
    if not isinstance(unique, bool):
        raise TypeError(f"{func}: unique must be True or False, got {describe(unique)}")


def uniforms(first: int, count: int, *, seed: int, step: int) -> Reals:
    """Numbers `first` to `first + count - 1` of a step's stream, float64 in [0, 1)."""
    begin, end = first // 2, (first + count + 1) // 2
    words = philox_4x32(np.arange(begin, end), 0, 0, Site.CANDIDATES << 16, seed, step)
    high, low = np.stack(words[::2], axis=1), np.stack(words[1::2], axis=1)
    u = ((high >> np.uint32(5)) * 2.0**26 + (low >> np.uint32(6))) * 2.0**-53
    return u.reshape(-1)[first - 2 * begin :][:count]


def alias_table(p: Reals) -> tuple[Reals, IntArray]:
    """Walker's table of a distribution [V]: cell c, drawn uniformly, gives c or its alias.

    Returns
    -------
    accept, alias
        float64 [V]: the share of a cell that is its own; int32 [V]: whose the rest is.

    Examples
    --------
    >>> accept, alias = alias_table(np.array([0.5, 0.25, 0.25]))
    >>> accept.tolist(), alias.tolist()
    ([1.0, 0.75, 0.75], [0, 0, 0])
    """
    size = len(p)
    scaled = p * (size / p.sum())
    accept, alias = np.ones(size), np.arange(size, dtype=np.int32)
    light, heavy = np.flatnonzero(scaled < 1), np.flatnonzero(scaled >= 1)
    if not len(light) or not len(heavy):  # all equal but for rounding
        return accept, alias
    # Light cells are filled in order, each by the first heavy token with something left; a heavy
    # token that gave more than its excess is filled by the next one.
    lack, excess = np.cumsum(1 - scaled[light]), np.cumsum(scaled[heavy] - 1)
    before = lack - (1 - scaled[light])
    giver = np.minimum(np.searchsorted(excess, before, side="right"), len(heavy) - 1)
    accept[light], alias[light] = scaled[light], heavy[giver]
    last = np.searchsorted(lack, excess, side="left")  # the light cell that empties a heavy token
    short = (last < len(light)) & (np.arange(len(heavy)) < len(heavy) - 1)
    given = lack[np.minimum(last, len(light) - 1)]
    accept[heavy[short]] = np.clip(1 - (given - excess)[short], 0, 1)
    alias[heavy[short]] = heavy[np.flatnonzero(short) + 1]
    return accept, alias
