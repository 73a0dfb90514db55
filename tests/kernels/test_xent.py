"""Softmax cross-entropy: closed forms, weights."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import DTYPES, arguments, assert_close, assert_same_bits, find_case
from pynlm.testing.tolerances import CLOSED_FORM

FUNCTIONS = [
    *("xent_forward", "xent_gradients", "xent_log_prob"),
    *("xent_top_k", "xent_sample", "xent_entropy"),
]
BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_uniform_distribution(backend: str) -> None:
    """Equal logits: nll = log V, and the gradient of the bias is 1/V - [v = target]."""
    N, H, V = 3, 2, 7
    targets = np.array([0, 6, 6], np.int32)
    nll, dh, dw, db = np.empty(N), np.empty((N, H)), np.empty((V, H)), np.empty(V)
    kernels.xent_gradients(
        nll=nll,
        dh=dh,
        dw=dw,
        db=db,
        h=np.ones((N, H)),
        w=np.zeros((V, H)),
        b=np.full(V, 3.0),
        targets=targets,
        backend=backend,
    )
    counts = np.bincount(targets, minlength=V)
    assert_close(nll, np.full(N, math.log(V)), CLOSED_FORM, what="nll", backend=backend)
    assert_close(db, N / V - counts, CLOSED_FORM, what="db", backend=backend)
    assert_close(dw, np.repeat(db[:, None], H, 1), CLOSED_FORM, what="dw", backend=backend)
    assert not dh.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_words(backend: str) -> None:
    """nll = log(1 + exp(-difference of the logits))."""
    nll = np.empty(2)
    kernels.xent_forward(
        nll=nll,
        h=np.array([[1.0], [-2.0]]),
        w=np.array([[0.5], [2.0]]),
        targets=np.array([1, 1], np.int32),
        backend=backend,
    )
    expected = [math.log1p(math.exp(-1.5)), math.log1p(math.exp(3.0))]
    assert_close(nll, expected, CLOSED_FORM, what="nll", backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_certain_and_impossible_targets(backend: str, dtype: str) -> None:
    """Logits of +-1e4: losses 0 and 2e4 exactly, gradients finite."""
    nll, dh, dw, db = (np.full(shape, np.nan, dtype) for shape in [2, (2, 1), (3, 1), 3])
    kernels.xent_gradients(
        nll=nll,
        dh=dh,
        dw=dw,
        db=db,
        h=np.ones((2, 1), dtype),
        w=np.array([[1e4], [-1e4], [-1e4]], dtype),
        b=np.zeros(3, dtype),
        targets=np.array([0, 1], np.int32),
        backend=backend,
    )
    assert nll.tolist() == [0.0, 2e4]
    assert db.tolist() == [1.0, -1.0, 0.0]
    assert dw[:, 0].tolist() == [1.0, -1.0, 0.0]
    assert dh[:, 0].tolist() == [0.0, 2e4]


def test_weights_scale_gradients_not_losses() -> None:
    case = find_case("xent", "primes")
    plain, weighted, halves = (arguments("xent_gradients", case, "float64") for _ in range(3))
    halves["weights"] = np.full(case.dims["N"], 0.5)
    weighted["weights"] = np.ones(case.dims["N"])
    for given in (plain, weighted, halves):
        kernels.xent_gradients(**given)
    for name in ("nll", "dh", "dw", "db"):
        assert_same_bits(weighted[name], plain[name], what=name, case=case)
        factor = 1.0 if name == "nll" else 0.5
        assert_same_bits(halves[name], plain[name] * factor, what=name, case=case)
