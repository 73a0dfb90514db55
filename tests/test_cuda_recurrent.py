"""How recurrent kernels divide their work, and that every division gives the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from pynlm.cuda import division as dividing
from pynlm.cuda.division import Part
from pynlm.cuda.forms import Form, forms_of
from pynlm.testing import arguments, assert_close, check_against_reference, find_case
from pynlm.testing.checks import assert_same_bits, run, run_oracle, specified
from pynlm.testing.emulated import EmulatedDevice, emulation
from pynlm.testing.tolerances import narrow_tolerance

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
class Forced:
    """A small card, and what must be chosen on it."""

    math: str
    held: int
    parts: int
    processors: int = 8
    shared_limit: int = 227 << 10
    case: str = "threads-ragged"

    def apply(self, patch: pytest.MonkeyPatch) -> EmulatedDevice:
        def forms(math: str, itemsize: int) -> tuple[Form, ...]:
            return tuple(
                replace(form, held=(self.held,))
                for form in forms_of(math, itemsize)
                if self.held in form.held
            )

        dividing._divide.cache_clear()
        patch.setattr(dividing, "forms_of", forms)
        patch.setattr(dividing, "_PARTS", (self.parts,))
        device = EmulatedDevice(self.processors, self.shared_limit)
        device.math = "float32" if self.math == "float64" else self.math
        return device


FORCED = [
    Forced("float32", 16, 1, case="threads"),
    Forced("float32", 24, 1, 5, 40 << 10),
    Forced("float32", 8, 4, shared_limit=40 << 10),
    Forced("float32", 0, 2, 5, 60 << 10),
    Forced("float64", 8, 8),
    Forced("tf32", 16, 2, 5, 40 << 10),
    Forced("bf16", 24, 1, 5, 30 << 10),
    Forced("bf16", 0, 4),
    Forced("fp16", 16, 1, 5, 30 << 10),
]
FORCED_RUNS = [
    pytest.param(forced, function, id=f"{function}-{forced.math}-{forced.held}-{forced.parts}")
    for forced in FORCED
    for function in (
        "lstm_forward",
        "lstm_backward",
        *(("gru_backward", "rnn_backward", "rnn_forward") if forced.held in (0, 16) else ()),
    )
]


@pytest.fixture
def forgets() -> Iterator[None]:
    yield
    dividing._divide.cache_clear()


@pytest.mark.usefixtures("forgets")
@pytest.mark.parametrize(("forced", "function"), FORCED_RUNS)
def test_weights_anywhere_and_divided_depths_agree_with_reference(
    forced: Forced, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if function.endswith("forward"):
        forced = replace(forced, parts=1)
    cell = function.split("_")[0]
    case = find_case(cell, forced.case + "-tanh" * (cell == "rnn"))
    dtype = "float64" if forced.math == "float64" else "float32"
    given = arguments(function, case, dtype)
    with emulation(forced.apply(monkeypatch)):
        if forced.math.startswith("float"):
            check_against_reference(function, case, dtype, "cuda")
            return
        got = run(function, given, "cuda")
    for name, want in run_oracle(function, given).items():
        if want is not None:
            assert_close(
                specified(function, name, got[name], got, case),
                specified(function, name, want, got, case),
                narrow_tolerance(forced.math),
                what=f"{function} {name} {forced.math}",
                case=case,
                backend="cuda",
                terms=case.terms,
            )


@pytest.mark.usefixtures("forgets")
def test_those_cards_put_weights_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for forced in FORCED:
        itemsize = 8 if forced.math == "float64" else 4
        B, H = (20, 128) if forced.case == "threads" else (24, 130)
        for part in (Part(H, 4, H), Part(H, 1, 4 * H, of_unit=4), Part(H, 1, H, of_unit=1)):
            parts = forced.parts if part.of_unit else 1
            device = replace(forced, parts=parts).apply(monkeypatch)
            division = dividing.divide(device, B, itemsize, part, plain=True)
            assert (division.held, division.parts) == (forced.held, parts)
            (product,) = division.products
            depths = product.held, product.kept, product.depth - product.held - product.kept
            seen.add(tuple(depth > 0 for depth in depths))
    # registers, shared memory, beyond
    assert seen >= {
        (True, False, False), (True, True, False), (True, True, True), (False, True, True)
    }  # fmt: skip


def test_only_plain_cells_hold_weights_in_registers() -> None:
    device, part = H200("bf16"), Part(1500, 1, 6000, of_unit=4)
    plain = dividing.divide(device, 20, 4, part, plain=True)  # type: ignore[arg-type]
    general = dividing.divide(device, 20, 4, part)  # type: ignore[arg-type]
    assert plain.parts > 1 and plain.cycles < general.cycles
    assert (general.held, general.parts) == (0, 1)


@dataclass
class H200:
    """What a division depends on."""

    math: str
    share: int = 132
    shared_limit: int = 227 << 10


@pytest.mark.parametrize("math", ["float32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("H", [1, 200, 650, 1500, 2048])
@pytest.mark.parametrize("B", [1, 20, 128, 1000])
def test_divisions_fit_the_card(B: int, H: int, itemsize: int, math: str) -> None:
    for part in (Part(H, 4, H), Part(H, 1, 4 * H, of_unit=4)):
        division = dividing.divide(
            H200(math),  # type: ignore[arg-type]
            B, itemsize, part, plain=True,
        )  # fmt: skip
        form, (product,) = division.form, division.products
        across, down = division.grid
        assert across * down <= 132 and division.shared <= 227 << 10
        assert across * division.units[0] >= H > (across - division.parts) * division.units[0]
        assert down * division.rows >= B > (down - 1) * division.rows
        assert product.depth * division.parts >= part.depth and product.depth % form.grain == 0
        assert product.chunk % form.grain == 0 and across % division.parts == 0
        here = product.held + product.kept
        assert here == product.depth or here % product.chunk == 0
        assert product.pass_rows // division.tile_rows * product.splits <= form.workers


def test_too_many_units_are_refused() -> None:
    with (
        emulation(EmulatedDevice(1, 1 << 10)) as device,
        pytest.raises(ValueError, match="9999 units are too many for 1 multiprocessors with 1024"),
    ):
        dividing.divide(device, 3, 4, Part(9999, 4, 9999))
