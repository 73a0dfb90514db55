"""SGD: hand example, torch, rows against dense, errors."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import DTYPES, arguments, assert_close, find_case
from pynlm.testing.tolerances import CLOSED_FORM, torch_tolerance

BACKENDS = ["reference", "cpu"]
VARIANTS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    """d = 0.5 * 4 + 0.1 * 10 = 3; buffer = 0.9 * 2 + 3 = 4.8; w = 10 - 0.5 * 4.8."""
    w, buffer, scalars = np.array([10.0]), np.array([2.0]), {"scale": 0.5, "lr": 0.5}
    given = {"g": np.array([4.0]), "momentum": 0.9, "weight_decay": 0.1, **scalars}
    kernels.sgd_update(w=w, momentum_buffer=buffer, **given, backend=backend)
    assert_close([w[0], buffer[0]], [7.6, 4.8], CLOSED_FORM, what="w, buffer", backend=backend)
    w, buffer = np.array([10.0]), np.array([2.0])
    kernels.sgd_update(w=w, momentum_buffer=buffer, **given, nesterov=True, backend=backend)
    assert_close(w[0], 10 - 0.5 * (3 + 0.9 * 4.8), CLOSED_FORM, what="nesterov", backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_torch(backend: str, options: dict[str, float], dtype: str) -> None:
    """Ten steps of torch.optim.SGD from the same start, dense and by rows."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    w = rng.normal(size=(7, 3)).astype(dtype)
    table, flat = w.copy(), w.reshape(-1).copy()
    buffers = [np.zeros_like(w), np.zeros_like(flat)] if "momentum" in options else [None, None]
    parameter = torch.nn.Parameter(torch.tensor(w))
    optimiser = torch.optim.SGD([parameter], lr=0.1, **options)
    for _ in range(10):
        rows = np.flatnonzero(rng.random(7) < 0.5).astype(np.int32)
        g = np.zeros_like(w)
        g[rows] = rng.normal(size=(len(rows), 3))
        parameter.grad = torch.tensor(g) * 0.5
        optimiser.step()
        kernels.sgd_update(
            w=flat, g=g.reshape(-1), momentum_buffer=buffers[1], scale=0.5, lr=0.1, **options,
            backend=backend,
        )  # fmt: skip
        kernels.sgd_update_rows(
            w=table, rows=rows, drows=g[rows], momentum_buffer=buffers[0], scale=0.5, lr=0.1,
            **options, backend=backend,
        )  # fmt: skip
        expected, tolerance = parameter.detach().numpy(), torch_tolerance(dtype)
        assert_close(flat.reshape(7, 3), expected, tolerance, what="dense", backend=backend)
        assert_close(table, expected, tolerance, what="rows", backend=backend)


def test_without_decay_and_momentum_other_rows_keep_their_bits() -> None:
    given = arguments("sgd_update_rows", find_case("sgd", "rows-plain"), "float32")
    before = given["w"].copy()
    kernels.sgd_update_rows(**given)
    absent = np.setdiff1d(np.arange(13), given["rows"])
    assert (given["w"][absent] == before[absent]).all()
    assert (given["w"][given["rows"]] != before[given["rows"]]).all()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
        ({"lr": float("nan")}, "lr must be in [0, inf), got nan"),
        ({"scale": float("inf")}, "scale must be in (-inf, inf), got inf"),
        ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be in [0, inf), got -0.1"),
        ({"momentum": 0.9}, "momentum_buffer must be an array with momentum=0.9, got None"),
        ({"nesterov": True}, "momentum_buffer must be an array with nesterov=True, got None"),
    ],
)
def test_error_messages(changed: dict[str, float], expected: str) -> None:
    for function, case in [("sgd_update", "primes-plain"), ("sgd_update_rows", "rows-plain")]:
        given = arguments(function, find_case("sgd", case), "float32")
        with pytest.raises(ValueError) as caught:
            getattr(kernels, function)(**(given | changed))
        assert str(caught.value) == f"{function}: {expected}"


def test_rows_must_increase_and_lie_in_the_table() -> None:
    given = arguments("sgd_update_rows", find_case("sgd", "rows-plain"), "float32")
    with pytest.raises(
        IndexError, match=r"^sgd_update_rows: rows\[2\] must be in \[0, V=13\), got 13$"
    ):
        kernels.sgd_update_rows(**(given | {"rows": np.array([0, 3, 13], np.int32)}))
    with pytest.raises(ValueError, match=r"strictly increasing, got rows\[2\]=3 after 3$"):
        kernels.sgd_update_rows(**(given | {"rows": np.array([0, 3, 3], np.int32)}))
