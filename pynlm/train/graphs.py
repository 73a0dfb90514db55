"""Training steps on a GPU as CUDA graphs: one launch a step in the place of hundreds.

A step that is always the same work on the same addresses is recorded once and then repeated. What
differs from step to step (ids, targets, the step's number, rates, the state) is put into memory
that stays where it is. The bits are those of steps that are queued one kernel at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from warnings import warn

import numpy as np

from pynlm.arrays import check_ids
from pynlm.layers.convert import as_ids
from pynlm.models import RecurrentLM
from pynlm.models.recurrent_lm import ModelState
from pynlm.text import Batch
from pynlm.train.config import TrainConfig

if TYPE_CHECKING:
    from pynlm.cuda.graphs import Graph, Recorder

EAGER = 2
"""Steps of a kind that are queued as they are: kinds that do not come again need no graph."""

MOST = 8
"""Kinds of steps that become graphs; each keeps its state and inputs, and all share the rest."""

_ALIGN = 16
_MOST_SEEN = 256


class Queued(NamedTuple):
    """What a step on a GPU will have made, there.

    Attributes
    ----------
    nats, squares : float64 [] and [n]: the loss, and what the gradient's norm is the root of.
    state : after the batch.
    """

    nats: Any
    squares: Any
    state: ModelState


class Steps(Protocol):
    """What `StepGraphs` asks of `BPTT`."""

    model: RecurrentLM
    config: TrainConfig

    def queue_gradients(
        self,
        batch: Batch,
        state: ModelState | None,
        numbers: Mapping[str, Any],
        drawn: dict[str, Any] | None = None,
    ) -> tuple[Any, ModelState]:
        """Forward and backward."""

    def queue_update(self, numbers: Mapping[str, Any]) -> Any:
        """Clip and update."""

    def queue(self, batch: Batch, state: ModelState | None, numbers: Mapping[str, Any]) -> Queued:
        """Both."""


class StepGraphs:
    """The graphs of a model's steps.

    A kind of step is all that Python decides by: the batch's shape, the groups' settings, what
    products are computed in. The first two steps of a kind are queued as they are, the third is
    the rehearsal, the fourth is recorded and begins the repetition. Steps with lengths never
    become graphs: which rows take part is decided by Python, for each batch anew.

    Where a step cannot be recorded, a RuntimeWarning says why, and all go on as they are.

    Parameters
    ----------
    steps : whose steps these are.
    recorder : makes graphs.
    """

    def __init__(self, steps: Steps, recorder: Recorder) -> None:
        self._steps = steps
        self._recorder: Recorder | None = recorder
        self._seen: dict[Any, int] = {}
        self._kinds: dict[Any, _Kind] = {}

    @property
    def made(self) -> int:
        """Graphs that there are."""
        return sum(kind.graph is not None for kind in self._kinds.values())

    def step(self, batch: Batch, state: ModelState | None, numbers: Mapping[str, float]) -> Queued:
        """A step, by a graph if there is one.

        Raises
        ------
        IndexError
            An id or target that is none.
        MemoryError
            In an update, which cannot be done again; the graphs' memory has been given back.
        """
        if self._recorder is None:
            return self._steps.queue(batch, state, numbers)
        try:
            return self._step(batch, state, numbers)
        except MemoryError as error:
            if self._recorder is None:  # what failed was a step without graphs
                raise
            text = f"{error}; CUDA graphs keep memory: train.graph=false needs less"
        # Out there, where the error's frames hold no arrays of the graphs any more.
        self._release()
        raise MemoryError(text)

    def _step(self, batch: Batch, state: ModelState | None, numbers: Mapping[str, float]) -> Queued:
        assert self._recorder is not None  # not a local name, which would outlive `_give_up`
        if batch.lengths is not None or not batch.ids.size:
            if not self._kinds:
                return self._steps.queue(batch, state, numbers)
            return self._queue(batch, state, numbers)
        key = self._key(batch)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            seen = self._seen[key] = self._seen.get(key, 0) + 1
            if seen <= EAGER or len(self._kinds) >= MOST:
                return self._queue(batch, state, numbers)
        reason = ""
        try:
            if kind is None:
                kind = _Kind(self._steps, batch, numbers)
            kind.fill(batch, state, numbers)
        except MemoryError as error:
            reason = f"{type(error).__name__}: {error}"
        if reason:
            del kind
            self._give_up(reason)
            return self._steps.queue(batch, state, numbers)
        assert kind is not None
        try:
            if not kind.rehearsed:
                self._recorder.rehearse(kind.work)
                kind.rehearsed, kind.updated = True, False
                self._kinds[key] = kind
            elif kind.graph is None:
                kind.graph = self._recorder.record(kind.work)
        except Exception as error:
            if kind.updated:
                raise  # what was done cannot be done again
            reason = f"{type(error).__name__}: {error}"
        if reason:  # and nothing holds the failed step's arrays any more
            del kind
            self._give_up(reason)
            return self._steps.queue(batch, state, numbers)
        if kind.graph is not None:
            kind.graph.launch()
        return kind.queued()

    def _queue(
        self, batch: Batch, state: ModelState | None, numbers: Mapping[str, float]
    ) -> Queued:
        """A step that is no graph, in the graphs' memory: what it needs is not needed twice."""
        assert self._recorder is not None
        updated, reason = False, ""

        def work() -> Queued:
            nonlocal updated
            nats, after = self._steps.queue_gradients(batch, state, numbers)
            updated = True
            return Queued(nats, self._steps.queue_update(numbers), after)

        try:
            done: Queued = self._recorder.rehearse(work)
        except MemoryError as error:
            if updated:
                raise  # what was done cannot be done again
            reason = f"{type(error).__name__}: {error}"
        if reason:
            self._give_up(reason)
            return self._steps.queue(batch, state, numbers)
        after = tuple(tuple(x.copy() for x in layer) for layer in done.state)
        return Queued(done.nats.copy(), done.squares.copy(), after)

    def _key(self, batch: Batch) -> Any:
        model = self._steps.model
        device = model.pool.device
        groups = tuple((g.name, g.lr, g.decay, g.frozen) for g in model.parameters.groups.values())
        temperature = getattr(model.head, "temperature", None)
        return batch.ids.shape, groups, temperature, None if device is None else device.math

    def _release(self) -> None:
        """Let go of all graphs, and with them of their memory."""
        self._recorder = None
        self._kinds.clear()

    def _give_up(self, reason: str) -> None:
        self._release()
        text = f"training steps go on without CUDA graphs, which could not be made ({reason})"
        warn(text, RuntimeWarning, stacklevel=5)


