"""Optimisers over a model's flat parameters; the arithmetic is the fused kernels'.

Each step makes one pass a stretch of dense gradients and one a row-sparse table, with the factor
that clipping asks for folded in. A sparse table gets exactly what a dense gradient would give it:
moments and decay move the rows that no token touched, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from pynlm.kernels.queued import sums_of_squares
from pynlm.layers.parameters import Group, Parameters
from pynlm.train.config import OptimiserConfig

Array = NDArray[Any]


class Optimiser(Protocol):
    """What the trainer needs of an optimiser.

    A `scale` is a number, or on a GPU what `pynlm.kernels.queued.clip_scale` returns. A step is
    `update(rates(lr), scale)` and `count()`; the first is what a CUDA graph may repeat.
    """

    def step(self, *, lr: float, scale: Any = 1.0) -> None:
        """Update all weights from `scale` times their gradients."""

    def rates(self, lr: float) -> dict[str, float]:
        """What changes from update to update, by the kernels' names; for the next one."""

    def update(self, rates: Mapping[str, Any], scale: Any = 1.0) -> None:
        """Update all weights, nothing else; on a GPU rates may stand there."""

    def count(self) -> None:
        """An update has been made."""

    def state_dict(self) -> dict[str, Array]:
        """Arrays from which `load_state_dict` restores the optimiser exactly."""

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Continue from a stored state; ValueError names what does not fit."""


def gradient_squares(parameters: Parameters) -> Array:
    """Sums of squares of the gradient's parts, float64 [n] on the GPU, without waiting.

    Together they are the square of `gradient_norm`.
    """
    parts = [
        parameters.grad[block.start : block.stop]
        for block in parameters.blocks()
        if not block.group.frozen
    ]
    totals = parameters.pool.empty((len(parts),), np.float64)
    sums_of_squares(totals=totals, parts=parts)
    return totals


def gradient_norm(parameters: Parameters, *, backend: str | None = None) -> float:
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


def clip_gradient_values(parameters: Parameters, limit: Any, *, backend: str | None = None) -> None:
    """Limit every gradient element to [-limit, limit] in place; on a GPU it may stand there."""
    for block in parameters.blocks():
        clip_values(x=parameters.grad[block.start : block.stop], limit=limit, backend=backend)
    for table in parameters.tables():
        clip_values(x=table.rows[1], limit=limit, backend=backend)


class _Flat:
    """Walks over dense stretches and sparse tables; state arrays are flat, like the weights.

    Parameters
    ----------
    dense, rows : the rule's two kernels.
    names : the state arrays that the rule keeps, each zero at first.
    rule : what else the kernels are told.
    """

    def __init__(
        self,
        parameters: Parameters,
        dense: Callable[..., None],
        rows: Callable[..., None],
        names: tuple[str, ...],
        rule: dict[str, Any],
        *,
        weight_decay: float,
        backend: str | None,
    ) -> None:
        self.parameters, self.weight_decay = parameters, weight_decay
        data, zeros = parameters.data, parameters.pool.zeros
        self.state: dict[str, Array] = {name: zeros(data.shape, data.dtype) for name in names}
        self._dense, self._rows = dense, rows
        self._rule = {**rule, "backend": backend}

    def step(self, *, lr: float, scale: Any = 1.0) -> None:
        """Update all weights from `scale` times their gradients."""
        self.update(self.rates(lr), scale)
        self.count()

    def rates(self, lr: float) -> dict[str, float]:
        """The learning rate."""
        return {"lr": lr}

    def count(self) -> None:
        """Nothing is counted."""

    def update(self, rates: Mapping[str, Any], scale: Any = 1.0) -> None:
        """Update all weights from `scale` times their gradients."""
        p = self.parameters
        for start, stop, group in p.blocks():
            if not group.frozen:
                state = {name: x[start:stop] for name, x in self.state.items()}
                rule = self._rule_for(group, rates, scale)
                self._dense(w=p.data[start:stop], g=p.grad[start:stop], **state, **rule)
        for table in p.tables():
            if not table.group.frozen:
                w, (rows, drows) = table.data, table.rows
                own = slice(table.start, table.start + w.size)
                state = {name: x[own].reshape(w.shape) for name, x in self.state.items()}
                rule = self._rule_for(table.group, rates, scale)
                self._rows(w=w, rows=rows, drows=drows, **state, **rule)

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
        for name, own in self.state.items():
            self.parameters.pool.load(own, state[name])

    def _rule_for(self, group: Group, rates: Mapping[str, Any], scale: Any) -> dict[str, Any]:
        decay = self.weight_decay if group.decay else 0.0
        lr = rates["lr"] if group.lr == 1.0 else rates["lr"] * group.lr
        return {**self._rule, **rates, "lr": lr, "scale": scale, "weight_decay": decay}


class SGD(_Flat):
    """Gradient descent, with momentum (`buf = momentum * buf + g`) when it is not zero."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            parameters,
            sgd_update,
            sgd_update_rows,
            # Without a buffer the kernel's step is one multiply-add.
            ("momentum_buffer",) if momentum else (),
            {"momentum": momentum, "nesterov": nesterov} if momentum else {},
            weight_decay=weight_decay,
            backend=backend,
        )


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
        backend: str | None = None,
    ) -> None:
        super().__init__(
            parameters,
            adam_update,
            adam_update_rows,
            ("m", "v"),
            {"beta1": betas[0], "beta2": betas[1], "eps": eps, "decoupled": decoupled},
            weight_decay=weight_decay,
            backend=backend,
        )
        self.t = 0

    def rates(self, lr: float) -> dict[str, float]:
        """The learning rate, and the number of the update."""
        return {"lr": lr, "t": self.t + 1}

    def count(self) -> None:
        """One more update."""
        self.t += 1

    def state_dict(self) -> dict[str, Array]:
        """The moments, and the number of updates made."""
        return {**super().state_dict(), "t": np.array([self.t], np.int64)}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Copy a state in; ValueError names what is missing or does not fit."""
        if "t" not in state:
            raise ValueError("optimiser state 't' must be int64 [1], got nothing")
        super().load_state_dict(state)
        self.t = int(state["t"][0])


class Adagrad(_Flat):
    """Adagrad (Duchi et al. 2011)."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            parameters,
            adagrad_update,
            adagrad_update_rows,
            ("v",),
            {"eps": eps},
            weight_decay=weight_decay,
            backend=backend,
        )


def make_optimiser(
    config: OptimiserConfig, parameters: Parameters, *, backend: str | None = None
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
