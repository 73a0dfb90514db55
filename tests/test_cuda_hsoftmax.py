"""What the hierarchical softmax on a GPU has besides the public functions, in the emulation."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pynlm import cuda, kernels
from pynlm.cuda import hsoftmax
from pynlm.testing import (
    CASES,
    DTYPES,
    Case,
    arguments,
    assert_close,
    assert_same_bits,
    find_case,
)
from pynlm.testing.emulated import EmulatedDevice, emulation
from pynlm.testing.tolerances import kernel_tolerance

DENSE = [
    case
    for case in CASES["hsoftmax"]
    if case.name
    in (
        "primes", "no-bias", "one-word", "no-rows", "one-target-flat", "chain", "ternary-plain",
        "huffman-many-words", "classes-many-words", "clusters-many-rows", "flat-plain",
    )
]  # fmt: skip


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with emulation(EmulatedDevice()):
        yield


def _dense(given: dict[str, Any]) -> dict[str, Any]:
    """Run hsoftmax_gradients_dense on the arguments of hsoftmax_gradients; what it wrote."""
    inputs = {k: given[k] for k in ("h", "w", "b", "first", "parent", "targets", "weights")}
    out: dict[str, Any] = {name: np.full_like(given[name], np.nan) for name in ("nll", "dh")}
    out["dw"] = np.full_like(given["w"], np.nan)
    out["db"] = None if given["b"] is None else np.full_like(given["b"], np.nan)
    hsoftmax.hsoftmax_gradients_dense(**out, **inputs)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", DENSE, ids=str)
def test_dense_gradients(case: Case, dtype: str) -> None:
    """Whole gradients as the rows say, 0 elsewhere; the same bits on cards of another size."""
    given = arguments("hsoftmax_gradients", case, dtype)
    count = kernels.hsoftmax_gradients(**given, backend="reference")
    rows = given["rows"][:count]
    want = {"nll": given["nll"], "dh": given["dh"], "dw": np.zeros_like(given["w"])}
    want["dw"][rows] = given["drows"][:count]
    if given["b"] is not None:
        want["db"] = np.zeros_like(given["b"])
        want["db"][rows] = given["db"][:count]
    got = _dense(given)
    with emulation(EmulatedDevice(processors=1, seed=5)):
        again = _dense(given)
    tolerance = kernel_tolerance("hsoftmax", dtype, case.name)
    for name, value in want.items():
        assert_close(got[name], value, tolerance, what=name, case=case, terms=case.terms)
        assert_same_bits(again[name], got[name], what=name, case=case)


@pytest.mark.parametrize("case", ["primes", "flat-plain"])
def test_room_for_too_few_rows(case: str) -> None:
    given = arguments("hsoftmax_gradients", find_case("hsoftmax", case), "float32")
    count = kernels.hsoftmax_gradients(**given, backend="reference")
    for name in ("rows", "drows", "db"):
        given[name] = np.ascontiguousarray(given[name][: count - 1])
    with pytest.raises(ValueError, match=f"rows must have room for the {count} rows"):
        cuda.hsoftmax_gradients(**given)


@pytest.mark.parametrize("case", ["primes", "flat-plain", "classes-plain"])
@pytest.mark.parametrize("bad", [-1, 10**6])
def test_paths_that_lead_nowhere_give_nan(case: str, bad: int) -> None:
    """Memory is safe, and the loss shows it (a GPU cannot raise without waiting)."""
    given = arguments("hsoftmax_forward", find_case("hsoftmax", case), "float32")
    target = int(given["targets"][3])
    given["parent"][target, 0] = bad
    cuda.hsoftmax_forward(**given)
    np.testing.assert_array_equal(np.isnan(given["nll"]), given["targets"] == target)


@pytest.mark.parametrize("case", ["primes", "flat-plain", "classes-plain"])
@pytest.mark.parametrize("function", ["hsoftmax_forward", "hsoftmax_gradients"])
def test_unknown_targets_give_nan(case: str, function: str) -> None:
    given = arguments(function, find_case("hsoftmax", case), "float32")
    V = len(given["w"]) + 1
    given["targets"][:4] = [-1, V, V + len(given["first"]) - 2, 2**31 - 1]
    getattr(cuda, function)(**given)
    np.testing.assert_array_equal(np.isnan(given["nll"]), np.arange(len(given["nll"])) < 4)


def test_trees_are_measured_once_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call does not wait; what was measured goes with the tree."""
    given = arguments("hsoftmax_forward", find_case("hsoftmax", "classes-plain"), "float32")
    measured = []
    real = hsoftmax._measured

    def spy(*args: Any) -> Any:
        measured.append(args[2:])
        return real(*args)

    monkeypatch.setattr(hsoftmax, "_measured", spy)
    before = len(hsoftmax._shapes)
    cuda.hsoftmax_forward(**given)
    cuda.hsoftmax_forward(**given)
    assert len(measured) == 1
    assert len(hsoftmax._shapes) == before + 1
    del given
    gc.collect()
    assert len(hsoftmax._shapes) == before


def test_top_k_of_equal_and_undefined_numbers() -> None:
    """Equal probabilities by id, those that are NaN last, all of them asked for."""
    given = arguments("hsoftmax_top_k", find_case("hsoftmax", "flat-plain"), "float64")
    V = len(given["w"]) + 1
    given["w"][:] = 0
    given["b"][:] = np.arange(V - 1) % 3 - 1.0
    given["h"][1] = np.nan
    n = len(given["h"])
    given |= {"log_prob": np.empty((n, V)), "ids": np.empty((n, V), np.int32)}
    cuda.hsoftmax_top_k(**given)
    logits = np.concatenate([[0.0], given["b"]])
    np.testing.assert_array_equal(given["ids"][0], np.argsort(-logits, kind="stable"))
    np.testing.assert_array_equal(given["ids"][1], np.arange(V))
    assert np.isnan(given["log_prob"][1]).all()