class _Kind:
    """Steps of one kind: inputs, state and results at addresses that stay, and the graph.

    Attributes
    ----------
    rehearsed, graph : how far it is.
    updated : whether weights may have been changed by work that was not done to its end.
    """

    def __init__(self, steps: Steps, batch: Batch, numbers: Mapping[str, float]) -> None:
        self._steps, model = steps, steps.model
        pool, shape = model.pool, batch.ids.shape
        self.rehearsed, self.updated, self._parts = False, False, 0
        self.graph: Graph | None = None
        # Ids where Python may look at them, and where kernels read them.
        self._ids, self._targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        drawn = self._draw(1)
        given = [np.zeros(len(numbers)), self._ids, self._targets, *drawn.values()]
        sizes = [-(-x.nbytes // _ALIGN) * _ALIGN for x in given]
        # All of it is one transfer.
        self._host = np.zeros(sum(sizes), np.uint8)
        self._inputs = pool.zeros(self._host.shape, np.uint8)
        places, self._parts_of_host = (
            [
                x[start : start + like.nbytes].view(like.dtype).reshape(like.shape)
                for start, like in zip(np.cumsum([0, *sizes]).tolist(), given, strict=False)
            ]
            for x in (self._inputs, self._host)
        )
        self._numbers = {name: places[0][i : i + 1] for i, name in enumerate(numbers)}
        self._staged = [(self._ids, places[1]), (self._targets, places[2])]
        self._drawn = dict(zip(drawn, places[3:], strict=True))
        self._state = model.initial_state(shape[1])
        self._out = pool.zeros((1 + len(model.parameters),), np.float64)

    def _draw(self, step: int) -> dict[str, Any]:
        """What the head takes from the host besides its targets."""
        seed = self._steps.config.seed
        return self._steps.model.head.draw(self._targets.reshape(-1), seed, step)

    def fill(self, batch: Batch, state: ModelState | None, numbers: Mapping[str, float]) -> None:
        """What this step reads."""
        func, vocab = "BPTT", self._steps.model.config.vocab_size
        for name, own in (("ids", self._ids), ("targets", self._targets)):
            given = as_ids(getattr(batch, name), func=func, name=name)
            check_ids(given.reshape(-1), vocab, func=func, name=name)
            np.copyto(own, given)
        drawn = self._draw(int(numbers["step"]))
        values = [numbers[name] for name in self._numbers]
        for part, value in zip(
            self._parts_of_host, (values, self._ids, self._targets, *drawn.values()), strict=True
        ):
            part[...] = value
        # A copy, because what is brought must not change before it has arrived.
        self._inputs[...] = self._steps.model.pool.bring(self._host.copy())
        if state is self._state:
            return
        for i, layer in enumerate(self._state):
            for j, own in enumerate(layer):
                if state is None:
                    own.fill(0)
                else:
                    own[...] = state[i][j]

    def work(self) -> None:
        """The step, from and to memory that stays."""
        self.updated = False
        batch = Batch(self._ids, self._targets, None, fresh=False)
        with self._steps.model.pool.staged(self._staged):
            nats, state = self._steps.queue_gradients(
                batch, self._state, self._numbers, self._drawn
            )
        self.updated = not self.rehearsed
        squares = self._steps.queue_update(self._numbers)
        self._parts = squares.size
        self._out[:1] = nats
        self._out[1 : 1 + self._parts] = squares
        for old, new in zip(self._state, state, strict=True):
            for own, x in zip(old, new, strict=True):
                own[...] = x

    def queued(self) -> Queued:
        """The results, which the next step of the kind does not overwrite; but the state is its."""
        out = self._out[: 1 + self._parts].copy()
        return Queued(out[0:1], out[1:], self._state)
