"""Adam and AdamW: hand example, torch, rows against dense, errors."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import DTYPES, arguments, assert_close, find_case
from pynlm.testing.tolerances import CLOSED_FORM, torch_tolerance

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decoupled", [False, True])
def test_first_step_by_hand(decoupled: bool, backend: str) -> None:
    """At t = 1 the corrected moments are d and d**2, so the step is lr * d / (|d| + eps)."""
    w, m, v = np.array([10.0]), np.zeros(1), np.zeros(1)
    kernels.adam_update(
        w=w, g=np.array([4.0]), m=m, v=v, scale=0.5, lr=0.1, beta1=0.9, beta2=0.99, eps=1.0,
        weight_decay=0.2, decoupled=decoupled, t=1, backend=backend,
    )  # fmt: skip
    d = 2.0 if decoupled else 4.0
    start = 10 * (1 - 0.1 * 0.2) if decoupled else 10
    expected = [start - 0.1 * d / (d + 1), 0.1 * d, 0.01 * d**2]
    assert_close([w[0], m[0], v[0]], expected, CLOSED_FORM, what="w, m, v", backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_torch(backend: str, decoupled: bool, weight_decay: float, dtype: str) -> None:
    """Ten steps of torch.optim.Adam or AdamW from the same start, dense and by rows."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    w = rng.normal(size=(7, 3)).astype(dtype)
    table, flat = w.copy(), w.reshape(-1).copy()
    moments = [np.zeros_like(x) for x in (table, table, flat, flat)]
    parameter = torch.nn.Parameter(torch.tensor(w))
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimiser = kind([parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay)
    options = {"scale": 0.5, "lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6}
    options |= {"weight_decay": weight_decay, "decoupled": decoupled, "backend": backend}
    for t in range(1, 11):
        rows = np.flatnonzero(rng.random(7) < 0.5).astype(np.int32)
        g = np.zeros_like(w)
        g[rows] = rng.normal(size=(len(rows), 3))
        parameter.grad = torch.tensor(g) * 0.5
        optimiser.step()
        kernels.adam_update_rows(
            w=table, rows=rows, drows=g[rows], m=moments[0], v=moments[1], t=t, **options
        )
        kernels.adam_update(w=flat, g=g.reshape(-1), m=moments[2], v=moments[3], t=t, **options)
        expected, tolerance = parameter.detach().numpy(), torch_tolerance(dtype)
        assert_close(flat.reshape(7, 3), expected, tolerance, what="dense", backend=backend)
        assert_close(table, expected, tolerance, what="rows", backend=backend)


def test_absent_rows_still_move() -> None:
    """Moments from earlier steps move a row whose gradient is zero now (dense semantics)."""
    given = arguments("adam_update_rows", find_case("adam", "rows-plain"), "float64")
    before = given["w"].copy()
    kernels.adam_update_rows(**given)
    assert (given["w"] != before).all()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
        ({"beta1": 1.0}, "beta1 must be in [0, 1), got 1.0"),
        ({"beta2": -0.1}, "beta2 must be in [0, 1), got -0.1"),
        ({"eps": 0.0}, "eps must be in (0, inf), got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be in [0, inf), got -0.1"),
        ({"t": 0}, "t must be in [1, 9007199254740992], got 0"),
    ],
)
def test_error_messages(changed: dict[str, float], expected: str) -> None:
    for function, case in [("adam_update", "primes-plain"), ("adam_update_rows", "rows-plain")]:
        given = arguments(function, find_case("adam", case), "float32")
        with pytest.raises(ValueError) as caught:
            getattr(kernels, function)(**(given | changed))
        assert str(caught.value) == f"{function}: {expected}"


def test_rows_must_increase_and_lie_in_the_table() -> None:
    given = arguments("adam_update_rows", find_case("adam", "rows-plain"), "float32")
    with pytest.raises(IndexError, match=r"rows\[0\] must be in \[0, V=13\), got -1$"):
        kernels.adam_update_rows(**(given | {"rows": np.array([-1, 3, 5], np.int32)}))
    with pytest.raises(ValueError, match=r"strictly increasing, got rows\[1\]=3 after 4$"):
        kernels.adam_update_rows(**(given | {"rows": np.array([4, 3, 5], np.int32)}))
