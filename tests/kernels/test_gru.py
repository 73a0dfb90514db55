"""GRU: hand example, messages."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import arguments, assert_close, find_case
from pynlm.testing.tolerances import CLOSED_FORM

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_unit_by_hand(backend: str) -> None:
    """Two steps of a single unit, written out with math.exp."""
    w_ih, w_hh, b, b_hn = [0.5, -0.3, 0.8], [0.1, 0.4, -0.6], [0.05, 0.9, -0.1], 0.7
    x, h = [1.5, -0.7], 0.25
    y, h_last = np.empty((2, 1, 1)), np.empty((1, 1))
    kernels.gru_forward(
        y=y,
        h_last=h_last,
        x=np.array(x).reshape(2, 1, 1),
        h0=np.array([[h]]),
        w_ih=np.array(w_ih)[:, None],
        w_hh=np.array(w_hh)[:, None],
        b=np.array(b),
        b_hn=np.array([b_hn]),
        backend=backend,
    )
    for t in range(2):
        r = 1 / (1 + math.exp(-(w_ih[0] * x[t] + w_hh[0] * h + b[0])))
        z = 1 / (1 + math.exp(-(w_ih[1] * x[t] + w_hh[1] * h + b[1])))
        n = math.tanh(w_ih[2] * x[t] + b[2] + r * (w_hh[2] * h + b_hn))
        h = (1 - z) * n + z * h
        assert_close(y[t, 0, 0], h, CLOSED_FORM, what=f"y[{t}]", kernel="gru", backend=backend)
    assert_close(h_last[0, 0], h, CLOSED_FORM, what="h_last", kernel="gru", backend=backend)


def test_error_messages() -> None:
    given = arguments("gru_forward", find_case("gru", "primes"), "float64")

    def message(**changed: object) -> str:
        with pytest.raises((TypeError, ValueError)) as caught:
            kernels.gru_forward(**(given | changed))
        return f"{type(caught.value).__name__}: {caught.value}"

    assert message(w_ih=np.zeros((44, 7))) == (
        "ValueError: gru_forward: w_ih must be float64 [3H=33, I=7], got float64 [44, 7]"
    )
    assert message(b_hn=0.5) == "TypeError: gru_forward: b_hn must be float64 [H=11], got float 0.5"
    ln = np.ones((2, 33))
    assert message(ln_gates=ln) == (
        "ValueError: gru_forward: norm must be an array, because ln_gates is one"
    )
    assert message(ln_gates=ln, b_hn=None) == (
        "ValueError: gru_forward: ln_gates must be None without b_hn: layer norm is not defined "
        "for the GRU that resets before the product"
    )
    assert message(gates=None) == (
        "ValueError: gru_forward: gates and hn must be given together, got gates=None"
    )
    assert message(hn=None) == (
        "ValueError: gru_forward: gates and hn must be given together, got hn=None"
    )
    assert message(lengths=np.array([1, 2, 3], np.int32)) == (
        "ValueError: gru_forward: lengths must be non-increasing, got lengths[1]=2 after 1"
    )
