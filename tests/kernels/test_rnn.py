"""Simple RNN: hand example, nonlinearities, expected zoneout."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import arguments, assert_close, find_case
from pynlm.testing.tolerances import CLOSED_FORM

FUNCTIONS = ["rnn_forward", "rnn_backward"]
BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_one_unit_by_hand(nonlinearity: str, backend: str) -> None:
    """Three steps of a single unit; the relu is off in one of them."""
    x, h = [1.5, -2.7, 0.4], 0.25
    y, h_last = np.empty((3, 1, 1)), np.empty((1, 1))
    kernels.rnn_forward(
        y=y,
        h_last=h_last,
        x=np.array(x).reshape(3, 1, 1),
        h0=np.array([[h]]),
        w_ih=np.array([[0.5]]),
        w_hh=np.array([[-0.6]]),
        b=np.array([0.3]),
        nonlinearity=nonlinearity,
        backend=backend,
    )
    for t in range(3):
        a = 0.5 * x[t] - 0.6 * h + 0.3
        h = math.tanh(a) if nonlinearity == "tanh" else max(a, 0.0)
        assert_close(y[t, 0, 0], h, CLOSED_FORM, what=f"y[{t}]", kernel="rnn", backend=backend)
    assert_close(h_last[0, 0], h, CLOSED_FORM, what="h_last", kernel="rnn", backend=backend)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unknown_nonlinearity(function: str) -> None:
    given = arguments(function, find_case("rnn", "primes-tanh"), "float32")
    expected = f'^{function}: nonlinearity must be "tanh" or "relu", got '
    with pytest.raises(ValueError, match=expected + "str 'sigmoid'$"):
        getattr(kernels, function)(**(given | {"nonlinearity": "sigmoid"}))
    with pytest.raises(TypeError, match=expected + "NoneType$"):
        getattr(kernels, function)(**(given | {"nonlinearity": None}))


def test_expected_zoneout_has_no_backward_pass() -> None:
    """The forward pass mixes old and new states by the probability; the backward pass says why not.

    With probability 0 it is the plain cell.
    """
    case = find_case("rnn", "primes-tanh")
    given, plain = (arguments("rnn_forward", case, "float64") for _ in range(2))
    kernels.rnn_forward(**plain)
    kernels.rnn_forward(**(given | {"variant": kernels.Variant(zoneout_h=0.25)}))
    expected = 0.25 * given["h0"] + 0.75 * plain["y"][0]
    assert_close(given["y"][0], expected, CLOSED_FORM, what="y[0]", kernel="rnn", case=case)
    oracle = arguments("rnn_forward", case, "float64") | {"backend": "reference"}
    kernels.rnn_forward(**(oracle | {"variant": kernels.Variant(zoneout_h=0.25)}))
    assert_close(given["y"], oracle["y"], CLOSED_FORM, what="y", kernel="rnn", case=case)
    with pytest.raises(ValueError, match=r"rnn_backward: variant\.sample must be True"):
        kernels.rnn_backward(
            **(
                arguments("rnn_backward", case, "float64")
                | {"variant": kernels.Variant(zoneout_h=0.25)}
            )
        )
