"""Optimisers on `Parameters`: torch.optim over many steps, with row-sparse gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pynlm.layers.parameters import Parameters
from pynlm.train.config import OptimiserConfig
from pynlm.train.optimisers import clip_gradient_values, gradient_norm, make_optimiser

torch = pytest.importorskip("torch")

SHAPES = {"table": (11, 3), "w": (5, 7), "b": (5,)}

CASES: list[tuple[dict[str, Any], Callable[[list[Any]], Any]]] = [
    ({"kind": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.1)),
    (
        {"kind": "sgd", "weight_decay": 0.02},
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.02),
    ),
    (
        {"kind": "momentum", "momentum": 0.8, "weight_decay": 0.02},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.02),
    ),
    (
        {"kind": "momentum", "momentum": 0.8, "nesterov": True},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    ),
    (
        {"kind": "adam", "betas": [0.8, 0.95], "weight_decay": 0.02},
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), weight_decay=0.02),
    ),
    (
        {"kind": "adamw", "weight_decay": 0.3},
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
    ),
    (
        {"kind": "adagrad", "eps": 1e-10, "weight_decay": 0.02},
        lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.02),
    ),
]


def make_parameters(seed: int = 0) -> Parameters:
    specs = [
        (name, shape, "all" if name != "b" else "bias", name == "table")
        for name, shape in SHAPES.items()
    ]
    parameters = Parameters(specs, np.float64)
    rng = np.random.default_rng(seed)
    for p in parameters.values():
        p.data[...] = rng.standard_normal(p.data.shape)
    return parameters


def put_gradients(parameters: Parameters, seed: int) -> dict[str, np.ndarray]:
    """Give every parameter a gradient (the table two sets of rows); the dense equivalents."""
    rng = np.random.default_rng(seed)
    parameters.zero_grad()
    dense = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    dense["table"][...] = 0.0
    for rows in ([1, 4, 6], [0, 4, 10]):
        drows = rng.standard_normal((3, 3))
        parameters["table"].add_rows(np.array(rows, np.int32), drows)
        dense["table"][rows] += drows
    for name in ("w", "b"):
        parameters[name].add(dense[name])
    return dense


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("config,theirs", CASES, ids=[str(c[0]) for c in CASES])
def test_same_weights_as_torch_after_many_steps(
    config: dict[str, Any], theirs: Callable[[list[Any]], Any], backend: str
) -> None:
    parameters = make_parameters()
    twins = {n: torch.tensor(p.data.copy(), requires_grad=True) for n, p in parameters.items()}
    optimiser = make_optimiser(OptimiserConfig(lr=0.1, **config), parameters, backend=backend)
    other = theirs(list(twins.values()))
    for step in range(12):
        dense = put_gradients(parameters, step)
        scale = 1.0 if step % 3 else 0.4
        lr = 0.1 if step < 6 else 0.03
        for group in other.param_groups:
            group["lr"] = lr
        for name, gradient in dense.items():
            twins[name].grad = torch.tensor(gradient * scale)
        optimiser.step(lr=lr, scale=scale)
        other.step()
        for name, p in parameters.items():
            np.testing.assert_allclose(p.data, twins[name].detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [c[0] for c in CASES], ids=[str(c[0]) for c in CASES])
def test_a_restored_optimiser_gives_the_same_bits(config: dict[str, Any]) -> None:
    one, two = make_parameters(), make_parameters()
    make = OptimiserConfig(lr=0.1, **config)
    first = make_optimiser(make, one, backend="reference")
    for step in range(3):
        put_gradients(one, step)
        first.step(lr=0.1)
    stored = {name: x.copy() for name, x in first.state_dict().items()}
    two.data[...] = one.data
    second = make_optimiser(make, two, backend="reference")
    second.load_state_dict(stored)
    for step in range(3, 6):
        for parameters, optimiser in ((one, first), (two, second)):
            put_gradients(parameters, step)
            optimiser.step(lr=0.1)
    assert one.data.tobytes() == two.data.tobytes()


def test_a_wrong_state_is_named() -> None:
    optimiser = make_optimiser(OptimiserConfig(kind="adam"), make_parameters())
    state = optimiser.state_dict()
    with pytest.raises(
        ValueError, match=r"optimiser state 'v' must be float64 \[\d+\], got nothing"
    ):
        optimiser.load_state_dict({"m": state["m"], "t": state["t"]})
    with pytest.raises(ValueError, match=r"optimiser state 'm' must be .*, got float64 \[3\]"):
        optimiser.load_state_dict({**state, "m": np.zeros(3)})
    with pytest.raises(ValueError, match=r"optimiser state 't'"):
        optimiser.load_state_dict({"m": state["m"], "v": state["v"]})


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_norm_counts_every_element_once(backend: str) -> None:
    parameters = make_parameters()
    dense = put_gradients(parameters, 3)
    expected = np.sqrt(sum((g**2).sum() for g in dense.values()))
    assert gradient_norm(parameters, backend=backend) == pytest.approx(expected, rel=1e-14)
    parameters.zero_grad()
    assert gradient_norm(parameters, backend=backend) == 0.0


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_values_are_clipped_in_sparse_and_dense(backend: str) -> None:
    parameters = make_parameters()
    dense = put_gradients(parameters, 3)
    clip_gradient_values(parameters, 0.25, backend=backend)
    for name, p in parameters.items():
        np.testing.assert_array_equal(p.densify(), np.clip(dense[name], -0.25, 0.25))


def test_groups_set_rate_decay_and_frozen() -> None:
    parameters = make_parameters()
    before = {name: p.data.copy() for name, p in parameters.items()}
    parameters.groups["bias"].lr = 0.5
    parameters.groups["bias"].decay = False
    dense = put_gradients(parameters, 1)
    optimiser = make_optimiser(
        OptimiserConfig(lr=0.1, weight_decay=0.3), parameters, backend="reference"
    )
    optimiser.step(lr=0.1)
    expected = before["b"] - 0.05 * dense["b"]
    np.testing.assert_allclose(parameters["b"].data, expected, rtol=0, atol=1e-15)
    expected = before["table"] - 0.1 * (dense["table"] + 0.3 * before["table"])
    np.testing.assert_allclose(parameters["table"].data, expected, rtol=0, atol=1e-15)

    parameters.groups["all"].frozen = True
    frozen = {name: parameters[name].data.copy() for name in ("table", "w")}
    dense = put_gradients(parameters, 2)
    optimiser.step(lr=0.1)
    for name, data in frozen.items():
        np.testing.assert_array_equal(parameters[name].data, data)
    norm = gradient_norm(parameters, backend="reference")
    assert norm == pytest.approx(np.linalg.norm(dense["b"]), rel=1e-14)
