"""LSTM: hand example, saved cell states, messages."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pynlm import kernels
from pynlm.kernels import Variant
from pynlm.testing import arguments, assert_close, assert_same_bits, find_case
from pynlm.testing.arguments import beyond
from pynlm.testing.tolerances import CLOSED_FORM

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_unit_by_hand(backend: str) -> None:
    """Two steps of a single unit, written out with math.exp."""
    w_ih, w_hh, b = [0.5, -0.3, 0.8, 0.2], [0.1, 0.4, -0.6, 0.7], [0.05, 0.9, -0.1, 0.3]
    x, h, c = [1.5, -0.7], 0.25, -0.5

    def column(values: list[float]) -> np.ndarray:
        return np.array(values)[:, None]

    y, h_last, c_last = np.empty((2, 1, 1)), np.empty((1, 1)), np.empty((1, 1))
    kernels.lstm_forward(
        y=y,
        h_last=h_last,
        c_last=c_last,
        x=np.array(x).reshape(2, 1, 1),
        h0=np.array([[h]]),
        c0=np.array([[c]]),
        w_ih=column(w_ih),
        w_hh=column(w_hh),
        b=np.array(b),
        backend=backend,
    )
    for t in range(2):
        a = [w_ih[k] * x[t] + w_hh[k] * h + b[k] for k in range(4)]
        i, f, o = (1 / (1 + math.exp(-a[k])) for k in (0, 1, 3))
        c = f * c + i * math.tanh(a[2])
        h = o * math.tanh(c)
        assert_close(y[t, 0, 0], h, CLOSED_FORM, what=f"y[{t}]", kernel="lstm", backend=backend)
    assert_close(h_last[0, 0], h, CLOSED_FORM, what="h_last", kernel="lstm", backend=backend)
    assert_close(c_last[0, 0], c, CLOSED_FORM, what="c_last", kernel="lstm", backend=backend)


def test_error_messages() -> None:
    given = arguments("lstm_forward", find_case("lstm", "primes"), "float32")

    def message(**changed: object) -> str:
        with pytest.raises((TypeError, ValueError)) as caught:
            kernels.lstm_forward(**(given | changed))
        return f"{type(caught.value).__name__}: {caught.value}"

    assert message(w_hh=np.zeros((44, 5), np.float32)) == (
        "ValueError: lstm_forward: w_hh must be float32 [4H=44, H=11], got float32 [44, 5]"
    )
    assert message(b=np.zeros(44)) == (
        "TypeError: lstm_forward: b must be float32 [4H=44], got float64 [44]"
    )
    assert message(x=[1, 2]) == (
        "TypeError: lstm_forward: x must be float32 or float64 [T, B, I], got list"
    )
    assert message(c=None) == ("ValueError: lstm_forward: c must be an array, because gates is one")
    assert message(norm=np.zeros(3)) == (
        "ValueError: lstm_forward: norm must be None, because ln_gates is None or nothing is saved"
    )
    assert message(w_hr=np.ones((5, 11), np.float32)) == (
        "ValueError: lstm_forward: h0 must be float32 [B=3, P=5], got float32 [3, 11]"
    )
    assert message(variant=Variant(norm_state=True)) == (
        "ValueError: lstm_forward: variant.norm_state must be False without ln_cell"
    )
    assert message(variant=Variant(sample="no")) == (  # type: ignore[arg-type]
        "TypeError: lstm_forward: variant.sample must be True or False, got 'no'"
    )
    assert message(variant=Variant(coupled=True)) == (
        "ValueError: lstm_forward: w_ih must be float32 [3H=33, I=7], got float32 [44, 7]"
    )
    assert message(ln_gates=np.ones((2, 44), np.float32)) == (
        "ValueError: lstm_forward: ln_gates and ln_cell must be given together, got ln_cell=None"
    )
    assert message(x=np.zeros((5, 3, 0), np.float32)) == (
        "ValueError: lstm_forward: x must be float32 [T=5, B=3, I>0], got float32 [5, 3, 0]"
    )
    assert message(lengths=np.array([5, 6, 1], np.int32)) == (
        "ValueError: lstm_forward: lengths[1] must be in [0, T=5], got 6"
    )
    assert message(lengths=np.array([5, 2, -1], np.int32)) == (
        "ValueError: lstm_forward: lengths[2] must be in [0, T=5], got -1"
    )
    assert message(lengths=np.array([3, 5, 1], np.int32)) == (
        "ValueError: lstm_forward: lengths must be non-increasing, got lengths[1]=5 after 3"
    )
    assert message(lengths=np.array([3, 1], np.int32)) == (
        "ValueError: lstm_forward: lengths must be int32 [B=3], got int32 [2]"
    )
    assert message(lengths=np.array([3, 2, 1])) == (
        "TypeError: lstm_forward: lengths must be int32 [B=3], got int64 [3]"
    )
    assert message(backend="gpu") == (
        'ValueError: lstm_forward: backend must be "cpu" or "cuda" or "reference", got \'gpu\''
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["primes", "ragged", "everything-ragged"])
def test_cell_states_without_a_backward_pass(name: str, backend: str) -> None:
    given = arguments("lstm_forward", find_case("lstm", name), "float32")
    kernels.lstm_forward(**given, backend=backend)
    saved = given["c"].copy()
    for what in ("gates", "m", "norm", "norm_c", "rstd"):
        given[what] = None
    given["c"] = np.full_like(saved, np.nan)
    kernels.lstm_forward(**given, backend=backend)
    taking_part = ~beyond(find_case("lstm", name))
    assert_same_bits(given["c"][taking_part], saved[taking_part], what="c")
