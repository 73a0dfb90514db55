"""Dropout: generator, statistics, one mask for all backends, edges, errors."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm import kernels
from pynlm.reference import philox
from pynlm.testing import CASES, DTYPES, arguments, assert_same_bits, find_case

BACKENDS = ["reference", "cpu"]
WORDS = {"seed": 1, "step": 2, "site": philox.OUTPUT, "layer": 3}


def mask(shape: tuple[int, int, int], p: float, backend: str = "cpu", **changed: int) -> np.ndarray:
    """Where dropout keeps."""
    y = np.ones(shape)
    kernels.dropout(y=y, x=y, p=p, **(WORDS | changed), backend=backend)
    return y != 0


def test_philox_known_answers() -> None:
    """The test vectors of Random123 (kat_vectors, philox4x32 10)."""
    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    known = {
        (0, 0, 0, 0, 0, 0): "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        (ones,) * 6: "408f276d 41c83b0e a20bc7c6 6d5451fd",
        (*pi, 0xA4093822, 0x299F31D0): "d16cfe09 94fdcceb 5001e420 24126ea1",
    }
    for words, answer in known.items():
        assert " ".join(f"{int(word):08x}" for word in philox.philox_4x32(*words)) == answer


def test_philox_map() -> None:
    """The grid, the single words and the raw generator tell the same story."""
    rest = {"site": 7, "layer": 9, "seed": 11, "step": 13}
    grid = philox.words([2, 5], [0, 1, 4], 6, **rest)
    single = philox.philox_u32(
        unit=np.arange(6), row=np.array([[0], [1], [4]]), time=np.array([[[2]], [[5]]]), **rest
    )
    assert_same_bits(grid, single, what="words")
    raw = philox.philox_4x32(5 >> 2, 4, 2, 7 << 16 | 9, 11, 13)
    assert grid[0, 2, 5] == raw[5 & 3]
    drawn = philox.uniform((2, 3, 5), seed=11, step=13, site=7, layer=9)
    assert drawn[1, 2, 4] == philox.words([0], [5], 5, **rest)[0, 0, 4] / 2**32


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_share_and_scale(p: float) -> None:
    """The share that is dropped is p, within four standard deviations; the mean stays."""
    shape = (20, 20, 250)
    y = np.ones(shape)
    kernels.dropout(y=y, x=np.ones(shape), p=p, **WORDS)
    n = y.size
    assert abs((y == 0).mean() - p) <= 4 * np.sqrt(p * (1 - p) / n)
    assert set(np.unique(y)) <= {0.0, 1 / (1 - p)}


@pytest.mark.parametrize("case", CASES["dropout"], ids=str)
def test_same_mask_in_both_dtypes_and_backends(case) -> None:
    kept = []
    for dtype in DTYPES:
        for backend in BACKENDS:
            given = arguments("dropout", case, dtype)
            given["x"][...] = 1
            kernels.dropout(**given, backend=backend)
            kept.append(given["y"] != 0)
    assert all((other == kept[0]).all() for other in kept[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place(backend: str) -> None:
    case = find_case("dropout", "p-third")
    apart, together = (arguments("dropout", case, "float32") for _ in range(2))
    kernels.dropout(**apart, backend=backend)
    together["y"] = together["x"]
    kernels.dropout(**together, backend=backend)
    assert_same_bits(together["y"], apart["y"], what="y", case=case)


@pytest.mark.parametrize("backend", BACKENDS)
def test_locked_is_one_mask_for_all_times(backend: str) -> None:
    kept = mask((7, 5, 33), 0.5, backend, locked=True)
    assert (kept == kept[0]).all()
    assert_same_bits(mask((1, 5, 33), 0.5, backend, locked=True, time0=99)[0], kept[0], what="mask")
    free = mask((7, 5, 33), 0.5, backend)
    assert (free != free[0]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_follows_absolute_time(backend: str) -> None:
    """A sequence cut in two gets the mask of the whole."""
    whole = mask((9, 3, 17), 0.5, backend, time0=40)
    assert_same_bits(mask((5, 3, 17), 0.5, backend, time0=44), whole[4:], what="mask")


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_does_not_depend_on_the_shape(backend: str) -> None:
    whole = mask((4, 7, 37), 0.5, backend)
    assert_same_bits(mask((4, 3, 10), 0.5, backend), whole[:, :3, :10], what="mask")


@pytest.mark.parametrize("word", ["seed", "step", "site", "layer"])
def test_every_word_changes_the_mask(word: str) -> None:
    shape = (10, 10, 50)
    changed = mask(shape, 0.5, **{word: WORDS[word] + 1})
    agreement = (mask(shape, 0.5) == changed).mean()
    assert abs(agreement - 0.5) <= 4 * np.sqrt(0.25 / changed.size)


def test_masks_are_nested_in_p() -> None:
    """What is kept at a high p is kept at a low one: the same words against another threshold."""
    low, high = mask((5, 5, 50), 0.2), mask((5, 5, 50), 0.6)
    assert (high <= low).all()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"p": 1.0}, "ValueError: dropout: p must be in [0, 1), got 1.0"),
        ({"p": -0.1}, "ValueError: dropout: p must be in [0, 1), got -0.1"),
        ({"p": float("nan")}, "ValueError: dropout: p must be in [0, 1), got nan"),
        ({"p": "0.5"}, "TypeError: dropout: p must be a number, got str '0.5'"),
        (
            {"p": 1 - 2.0**-40},
            f"ValueError: dropout: p must be at most 1 - 2**-32, got {1 - 2.0**-40!r}",
        ),
        ({"seed": -1}, "ValueError: dropout: seed must be in [0, 4294967295], got -1"),
        ({"step": 2**32}, "ValueError: dropout: step must be in [0, 4294967295], got 4294967296"),
        ({"seed": 1.0}, "TypeError: dropout: seed must be an integer, got float 1.0"),
        ({"site": 0}, "ValueError: dropout: site must be in [1, 65535], got 0"),
        ({"layer": 65536}, "ValueError: dropout: layer must be in [0, 65535], got 65536"),
        (
            {"time0": 2**32 - 5},
            "ValueError: dropout: time0 must be in [0, 4294967290], got 4294967291",
        ),
    ],
)
def test_error_messages(changed: dict[str, object], expected: str) -> None:
    given = arguments("dropout", find_case("dropout", "primes"), "float32")
    with pytest.raises((TypeError, ValueError)) as caught:
        kernels.dropout(**(given | changed))
    assert f"{type(caught.value).__name__}: {caught.value}" == expected
