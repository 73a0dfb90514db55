"""One step of truncated backpropagation through time: forward, backward, clip, update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pynlm.arrays import to_host
from pynlm.kernels.queued import clip_scale, clip_scale_scaled
from pynlm.layers.context import Context
from pynlm.models import RecurrentLM
from pynlm.models.recurrent_lm import ModelState, RecurrentLMBackprop
from pynlm.text import Batch
from pynlm.train.config import TrainConfig
from pynlm.train.graphs import Queued, StepGraphs
from pynlm.train.optimisers import (
    Optimiser,
    clip_gradient_values,
    gradient_norm,
    gradient_squares,
)
from pynlm.train.position import Position

Tensors = dict[str, NDArray[Any]]


FIRST_SCALE = 2.0**16
"""What the loss is multiplied by at first where products are of half precision."""

MOST_OVERFLOWS = 40
"""Steps in a row without a finite gradient, after which no smaller scale will help."""


class TrainingDiverged(ArithmeticError):
    """The loss or the gradient is not a number any more; weights were not touched by that step."""


class StepResult(NamedTuple):
    """What one step measured.

    Attributes
    ----------
    nats : summed negative log-likelihood of the batch, before the update.
    tokens : targets that count.
    grad_norm : of the gradient that was clipped by value, before it is clipped by norm. Not finite:
        with `math` fp16 the loss scale made it overflow, and the step updated nothing.
    """

    nats: float
    tokens: int
    grad_norm: float


class Pending(NamedTuple):
    """A `StepResult` that is still on a GPU; see `settle`.

    Attributes
    ----------
    nats, squares : float64 [] and [n] there: of the loss, and what the norm is the root of.
    tokens, step : of the batch, and number of the step.
    """

    nats: Any
    squares: Any
    tokens: int
    step: int


class BPTT:
    """A model with its optimiser and the recurrent state that runs through the text.

    The loss is the mean over a batch's tokens, or the sum over time and mean over rows. Either is
    one number that the head's fused gradient already includes; clipping by norm is one number that
    the optimiser's update includes. So neither costs a pass. On a GPU a step only queues its work;
    what it measured comes with `settle`.

    Parameters
    ----------
    model, optimiser : as made for a recipe; changed in place.
    config : the recipe's `[train]`.
    backend : of the kernels.
    """

    def __init__(
        self,
        model: RecurrentLM,
        optimiser: Optimiser,
        config: TrainConfig,
        *,
        backend: str | None = None,
    ) -> None:
        self.model, self.optimiser, self.config, self.backend = model, optimiser, config, backend
        self.state: ModelState | None = None
        device = model.pool.device
        self._scaling: Any = None  # of `clip_scale_scaled`
        self._overflows = 0  # steps in a row
        if device is not None and config.math == "fp16":
            self._scaling = model.pool.bring(np.array([FIRST_SCALE, 0.0]))
        self._graphs: StepGraphs | None = None
        if device is not None and config.graph and model.fixed_launches:
            recorder = device.recorder()
            if recorder is not None:
                self._graphs = StepGraphs(self, recorder)

    def step(self, batch: Batch, *, lr: float, step: int) -> StepResult | Pending:
        """Learn from one batch.

        Parameters
        ----------
        batch : `fresh` starts from the zero state, otherwise from where the last batch ended.
        lr : learning rate.
        step : number of the step, which (with the seed) decides the dropout masks.

        Raises
        ------
        TrainingDiverged : loss or gradient is NaN or infinite; nothing has been changed. On a GPU
            `settle` raises it, when weights have been changed.
        """
        config, model, tokens = self.config, self.model, batch.tokens
        state = None if batch.fresh else self.state
        if model.pool.device is not None:
            numbers = {"step": step, **self.optimiser.rates(lr)}
            queue = self.queue if self._graphs is None else self._graphs.step
            nats, squares, self.state = queue(batch, state, numbers)
            self.optimiser.count()
            return Pending(nats, squares, tokens, step)
        nll, state, backprop = self._forward(batch, state, step)
        nats = float(nll.sum(dtype=np.float64))
        _check_loss(nats / tokens, step)
        backprop()
        norm = self._norm(step)
        if config.clip_value is not None:
            # Only now: clipping would make an infinite gradient finite, and the step go on.
            clip_gradient_values(model.parameters, config.clip_value, backend=self.backend)
            norm = self._norm(step)
        scale = 1.0
        if config.clip_norm is not None and norm > config.clip_norm:
            scale = config.clip_norm / norm
        self.optimiser.step(lr=lr, scale=scale)
        self.state = state
        return StepResult(nats, tokens, norm)

    def _norm(self, step: int) -> float:
        """The gradient's norm; TrainingDiverged unless it is finite."""
        norm = gradient_norm(self.model.parameters, backend=self.backend)
        _check_norm(norm, step)
        return norm

    def _forward(
        self,
        batch: Batch,
        state: ModelState | None,
        step: Any,
        drawn: dict[str, Any] | None = None,
    ) -> tuple[Any, ModelState, RecurrentLMBackprop]:
        """Losses [T, B], the new state, and the backprop."""
        config, rows = self.config, batch.ids.shape[1]
        context = Context(
            train=True, seed=config.seed, step=step, backend=self.backend, drawn=drawn
        )
        self.model.parameters.zero_grad()
        nll, state, backprop = self.model(
            batch.ids,
            batch.targets,
            state,
            context,
            batch.lengths,
            weights=self._scaled(1.0 / (rows if config.loss == "sum_time" else batch.tokens)),
        )
        assert backprop is not None, "a model in training returns its backprop"
        return nll, state, backprop

    def queue(self, batch: Batch, state: ModelState | None, numbers: Mapping[str, Any]) -> Queued:
        """`queue_gradients` and `queue_update`."""
        nats, after = self.queue_gradients(batch, state, numbers)
        return Queued(nats, self.queue_update(numbers), after)

    def queue_gradients(
        self,
        batch: Batch,
        state: ModelState | None,
        numbers: Mapping[str, Any],
        drawn: dict[str, Any] | None = None,
    ) -> tuple[Any, ModelState]:
        """Forward and backward on a GPU without waiting; the loss and the state after it.

        Parameters
        ----------
        batch, state : what is learnt from, and where it begins; None: the zero state.
        numbers : the step's ("step") and the optimiser's `rates`; they may stand on the GPU.
        drawn : what the head's `draw` gave, on the GPU; None: it draws.
        """
        nll, after, backprop = self._forward(batch, state, numbers["step"], drawn)
        nats = nll.sum(dtype=np.float64)
        backprop()
        return nats, after

    def queue_update(self, numbers: Mapping[str, Any]) -> Any:
        """Clip and update on a GPU without waiting; what the norm is the root of."""
        config, parameters = self.config, self.model.parameters
        squares = gradient_squares(parameters)
        if config.clip_value is not None:
            # As on the CPU, an infinite gradient must not pass for a finite one.
            infinite = squares
            limit = self._scaled(config.clip_value)
            clip_gradient_values(parameters, limit, backend=self.backend)
            squares = gradient_squares(parameters) + (infinite - infinite)
        scale: Any = 1.0
        if self._scaling is not None:
            most = math.inf if config.clip_norm is None else config.clip_norm
            scale = clip_scale_scaled(totals=squares, limit=most, scaling=self._scaling)
        elif config.clip_norm is not None:
            scale = clip_scale(totals=squares, limit=config.clip_norm)
        rates = {name: number for name, number in numbers.items() if name != "step"}
        self.optimiser.update(rates, scale)
        return squares

    def _scaled(self, number: float) -> Any:
        """A number times the loss scale, if there is one, on the GPU."""
        return number if self._scaling is None else self._scaling[:1] * number

    def settle(self, results: Sequence[StepResult | Pending]) -> list[StepResult]:
        """What steps measured; on a GPU fetched in one transfer, which waits for them.

        Raises
        ------
        TrainingDiverged : a loss or a gradient is NaN or infinite.
        """
        pending = [r for r in results if isinstance(r, Pending)]
        if not pending:
            return [r for r in results if isinstance(r, StepResult)]
        parts = [part for r in pending for part in (r.nats.reshape(1), r.squares)]
        numbers = iter(to_host(self.model.pool.xp.concatenate(parts)).tolist())
        settled = []
        for r in pending:
            nats = next(numbers)
            norm = math.sqrt(sum(next(numbers) for _ in range(r.squares.size)))
            _check_loss(nats / r.tokens, r.step)
            if self._scaling is None:
                _check_norm(norm, r.step)
            else:
                self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
                if self._overflows > MOST_OVERFLOWS:
                    _check_norm(norm, r.step)
            settled.append(StepResult(nats, r.tokens, norm))
        return settled

    def tensors(self) -> Tensors:
        """Optimiser and recurrent state by name, for a checkpoint."""
        found = {f"optimiser.{name}": x for name, x in self.optimiser.state_dict().items()}
        if self._scaling is not None:
            found["scaling"] = self._scaling
        for layer, parts in enumerate(self.state or ()):
            found.update({f"state.{layer}.{i}": part for i, part in enumerate(parts)})
        return found

    def load_tensors(self, tensors: Tensors) -> None:
        """The inverse of `tensors`; ValueError names what does not fit."""
        prefix = "optimiser."
        self.optimiser.load_state_dict(
            {n[len(prefix) :]: x for n, x in tensors.items() if n.startswith(prefix)}
        )
        # A run that was begun in other products has none.
        scaling = tensors.get("scaling")
        if self._scaling is not None and scaling is not None:
            _check_tensor("the loss's scaling", self._scaling, scaling)
            self.model.pool.load(self._scaling, scaling)
        if "state.0.0" not in tensors:
            self.state = None
            return
        rows = len(tensors["state.0.0"])
        layers = []
        for layer, parts in enumerate(self.model.initial_state(rows)):
            found = []
            for i, part in enumerate(parts):
                x = tensors.get(f"state.{layer}.{i}")
                _check_tensor(f"recurrent state {layer}.{i}", part, x)
                found.append(self.model.pool.bring(np.array(x)))
            layers.append(tuple(found))
        self.state = tuple(layers)


