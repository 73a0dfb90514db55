"""Forward passes that save nothing go in pieces of some 1024 rows; wide ones cut their products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing.arguments import arguments, beyond
from pynlm.testing.cases import Case
from pynlm.testing.checks import check_against_reference

GATES = {"lstm": 4, "gru": 3}


def outputs(
    cell: str, T: int, B: int, H: int, *, save: bool, variant: bool, ragged: bool = False
) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    G, inputs = GATES[cell], 5
    given: dict[str, Any] = {
        "x": normal(T, B, inputs),
        "h0": normal(B, H),
        "w_ih": normal(G * H, inputs),
        "w_hh": normal(G * H, H),
        "b": normal(G * H),
    }
    if ragged:
        given["lengths"] = np.linspace(T - 1, 0, B).astype(np.int32)
    if variant:
        given["mask_h"] = rng.choice([0.0, 1.5], (B, H)).astype(np.float32)
        given["h_in"] = np.empty((T, B, H), np.float32)
        given["variant"] = kernels.Variant(zoneout_h=0.3, sample=True, seed=4)
    y, h_last, c_last = np.empty((T, B, H), np.float32), normal(B, H), normal(B, H)
    gates = np.empty((T, B, G * H), np.float32) if save else None
    other = np.empty((T, B, H), np.float32) if save else None
    if cell == "lstm":
        given["c0"] = normal(B, H)
        kernels.lstm_forward(y=y, h_last=h_last, c_last=c_last, gates=gates, c=other, **given)
        return [y, h_last, c_last]
    given["b_hn"] = normal(H)
    kernels.gru_forward(y=y, h_last=h_last, gates=gates, hn=other, **given)
    return [y, h_last]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("variant", [False, True], ids=["plain", "variant"])
@pytest.mark.parametrize(("T", "B"), [(1100, 2), (2500, 1), (1027, 1), (80, 37)])
def test_pieces_change_no_bit(cell: str, T: int, B: int, variant: bool) -> None:
    for ragged in (False, True):
        whole, pieces = (
            outputs(cell, T, B, 19, save=save, variant=variant, ragged=ragged)
            for save in (True, False)
        )
        for a, b in zip(whole, pieces, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_deeper_than_a_block(cell: str, dtype: Any) -> None:
    case = Case(cell, "deep", {"T": 3, "B": 17, "I": 11, "H": 301})
    check_against_reference(f"{cell}_forward", case, dtype)
    check_against_reference(f"{cell}_backward", case, dtype)


LONG = {
    "lstm": [
        {"layer_norm": True},
        {"layer_norm": True, "norm_state": True, "projection": 23},
        {"projection": 23, "mask_h": True, "zoneout_h": 0.3, "sample": True},
        {"coupled": True, "peephole": True, "clip_c": 0.5},
    ],
    "gru": [{"layer_norm": True}, {"reset_before": True}, {"reset_before": True, "mask_h": True}],
}


@pytest.mark.parametrize(
    ("cell", "options"), [(cell, options) for cell, found in LONG.items() for options in found]
)
@pytest.mark.parametrize(("T", "B"), [(1027, 1), (530, 3)])
def test_pieces_of_variants_change_no_bit(
    cell: str, options: dict[str, Any], T: int, B: int
) -> None:
    for lengths in ({}, {"lengths": [T, *[T - 515] * (B - 1)]}):
        case = Case(cell, "pieces", {"T": T, "B": B, "I": 5, "H": 19}, {**options, **lengths})
        whole = arguments(f"{cell}_forward", case, "float32")
        pieces = {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in whole.items()}
        for name in ("gates", "hn", "m", "norm", "norm_c", "rstd"):
            if name in pieces:
                pieces[name] = None
        for given in (whole, pieces):
            getattr(kernels, f"{cell}_forward")(**given)
        taking_part = ~beyond(case)
        for name in ("y", "h_last", "c_last", "c"):
            if name in whole:
                a, b = whole[name], pieces[name]
                if name == "c":
                    a, b = a[taking_part], b[taking_part]
                np.testing.assert_array_equal(a, b, err_msg=name)
