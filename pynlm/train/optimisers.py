"""Optimisers over a model's flat parameters; the arithmetic is the fused kernels'.

Each step makes one pass a stretch of dense gradients and one a row-sparse table, with the factor
that clipping asks for folded in. A sparse table gets exactly what a dense gradient would give it:
moments and decay move the rows that no token touched, too.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pynlm.kernels import (
    adagrad_update,
    adagrad_update_rows,
    adam_update,
    adam_update_rows,
    clip_values,
    sgd_update,
    sgd_update_rows,
    sum_squares,
)
from pynlm.layers.parameters import Group, Parameters
from pynlm.train.config import OptimiserConfig

Array = NDArray[Any]


class Optimiser(Protocol):
    """What the trainer needs of an optimiser."""

    def step(self, *, lr: float, scale: float = 1.0) -> None:
        """Update all weights from `scale` times their gradients."""

    def state_dict(self) -> dict[str, Array]:
        """Arrays from which `load_state_dict` restores the optimiser exactly."""

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Continue from a stored state; ValueError names what does not fit."""


def gradient_norm(parameters: Parameters, *, backend: str = "cpu") -> float:
    """Euclidean norm of all gradients that are not frozen, in double precision.

    The order of the sum is fixed, so its bits do not depend on the number of threads.
    """
    total = 0.0
    for block in parameters.blocks():
        if not block.group.frozen:
            total += sum_squares(x=parameters.grad[block.start : block.stop], backend=backend)
    for table in parameters.tables():
        if not table.group.frozen:
            total += sum_squares(x=table.rows[1], backend=backend)
    return math.sqrt(total)


def clip_gradient_values(parameters: Parameters, limit: float, *, backend: str = "cpu") -> None:
    """Limit every gradient element to [-limit, limit] in place."""
    for block in parameters.blocks():
        clip_values(x=parameters.grad[block.start : block.stop], limit=limit, backend=backend)
    for table in parameters.tables():
        clip_values(x=table.rows[1], limit=limit, backend=backend)


class _Flat:
    """Shared walk over dense stretches and sparse tables; state arrays are flat, like the weights.

    Parameters
    ----------
    names : the state arrays that the rule keeps, each zero at first.
    """

    def __init__(
        self, parameters: Parameters, names: tuple[str, ...], weight_decay: float, backend: str
    ) -> None:
        self.parameters, self.weight_decay, self.backend = parameters, weight_decay, backend
        self.state = {name: np.zeros_like(parameters.data) for name in names}

    def step(self, *, lr: float, scale: float = 1.0) -> None:
        """Update all weights from `scale` times their gradients."""
        p = self.parameters
        for start, stop, group in p.blocks():
            if not group.frozen:
                state = {name: x[start:stop] for name, x in self.state.items()}
                rates = self._rates(lr, scale, group)
                self._dense(p.data[start:stop], p.grad[start:stop], state, rates)
        for table in p.tables():
            if not table.group.frozen:
                stop = table.start + table.data.size
                state = {
                    name: x[table.start : stop].reshape(table.data.shape)
                    for name, x in self.state.items()
                }
                rates = self._rates(lr, scale, table.group)
                self._rows(table.data, *table.rows, state, rates)

    def state_dict(self) -> dict[str, Array]:
        """The state arrays under their names."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Copy state arrays in; ValueError names one that is missing or does not fit."""
        for name, own in self.state.items():
            got = state.get(name)
            if got is None or got.shape != own.shape or got.dtype != own.dtype:
                found = "nothing" if got is None else f"{got.dtype} {list(got.shape)}"
                raise ValueError(
                    f"optimiser state {name!r} must be {own.dtype} {list(own.shape)}, got {found}"
                )
            own[...] = got

    def _rates(self, lr: float, scale: float, group: Group) -> dict[str, Any]:
        return {
            "lr": lr * group.lr,
            "scale": scale,
            "weight_decay": self.weight_decay if group.decay else 0.0,
            "backend": self.backend,
        }

    def _dense(self, w: Array, g: Array, state: dict[str, Array], rates: dict[str, Any]) -> None:
        raise TypeError(f"{type(self).__name__} has no update rule")

    def _rows(
        self, w: Array, rows: Array, drows: Array, state: dict[str, Array], rates: dict[str, Any]
    ) -> None:
        raise TypeError(f"{type(self).__name__} has no update rule")