class Measured:
    """What steps measured, added up in a run's position once it is known.

    Attributes
    ----------
    last : the last step that is known.
    loss : mean over the known steps since the log was last written.
    """

    def __init__(self, bptt: BPTT, position: Position) -> None:
        self._bptt, self._position = bptt, position
        self._steps: list[StepResult | Pending] = []
        self.last, self.loss = StepResult(math.nan, 0, math.nan), math.nan

    def add(self, result: StepResult | Pending) -> None:
        """One more step."""
        self._steps.append(result)

    def settle(self) -> None:
        """Add up all steps; see `BPTT.settle`."""
        p = self._position
        for result in self._bptt.settle(self._steps):
            p.epoch_nats += result.nats
            p.epoch_tokens += result.tokens
            p.logged_nats += result.nats
            p.logged_tokens += result.tokens
            self.last, self.loss = result, p.logged_nats / p.logged_tokens
        self._steps.clear()


def _check_tensor(name: str, own: Any, x: NDArray[Any] | None) -> None:
    if x is None or x.shape != own.shape or x.dtype != own.dtype:
        got = "nothing" if x is None else f"{x.dtype} {list(x.shape)}"
        raise ValueError(f"{name} must be {own.dtype} {list(own.shape)}, got {got}")


def _check_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the loss of step {step} is {loss}")


def _check_norm(norm: float, step: int) -> None:
    if not math.isfinite(norm):
        raise TrainingDiverged(f"the gradient's norm of step {step} is {norm}")


def all_finite(model: RecurrentLM) -> bool:
    """Whether all weights are numbers."""
    # A sum of finite numbers may overflow, so look at the numbers; blocks keep the mask small.
    data, xp = model.parameters.data, model.pool.xp
    step = 1 << 20 if model.pool.device is None else max(1, data.size)  # one wait
    return all(bool(xp.isfinite(data[i : i + step]).all()) for i in range(0, data.size, step))
