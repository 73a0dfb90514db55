"""Samplers of tokens: distributions, expected counts, determinism, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pynlm.heads import TokenSampler
from pynlm.heads.samplers import MOST_TRIES, SAMPLERS, alias_table, uniforms
from pynlm.reference.philox import CANDIDATES, philox_u32
from pynlm.testing import assert_close
from pynlm.testing.tolerances import CLOSED_FORM, chi_square_bound

V = 60
COUNTS = 10_000 // np.arange(1, V + 1)


def make(kind: str, size: int = 20, **options: Any) -> TokenSampler:
    return TokenSampler(kind, vocab_size=V, size=size, counts=COUNTS, **options)


def chi_square(found: np.ndarray, expected: np.ndarray, variance: np.ndarray) -> float:
    return float(((found - expected) ** 2 / variance).sum())


def test_the_distributions() -> None:
    rank = np.arange(1, V + 1)
    zipf = np.log((rank + 1) / rank) / np.log(V + 1)
    assert_close(make("log-uniform").probabilities, zipf, CLOSED_FORM, what="log-uniform")
    assert_close(zipf.sum(), 1.0, CLOSED_FORM, what="sum")
    for alpha in (0.0, 0.75, 1.0):
        want = COUNTS**alpha / (COUNTS**alpha).sum()
        assert_close(make("unigram", alpha=alpha).probabilities, want, CLOSED_FORM, what="unigram")
    assert (make("uniform").probabilities == 1 / V).all()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_draws_follow_the_distribution(kind: str) -> None:
    size, steps = 5000, 8
    sampler = make(kind, size, unique=False, alpha=0.75)
    found = np.zeros(V)
    for step in range(steps):
        ids, counts, tries = sampler.draw(seed=7, step=step)
        assert tries == size and counts is not None and counts.sum() == size
        found[ids] += counts
    expected = steps * sampler.expected(np.arange(V), size)
    assert_close(expected, steps * size * sampler.probabilities, CLOSED_FORM, what="expected")
    assert chi_square(found, expected, expected) < chi_square_bound(V - 1)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("tries", [20, 90])
def test_a_tokens_chance_after_so_many_tries(kind: str, tries: int) -> None:
    """The unique mode's expected counts, which hold for a given number of tries."""
    sampler, steps = make(kind), 3000
    found = np.zeros(V)
    for step in range(steps):
        found[np.unique(sampler._ids(uniforms(0, tries, seed=3, step=step)))] += 1
    p = sampler.expected(np.arange(V), tries)
    assert chi_square(found, steps * p, steps * p * (1 - p)) < chi_square_bound(V)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_unique_samples_are_those_of_draws_one_by_one(kind: str) -> None:
    """Sets, and so their counts: rejecting duplicates until there are enough."""
    sampler = make(kind, 40, alpha=1.0)
    for step in range(30):
        seen: list[int] = []
        tries = 0
        for token in sampler._ids(uniforms(0, 20_000, seed=5, step=step)).tolist():
            if len(seen) < 40:
                tries += 1
                seen += [] if token in seen else [token]
        drawn = sampler.draw(seed=5, step=step)
        assert drawn.ids.dtype == np.int32 and drawn.counts is None
        assert (drawn.ids.tolist(), drawn.tries) == (sorted(seen), tries)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_expected_counts_add_up_to_the_samples(kind: str) -> None:
    """Over many steps as many are expected as there are: nearly, because tries are not fixed."""
    sampler = make(kind, 20)
    sums = [
        sampler.expected(np.arange(V), sampler.draw(seed=1, step=step).tries).sum()
        for step in range(200)
    ]
    assert abs(np.mean(sums) - 20) < 0.5


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    one, other = make("unigram"), make("unigram")
    first = one.draw(seed=1, step=4)
    one.draw(seed=1, step=5)
    assert (one.draw(seed=1, step=4).ids == first.ids).all()
    assert (other.draw(seed=1, step=4).ids == first.ids).all()
    assert (other.draw(seed=1, step=5).ids != first.ids).any()
    assert (other.draw(seed=2, step=4).ids != first.ids).any()


def test_numbers_are_those_of_the_map() -> None:
    words = philox_u32(
        unit=np.arange(20), row=0, time=0, site=CANDIDATES, layer=0, seed=9, step=2**32 - 1
    )
    want = ((words[::2] >> 5) * 2.0**26 + (words[1::2] >> 6)) * 2.0**-53
    for first in range(5):
        got = uniforms(first, 10 - first, seed=9, step=2**32 - 1)
        assert (got == want[first:]).all()