class SGD(_Flat):
    """Gradient descent, with momentum (`buf = momentum * buf + g`) when it is not zero."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        backend: str = "cpu",
    ) -> None:
        names = ("momentum_buffer",) if momentum else ()
        super().__init__(parameters, names, weight_decay, backend)
        # Without a buffer the kernel takes no momentum and a step is one multiply-add.
        self._rule = {"momentum": momentum, "nesterov": nesterov} if momentum else {}

    def _dense(self, w: Array, g: Array, state: dict[str, Array], rates: dict[str, Any]) -> None:
        sgd_update(w=w, g=g, **state, **rates, **self._rule)

    def _rows(
        self, w: Array, rows: Array, drows: Array, state: dict[str, Array], rates: dict[str, Any]
    ) -> None:
        sgd_update_rows(w=w, rows=rows, drows=drows, **state, **rates, **self._rule)


class Adam(_Flat):
    """Adam (Kingma & Ba 2015); `decoupled` decay is AdamW (Loshchilov & Hutter 2019)."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        backend: str = "cpu",
    ) -> None:
        super().__init__(parameters, ("m", "v"), weight_decay, backend)
        self._rule = {
            "beta1": betas[0],
            "beta2": betas[1],
            "eps": eps,
            "decoupled": decoupled,
        }
        self.t = 0

    def step(self, *, lr: float, scale: float = 1.0) -> None:
        self.t += 1
        super().step(lr=lr, scale=scale)

    def state_dict(self) -> dict[str, Array]:
        return {**super().state_dict(), "t": np.array([self.t], np.int64)}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        super().load_state_dict(state)
        if "t" not in state:
            raise ValueError("optimiser state 't' must be int64 [1], got nothing")
        self.t = int(state["t"][0])

    def _dense(self, w: Array, g: Array, state: dict[str, Array], rates: dict[str, Any]) -> None:
        adam_update(w=w, g=g, t=self.t, **state, **rates, **self._rule)

    def _rows(
        self, w: Array, rows: Array, drows: Array, state: dict[str, Array], rates: dict[str, Any]
    ) -> None:
        adam_update_rows(w=w, rows=rows, drows=drows, t=self.t, **state, **rates, **self._rule)


class Adagrad(_Flat):
    """Adagrad (Duchi et al. 2011)."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        backend: str = "cpu",
    ) -> None:
        super().__init__(parameters, ("v",), weight_decay, backend)
        self._rule = {"eps": eps}

    def _dense(self, w: Array, g: Array, state: dict[str, Array], rates: dict[str, Any]) -> None:
        adagrad_update(w=w, g=g, **state, **rates, **self._rule)

    def _rows(
        self, w: Array, rows: Array, drows: Array, state: dict[str, Array], rates: dict[str, Any]
    ) -> None:
        adagrad_update_rows(w=w, rows=rows, drows=drows, **state, **rates, **self._rule)


def make_optimiser(
    config: OptimiserConfig, parameters: Parameters, *, backend: str = "cpu"
) -> Optimiser:
    """The optimiser that a recipe's `[optimiser]` describes."""
    decay = config.weight_decay
    if config.kind == "adagrad":
        return Adagrad(parameters, eps=config.eps, weight_decay=decay, backend=backend)
    if config.kind in ("adam", "adamw"):
        return Adam(
            parameters,
            betas=config.betas,
            eps=config.eps,
            weight_decay=decay,
            decoupled=config.kind == "adamw",
            backend=backend,
        )
    return SGD(
        parameters,
        momentum=config.momentum if config.kind == "momentum" else 0.0,
        nesterov=config.kind == "momentum" and config.nesterov,
        weight_decay=decay,
        backend=backend,
    )
