"""Adagrad: hand example, torch, rows against dense, errors."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import DTYPES, arguments, assert_close, find_case
from pynlm.testing.tolerances import CLOSED_FORM, torch_tolerance

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    """d = 0.5 * 4 + 0.1 * 10 = 3; v = 16 + 9 = 25; w = 10 - 0.5 * 3 / (5 + 1)."""
    w, v = np.array([10.0]), np.array([16.0])
    kernels.adagrad_update(
        w=w, g=np.array([4.0]), v=v, scale=0.5, lr=0.5, eps=1.0, weight_decay=0.1, backend=backend
    )
    assert_close([w[0], v[0]], [9.75, 25.0], CLOSED_FORM, what="w, v", backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_torch(backend: str, weight_decay: float, dtype: str) -> None:
    """Ten steps of torch.optim.Adagrad from the same start, dense and by rows."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    w = rng.normal(size=(7, 3)).astype(dtype)
    table, flat = w.copy(), w.reshape(-1).copy()
    squares = [np.zeros_like(table), np.zeros_like(flat)]
    parameter = torch.nn.Parameter(torch.tensor(w))
    optimiser = torch.optim.Adagrad([parameter], lr=0.1, eps=1e-6, weight_decay=weight_decay)
    options = {"scale": 0.5, "lr": 0.1, "eps": 1e-6, "weight_decay": weight_decay}
    for _ in range(10):
        rows = np.flatnonzero(rng.random(7) < 0.5).astype(np.int32)
        g = np.zeros_like(w)
        g[rows] = rng.normal(size=(len(rows), 3))
        parameter.grad = torch.tensor(g) * 0.5
        optimiser.step()
        kernels.adagrad_update_rows(
            w=table, rows=rows, drows=g[rows], v=squares[0], **options, backend=backend
        )
        kernels.adagrad_update(w=flat, g=g.reshape(-1), v=squares[1], **options, backend=backend)
        expected, tolerance = parameter.detach().numpy(), torch_tolerance(dtype)
        assert_close(flat.reshape(7, 3), expected, tolerance, what="dense", backend=backend)
        assert_close(table, expected, tolerance, what="rows", backend=backend)


def test_without_decay_other_rows_keep_their_bits() -> None:
    given = arguments("adagrad_update_rows", find_case("adagrad", "rows-plain"), "float32")
    before = given["w"].copy()
    kernels.adagrad_update_rows(**given)
    absent = np.setdiff1d(np.arange(13), given["rows"])
    assert (given["w"][absent] == before[absent]).all()
    assert (given["w"][given["rows"]] != before[given["rows"]]).all()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
        ({"eps": 0.0}, "eps must be in (0, inf), got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be in [0, inf), got -0.1"),
        ({"scale": float("nan")}, "scale must be in (-inf, inf), got nan"),
    ],
)
def test_error_messages(changed: dict[str, float], expected: str) -> None:
    runs = [("adagrad_update", "primes-plain"), ("adagrad_update_rows", "rows-plain")]
    for function, case in runs:
        given = arguments(function, find_case("adagrad", case), "float32")
        with pytest.raises(ValueError) as caught:
            getattr(kernels, function)(**(given | changed))
        assert str(caught.value) == f"{function}: {expected}"


def test_rows_must_increase() -> None:
    given = arguments("adagrad_update_rows", find_case("adagrad", "rows-plain"), "float32")
    with pytest.raises(ValueError, match=r"strictly increasing, got rows\[1\]=3 after 4$"):
        kernels.adagrad_update_rows(**(given | {"rows": np.array([4, 3, 5], np.int32)}))