def test_all_tokens_are_expected_once() -> None:
    for kind in SAMPLERS:
        sampler = make(kind, V)
        drawn = sampler.draw(seed=1, step=1)
        assert drawn.ids.tolist() == list(range(V)) and drawn.counts is None
        assert (sampler.expected(drawn.ids, drawn.tries) == 1).all()


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_one_word(kind: str, unique: bool) -> None:
    sampler = TokenSampler(kind, vocab_size=1, size=1, unique=unique, counts=[0])
    drawn = sampler.draw(seed=1, step=1)
    assert drawn.ids.tolist() == [0]
    assert sampler.expected(drawn.ids, drawn.tries).tolist() == [1.0]


def test_tokens_never_seen_can_be_drawn() -> None:
    sampler = TokenSampler("unigram", vocab_size=3, size=2, counts=[4, 1, 0], alpha=1.0)
    assert_close(sampler.probabilities, [4 / 6, 1 / 6, 1 / 6], CLOSED_FORM, what="p")


def test_counts_whose_powers_are_no_floats() -> None:
    """(10^9)^35 overflows, and (10^-9)^35 is a number yet."""
    sampler = TokenSampler("unigram", vocab_size=2, size=1, counts=[10**9, 1], alpha=35.0)
    assert sampler.probabilities[0] == 1.0 and 0.0 < sampler.probabilities[1] < 1e-300
    assert sampler.draw(seed=1, step=1).ids.tolist() == [0]
    message = r"^TokenSampler: alpha must leave .*, got 40 with counts\[1\]=1 of at most 1000000000"
    with pytest.raises(ValueError, match=message):
        TokenSampler("unigram", vocab_size=2, size=1, counts=[10**9, 1], alpha=40.0)


def test_distinct_tokens_that_would_never_be_drawn() -> None:
    """They are refused at once, and what needs many tries is not."""
    rare = {"counts": [10**9, 1, 1], "vocab_size": 3, "alpha": 4.0}
    message = (
        f"^Sampled: samples must be at most 1 when they are unique, .* {MOST_TRIES} tries, got"
    )
    with pytest.raises(ValueError, match=message):
        TokenSampler("unigram", size=2, func="Sampled", **rare)
    assert TokenSampler("unigram", size=1, **rare).draw(seed=1, step=1).ids.tolist() == [0]
    assert TokenSampler("unigram", size=2, unique=False, **rare).draw(seed=1, step=1).tries == 2
    all_of_them = TokenSampler("unigram", size=3, **rare).draw(seed=1, step=1)
    assert all_of_them.ids.tolist() == [0, 1, 2]
    few = TokenSampler("unigram", vocab_size=3, size=2, counts=[10_000, 1, 1], alpha=1.0)
    drawn = few.draw(seed=1, step=1)
    assert len(drawn.ids) == 2 and 100 < drawn.tries < 10**6


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
def test_alias_tables_hold_the_distribution(size: int, power: float) -> None:
    weights = np.random.default_rng(size).permutation(1.0 / np.arange(1, size + 1) ** power)
    p = weights / weights.sum()
    accept, alias = alias_table(p)
    assert accept.min() >= 0 and accept.max() <= 1 and alias.dtype == np.int32
    assert_close((np.bincount(alias, 1 - accept, size) + accept) / size, p, CLOSED_FORM, what="p")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": V + 1}, ValueError, f"samples must be at most V={V} when they are unique, got"),
        ({"size": 0}, ValueError, r"samples must be in \[1, .*\], got 0"),
        ({"size": 2.0}, TypeError, "samples must be an integer, got"),
        ({"kind": "zipf"}, ValueError, "sampler must be one of log-uniform, unigram, uniform"),
        ({"alpha": -0.5}, ValueError, r"alpha must be in \[0, inf\), got -0.5"),
        ({"unique": 1}, TypeError, "unique must be True or False, got int 1"),
        ({"counts": None}, ValueError, rf"sampler 'unigram' needs counts, int \[V={V}\]"),
        ({"counts": COUNTS[:-1]}, ValueError, rf"counts must be \[V={V}\], got \[{V - 1}\]"),
        ({"counts": COUNTS * 1.0}, TypeError, "counts must be integers"),
        ({"counts": -COUNTS}, ValueError, r"counts must not be negative, got counts\[0\]=-10000"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"kind": "unigram", "size": 20, "vocab_size": V, "counts": COUNTS, **options}
    with pytest.raises(error, match=f"^TokenSampler: {message}"):
        TokenSampler(given.pop("kind"), **given)
