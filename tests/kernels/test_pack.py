"""Weights packed once: the same numbers, the same results to the bit, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from pynlm import kernels
from pynlm.kernels import Packed, pack, set_num_threads
from pynlm.testing import FUNCTIONS, arguments, cases

FORWARD = {
    "lstm_forward": ("w_ih", "w_hh", "w_hr"),
    "gru_forward": ("w_ih", "w_hh"),
    "rnn_forward": ("w_ih", "w_hh"),
    "linear_forward": ("w",),
    "xent_forward": ("w",),
    "xent_log_prob": ("w",),
}
FORWARD_CASES = [
    pytest.param(f, case, id=f"{f}-{case}", marks=[pytest.mark.pair] if case.is_pair else [])
    for f in FORWARD
    for case in FUNCTIONS[f].cases
]


def gates_of(function: str, name: str, given: dict[str, Any]) -> int | tuple[int, int]:
    if name in ("w", "w_ih"):
        return 0
    if name == "w_hr" or function == "rnn_forward":
        return 1
    if function == "gru_forward":
        return 3 if given["b_hn"] is not None else (2, 1)
    coupled = given.get("variant") is not None and given["variant"].coupled
    return 3 if coupled else 4


def with_packed(function: str, given: dict[str, Any]) -> dict[str, Any]:
    found = {name: given.get(name) for name in FORWARD[function]}
    return given | {
        name: pack(w, gates=gates_of(function, name, given))
        for name, w in found.items()
        if w is not None
    }


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("function", "case"), FORWARD_CASES)
def test_same_bits(function: str, case: cases.Case, dtype: str, threads: int) -> None:
    """Every case of every forward kernel."""
    set_num_threads(threads)
    plain, packed = arguments(function, case, dtype), arguments(function, case, dtype)
    getattr(kernels, function)(**plain)
    handles = with_packed(function, packed)
    assert any(isinstance(a, Packed) for a in handles.values())
    getattr(kernels, function)(**handles)
    for name in FUNCTIONS[function].writes:
        if plain.get(name) is not None:
            np.testing.assert_array_equal(packed[name], plain[name], err_msg=name)


# By units and by rows, odd numbers of vectors, more than one cut of the depth.
@pytest.mark.parametrize("function", ["lstm_forward", "gru_forward", "rnn_forward"])
@pytest.mark.parametrize("batch", [5, 29])
def test_same_bits_of_long_products(function: str, batch: int) -> None:
    rng = np.random.default_rng(0)
    gates = {"lstm_forward": 4, "gru_forward": 3, "rnn_forward": 1}[function]
    H, T, inputs = 809, 2, 401

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    given = {"x": draw(T, batch, inputs), "h0": draw(batch, H), "b": draw(gates * H)}
    given |= {"w_ih": draw(gates * H, inputs), "w_hh": draw(gates * H, H)}
    outputs = ["h_last"]
    if gates == 4:
        given["c0"] = draw(batch, H)
        outputs.append("c_last")
    if gates == 3:
        given["b_hn"] = draw(H)
    extra = {"nonlinearity": "tanh"} if gates == 1 else {}
    results = []
    for weights in (given, with_packed(function, given)):
        for threads in (1, 2, 3):
            set_num_threads(threads)
            out = {name: np.empty((batch, H), np.float32) for name in outputs}
            out["y"] = np.empty((T, batch, H), np.float32)
            getattr(kernels, function)(**out, **weights, **extra)
            results.append(out)
    for out in results[1:]:
        for name, want in results[0].items():
            np.testing.assert_array_equal(out[name], want)


# More rows than columns, and more columns than are packed at a time.
def test_same_bits_of_a_wide_map() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2100, 3)), rng.standard_normal((2067, 3))
    plain, packed = np.empty((2100, 2067)), np.empty((2100, 2067))
    kernels.linear_forward(y=plain, x=x, w=w)
    kernels.linear_forward(y=packed, x=x, w=pack(w))
    np.testing.assert_array_equal(packed, plain)


def test_the_oracle_takes_them() -> None:
    case = FUNCTIONS["lstm_forward"].cases[0]
    plain, packed = (arguments("lstm_forward", case, "float64") for _ in range(2))
    kernels.lstm_forward(**plain, backend="reference")
    kernels.lstm_forward(**with_packed("lstm_forward", packed), backend="reference")
    np.testing.assert_array_equal(packed["y"], plain["y"])


def test_it_is_the_array_it_was_made_of_but_read_only() -> None:
    w = np.arange(6.0).reshape(2, 3)
    packed = pack(w)
    assert np.shares_memory(packed, w) and w.flags.writeable
    np.testing.assert_array_equal(packed, w)
    with pytest.raises(ValueError, match="read-only"):
        packed[0, 0] = 1
    again = pack(packed, gates=2)
    assert (packed.gates, again.gates) == ((0, 0), (2, 0))


def test_what_comes_of_it_is_plain() -> None:
    packed = pack(np.ones((2, 3)))
    assert type(packed + 1) is np.ndarray
    assert type(packed.sum()) is np.float64
    for cut in (packed[:1], packed.copy(), packed.T, pickle.loads(pickle.dumps(packed))):
        assert getattr(cut, "panels", None) is None


def test_refusals() -> None:
    w = np.ones((6, 2))
    with pytest.raises(TypeError, match="pack: w must be float32 or float64"):
        pack(np.ones((6, 2), np.int64))
    with pytest.raises(ValueError, match=r"pack: w must be .*\[O, I\]"):
        pack(np.ones(6))
    with pytest.raises(ValueError, match="pack: w must be"):
        pack(np.ones((2, 6)).T)
    for gates in (4, -1, (0, 1), (3, 2)):
        with pytest.raises(ValueError, match=r"pack: gates must .* divide the rows of w \[O=6\]"):
            pack(w, gates=gates)
    y, x = np.empty((1, 6)), np.ones((1, 2))
    with pytest.raises(
        ValueError, match=r"linear_forward: w must be packed with gates=\(0, 0\), got \(3, 0\)"
    ):
        kernels.linear_forward(y=y, x=x, w=pack(w, gates=3))
    for gates in ([2, 1], (1, 2, 3), True, 2.0):
        with pytest.raises(TypeError, match="pack: gates must be an int or two, got"):
            pack(w, gates=gates)  # type: ignore[arg-type]
    forged, turned = pack(w), pack(np.ones((2, 6)))
    forged.panels = forged.panels[:-1]
    turned.shape = (6, 2)
    for wrong in (forged, turned):
        with pytest.raises(
            ValueError, match="linear_forward: the packed copy of w does not fit it; pack it again"
        ):
            kernels.linear_forward(y=y, x=x, w=wrong)


def test_a_backward_pass_takes_them_as_arrays() -> None:
    plain, packed = (
        arguments("linear_backward", FUNCTIONS["linear_backward"].cases[0], "float64")
        for _ in range(2)
    )
    kernels.linear_backward(**plain)
    kernels.linear_backward(**(packed | {"w": pack(packed["w"])}))
    np.testing.assert_array_equal(packed["dx"], plain["dx"])
