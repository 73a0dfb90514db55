"""The generator: published answers, and the same bits compiled and in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm.kernels import dropout
from pynlm.reference import philox

_ONES = 0xFFFFFFFF

# Random123's kat_vectors: counter, key, words (csrc/common/philox.h asserts them when compiled)
KNOWN: list[tuple[tuple[int, int, int, int], tuple[int, int], tuple[int, int, int, int]]] = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (_ONES, _ONES, _ONES, _ONES),
        (_ONES, _ONES),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox.philox_4x32(*counter, *key)) == words


def test_map_of_counter_and_key() -> None:
    """`philox_u32` puts every coordinate where csrc/common/philox.h says."""
    unit, row, time, site, layer, seed, step = 4 * 11 + 2, 13, 17, 19, 23, 29, 31
    word = philox.philox_u32(
        unit=unit, row=row, time=time, site=site, layer=layer, seed=seed, step=step
    )
    assert int(word) == int(philox.philox_4x32(11, row, time, site << 16 | layer, seed, step)[2])


def _dropped(p: float, **changed: int | bool) -> np.ndarray:
    """Mask of dropped units that the compiled kernel draws, [T=3, B=5, D=1103]."""
    x = np.ones((3, 5, 1103), np.float32)
    y = np.empty_like(x)
    where: dict[str, int] = {"seed": 7, "step": 11, "site": philox.OUTPUT, "layer": 2, "time0": 40}
    dropout(y=y, x=x, p=p, **{**where, **changed})  # type: ignore[arg-type]
    return y == 0


def test_compiled_words_are_the_same() -> None:
    """Whether word < round(p 2^32), asked at 33 thresholds: a wrong word cannot hide."""
    grid = philox.words(
        np.arange(40, 43), np.arange(5), 1103, site=philox.OUTPUT, layer=2, seed=7, step=11
    )
    for p in [*np.arange(1, 32) / 32, 2.0**-32, 1 - 2.0**-32]:
        np.testing.assert_array_equal(_dropped(float(p)), grid < np.uint32(round(p * 2**32)))


@pytest.mark.parametrize(
    "changed", [{"seed": 8}, {"step": 12}, {"site": philox.INPUT}, {"layer": 3}, {"locked": True}]
)
def test_every_coordinate_changes_the_mask(changed: dict[str, int]) -> None:
    # two independent masks with p = 1/2 agree on half of 16,545 units, give or take 0.4 %
    agree = np.mean(_dropped(0.5) == _dropped(0.5, **changed))
    assert abs(agree - 0.5) < 0.02


def test_time_is_absolute() -> None:
    """The mask of a step does not depend on where the chunk that it is in began."""
    np.testing.assert_array_equal(_dropped(0.5)[1:], _dropped(0.5, time0=41)[:-1])


def test_locked_mask_is_the_same_at_all_times() -> None:
    mask = _dropped(0.5, locked=True)
    assert (mask == mask[0]).all()
    np.testing.assert_array_equal(mask, _dropped(0.5, locked=True, time0=1000))
