"""How recurrent kernels divide their work, and that every division gives the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pynlm.cuda import recurrent
from pynlm.cuda.recurrent import Part
from pynlm.testing import arguments, check_against_reference, find_case
from pynlm.testing.checks import assert_same_bits, run, specified
from pynlm.testing.emulated import EmulatedDevice, emulation

FUNCTIONS_HERE = ["lstm_forward", "lstm_backward"]
CASES = [
    "threads",
    "threads-ragged",
    "many-rows",
    "everything-threads",
    "everything-coupled-threads",
    "projection-threads-by-units-ragged",
]


@pytest.mark.parametrize(
    ("processors", "shared_limit"),
    [
        (1, 227 << 10),  # nobody to wait for
        (7, 227 << 10),
        (7, 9 << 10),  # most weights in global memory, rows in passes
        (13, 20 << 10),
    ],
)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("function", FUNCTIONS_HERE)
def test_every_division_agrees_with_reference(
    function: str, case: str, processors: int, shared_limit: int
) -> None:
    chosen = find_case("lstm", case)
    with emulation(EmulatedDevice(processors, shared_limit)):
        check_against_reference(function, chosen, "float32", "cuda")


@pytest.mark.parametrize("math", ["float32", "bf16"])
@pytest.mark.parametrize("function", FUNCTIONS_HERE)
def test_same_bits_in_any_order_of_threads(function: str, math: str) -> None:
    chosen = find_case("lstm", "everything-ragged")
    given = arguments(function, chosen, "float32")
    results = []
    for seed in (0, 1):
        device = EmulatedDevice(processors=7, seed=seed)
        device.math = math
        with emulation(device):
            results.append(run(function, given, "cuda"))
    for name, value in results[0].items():
        if value is not None:
            parts = (specified(function, name, r[name], r, chosen) for r in results)
            assert_same_bits(*parts, what=f"{function} {name} {math}")


@dataclass
class H200:
    """What a division depends on."""

    math: str
    processors: int = 132
    shared_limit: int = 227 << 10


@pytest.mark.parametrize("math", ["float32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("H", [1, 200, 650, 1500, 2048])
@pytest.mark.parametrize("B", [1, 20, 128, 1000])
def test_divisions_fit_the_card(B: int, H: int, itemsize: int, math: str) -> None:
    for part in (Part(H, 4, H), Part(H, 1, 4 * H)):
        division = recurrent.divide(H200(math), B, itemsize, part)  # type: ignore[arg-type]
        form, (product,) = division.form, division.products
        across, down = division.grid
        assert across * down <= 132 and division.shared <= 227 << 10
        assert across * division.units[0] >= H > (across - 1) * division.units[0]
        assert down * division.rows >= B > (down - 1) * division.rows
        assert product.depth >= part.depth and product.depth % form.grain == 0
        assert product.chunk % form.grain == 0
        assert product.kept == product.depth or product.kept % product.chunk == 0
        assert product.pass_rows // division.tile_rows * product.splits <= form.workers


def test_too_many_units_are_refused() -> None:
    with (
        emulation(EmulatedDevice(1, 1 << 10)) as device,
        pytest.raises(ValueError, match="9999 units are too many for 1 multiprocessors with 1024"),
    ):
        recurrent.divide(device, 3, 4, Part(9999, 4, 9999))
