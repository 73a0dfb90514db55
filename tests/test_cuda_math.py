"""Recurrent products on tensor cores, emulated: fragments by lane, operands rounded."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import FUNCTIONS, Case, arguments, assert_close
from pynlm.testing.checks import run, run_oracle, specified
from pynlm.testing.emulated import EmulatedDevice, emulation
from pynlm.testing.tolerances import narrow_tolerance

NARROW = ("tf32", "bf16", "fp16")
NAMES = {
    "primes",
    "one-unit",
    "threads",
    "threads-ragged",
    "many-rows",
    "everything-primes",
    "everything-coupled-threads",
    "everything-reset-before-threads",
}
CASES = [
    pytest.param(f"{cell}_{side}", case, id=f"{cell}_{side}-{case}")
    for cell in ("lstm", "gru", "rnn")
    for side in ("forward", "backward")
    for case in FUNCTIONS[f"{cell}_forward"].cases
    if case.name.removesuffix("-tanh") in NAMES
]


def device(math: str) -> EmulatedDevice:
    made = EmulatedDevice(processors=4)
    made.math = math
    return made


@pytest.mark.parametrize("math", NARROW)
@pytest.mark.parametrize(("function", "case"), CASES)
def test_narrow_products_agree_with_reference(function: str, case: Case, math: str) -> None:
    given = arguments(function, case, "float32")
    with emulation(device(math)):
        got = run(function, given, "cuda")
    for name, want in run_oracle(function, given).items():
        if want is not None:
            assert_close(
                specified(function, name, got[name], got, case),
                specified(function, name, want, got, case),
                narrow_tolerance(math),
                what=f"{function} {name} {math}",
                case=case,
                backend="cuda",
                terms=case.terms,
            )


@pytest.mark.parametrize(
    ("math", "state", "rounded"),
    [
        # to the nearest of 10, 7 and 10 bits; ties away from zero in tf32, to even in the others
        ("tf32", 1 + 2**-11, 1 + 2**-10),
        ("tf32", 1 + 2**-12, 1.0),
        ("bf16", 1 + 2**-8, 1.0),
        ("bf16", 1 + 3 * 2**-8, 1 + 2**-6),
        ("fp16", 1 + 2**-11, 1.0),
        ("fp16", 1 + 3 * 2**-11, 1 + 2**-9),
        ("float32", 1 + 2**-12, 1 + 2**-12),
    ],
)
def test_operands_are_rounded(math: str, state: float, rounded: float) -> None:
    """Of one unit, whose output gate sees nothing but the state."""
    given = {
        name: np.zeros(shape, np.float32)
        for name, shape in {
            **dict.fromkeys(("h_last", "c_last", "h0"), (1, 1)),
            "y": (1, 1, 1),
            "gates": (1, 1, 4),
            "c": (1, 1, 1),
            "x": (1, 1, 1),
            "w_ih": (4, 1),
            "w_hh": (4, 1),
            "b": 4,
        }.items()
    }
    given["c0"] = np.ones((1, 1), np.float32)
    given["h0"][:], given["w_hh"][3] = state, 1.0
    with emulation(device(math)):
        kernels.lstm_forward(**given, backend="cuda")
    o = np.float64(given["gates"][0, 0, 3])
    assert abs(np.log(o / (1 - o)) - rounded) < 2**-14


def test_each_thread_has_its_own_math() -> None:
    """Training in bf16 does not change what another thread scores in."""
    made, seen = EmulatedDevice(), []
    made.math = "bf16"
    thread = Thread(target=lambda: seen.append(made.math))
    thread.start()
    thread.join()
    assert (made.math, seen) == ("bf16", ["float32"])
