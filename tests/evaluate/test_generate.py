"""Sampling: the distribution drawn from, determinism, running text from tokens."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm.evaluate import Detokeniser, Sampler

P = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
LOG_P = np.log(P)
GOLDEN = [2, 1, 1, 4, 4, 1, 1, 1, 1, 4, 3, 1]


def draws(count: int, **options: object) -> np.ndarray:
    sampler = Sampler(**options)  # type: ignore[arg-type]
    found = [sampler.draw(LOG_P) for _ in range(count)]
    return np.bincount(found, minlength=len(P))


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    alive = expected > 0
    assert not counts[~alive].any()
    scaled = expected[alive] * counts.sum()
    return float((((counts[alive] - scaled) ** 2) / scaled).sum())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, P),
        ({"temperature": 0.5}, P**2 / (P**2).sum()),
        ({"temperature": 2.0}, np.sqrt(P) / np.sqrt(P).sum()),
        ({"top_k": 2}, np.array([0, 0.4, 0, 0.25, 0]) / 0.65),
        # 0.4 + 0.25 is short of 0.7, so the third most probable stays too
        ({"top_p": 0.7}, np.array([0, 0.4, 0, 0.25, 0.2]) / 0.85),
        # exactly reached by the first: the second is not needed
        ({"top_p": 0.4}, np.array([0, 1.0, 0, 0, 0])),
        ({"top_k": 3, "top_p": 0.5}, np.array([0, 0.4, 0, 0.25, 0]) / 0.65),
        ({"exclude": (1,)}, np.array([0.05, 0, 0.1, 0.25, 0.2]) / 0.6),
    ],
)
def test_draws_follow_the_distribution(options: dict[str, object], expected: np.ndarray) -> None:
    counts = draws(4000, seed=11, **options)
    # 4 degrees of freedom at most: 25 is beyond the 99.99th percentile
    assert chi_square(counts, expected) < 25.0
    order, probability = Sampler(**options).distribution(LOG_P)  # type: ignore[arg-type]
    whole = np.zeros(len(P))
    whole[order] = probability
    np.testing.assert_allclose(whole, expected, atol=1e-12)


def test_zero_temperature_is_greedy_and_ties_go_to_the_lower_id() -> None:
    assert draws(20, temperature=0.0).tolist() == [0, 20, 0, 0, 0]
    flat = Sampler(top_k=2).distribution(np.zeros(5))[0]
    assert flat.tolist() == [0, 1]


def test_same_seed_same_draws() -> None:
    one, two, other = Sampler(seed=3), Sampler(seed=3), Sampler(seed=4)
    first = [one.draw(LOG_P) for _ in range(50)]
    assert first == [two.draw(LOG_P) for _ in range(50)]
    assert first != [other.draw(LOG_P) for _ in range(50)]
    # golden: a seed means the same text in every version of NumPy and of pynlm
    assert first[:12] == GOLDEN


def test_one_token_is_always_left() -> None:
    assert Sampler(top_p=1e-9).distribution(LOG_P)[0].tolist() == [1]
    sharp = np.array([0.0, -2000.0, -3000.0])
    assert Sampler(temperature=0.1).distribution(sharp)[0].tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**options)  # type: ignore[arg-type]


class Words:
    """A vocabulary of four words."""

    level = "word"
    eos_id = 0
    unk_id = None

    def token(self, index: int) -> str:
        return ("<eos>", "the", "cat", "sat")[index]


def test_words_are_joined_and_eos_ends_a_line() -> None:
    def text(ids: list[int], after: str = "") -> str:
        words = Detokeniser(Words(), after)
        return "".join(map(words.push, ids)) + words.finish()

    assert text([1, 2, 0, 0, 1]) == "the cat\n\nthe"
    assert text([2, 0], after="the") == " cat\n"
    assert text([2], after="the ") == "cat"
    assert text([2], after="end\n") == "cat"
