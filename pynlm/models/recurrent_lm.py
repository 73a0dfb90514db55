"""Recurrent language model: embedding, stacked recurrent layers, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import describe, to_host
from pynlm.heads.adaptive import Adaptive
from pynlm.heads.base import Head, HeadBackprop, is_one_there
from pynlm.heads.trees import Tree
from pynlm.layers.adaptive_embedding import AdaptiveEmbedding, AdaptiveEmbeddingBackprop
from pynlm.layers.backprop import Once
from pynlm.layers.context import SCORING, Context, Site
from pynlm.layers.convert import IntArray, RowOrder, as_ids, row_order, take
from pynlm.layers.dropout import Dropout, DropoutBackprop
from pynlm.layers.embedding import Embedding, EmbeddingBackprop
from pynlm.layers.gru import GRU
from pynlm.layers.lstm import LSTM
from pynlm.layers.parameters import Parameters, Spec
from pynlm.layers.pool import Pool, pool_on
from pynlm.layers.recurrent import Recurrent, State
from pynlm.layers.rnn import RNN
from pynlm.layers.stack import Stack, StackBackprop
from pynlm.models.config import RecurrentLMConfig
from pynlm.models.initialise import initialise

Array = npt.NDArray[Any]
ModelState = tuple[State, ...]
"""One entry a layer, each (h, c) or (h,) with arrays [B, H of the layer]."""

_CELLS: dict[str, type[Recurrent]] = {"lstm": LSTM, "gru": GRU, "rnn_tanh": RNN, "rnn_relu": RNN}


class RecurrentLM:
    """Embedding, dropout, recurrent layers with dropout between, dropout, head.

    Parameters
    ----------
    config
        Sizes, dropout, initial weights.
    dtype
        float32 or float64.
    counts, tree
        What a head may need besides its options, see `pynlm.heads.HeadOptions.make`.
    device
        "cpu", or "cuda" for the current GPU: where weights, states and results are. Ids, targets,
        lengths and what is saved are NumPy's in any case.

    Raises
    ------
    ValueError
        Another device.
    pynlm.cuda.device.DeviceUnavailable (a RuntimeError), DeviceMemoryError (a MemoryError)
        There is no GPU, or not enough memory on it.

    Attributes
    ----------
    parameters
        `embedding.weight` (or what `layers.AdaptiveEmbedding` has), `recurrent.{l}.w_ih`, `.w_hh`,
        `.b` and what else its layer has (see `layers.LSTM`, `GRU`, `RNN`), `head.weight` (unless
        tied), `head.bias` (if any) or what another head has; groups embedding, recurrent, head
        (and, without weight decay, head.log_z).
        Zero until `initialise` or `load_state_dict`.
    pool
        Lends all buffers of the model's passes.

    Examples
    --------
    >>> model = RecurrentLM(RecurrentLMConfig(vocab_size=11, embedding_size=4, hidden_sizes=(6, 5)))
    >>> model.initialise(seed=1)
    >>> ids, targets = np.array([[1, 2], [3, 4]]), np.array([[3, 4], [5, 6]])
    >>> nll, state, backprop = model(ids, targets, model.initial_state(2), Context(train=True))
    >>> backprop(1 / nll.size)
    >>> nll.shape, [h.shape for h, c in state]
    ((2, 2), [(2, 6), (2, 5)])
    """

    def __init__(
        self,
        config: RecurrentLMConfig,
        dtype: npt.DTypeLike = np.float32,
        *,
        counts: npt.ArrayLike | None = None,
        tree: Tree | None = None,
        device: str = "cpu",
    ) -> None:
        self.config, self.device = config, device
        self._given: dict[str, Any] = {"counts": counts, "tree": tree}
        self.pool = pool_on(device, "RecurrentLM")
        cell, head = _CELLS[config.cell], config.head
        # The embedding comes first: what follows its sparse tables is one stretch of dense weights.
        specs: list[Spec]
        if config.adaptive_input:
            specs = AdaptiveEmbedding.specs(
                "embedding", config.vocab_size, config.embedding_size, head.cutoffs or (),
                head.div_value, tied=config.tied,
            )  # fmt: skip
        else:
            specs = Embedding.specs(
                "embedding",
                config.vocab_size,
                config.embedding_size,
                sparse=not config.tied or head.sparse,
            )
        widths = (config.embedding_size, *config.output_sizes)
        for i, size in enumerate(config.hidden_sizes):
            specs += cell.specs(f"recurrent.{i}", widths[i], size, options=config.recurrent)
        specs += head.specs(
            "head", config.vocab_size, widths[-1], bias=config.head_bias, tied=config.tied
        )
        self.parameters = Parameters(specs, dtype, self.pool)
        self.dtype = self.parameters.dtype
        self.layers: tuple[Recurrent, ...] = tuple(
            self._layer(i) for i in range(len(config.hidden_sizes))
        )
        self.embedding: Embedding | AdaptiveEmbedding
        if config.adaptive_input:
            self.head: Head = head.make(self.parameters, None)
            tables = self.head.tables if config.tied and isinstance(self.head, Adaptive) else None
            self.embedding = AdaptiveEmbedding(
                self.parameters, "embedding", head.cutoffs or (), tables
            )
        else:
            self.embedding = Embedding(self.parameters, "embedding")
            own = self.embedding.weight if config.tied else None
            self.head = head.make(self.parameters, own, counts=counts, tree=tree)
        self.dropout_input = self._dropout(config.dropout_input, Site.INPUT, 0)
        self.dropout_between = tuple(
            self._dropout(config.dropout_between, Site.BETWEEN, i)
            for i in range(len(config.hidden_sizes) - 1)
        )
        self.dropout_output = self._dropout(config.dropout_output, Site.OUTPUT, 0)
        self._stack = Stack(
            self.layers,
            (*self.dropout_between, self.dropout_output),
            [config.is_residual(layer.index) for layer in self.layers],
            self.pool,
        )

    def _layer(self, i: int) -> Recurrent:
        cell, prefix, options = self.config.cell, f"recurrent.{i}", self.config.recurrent
        if cell.startswith("rnn_"):
            return RNN(self.parameters, prefix, cell.removeprefix("rnn_"), options, i)
        return _CELLS[cell](self.parameters, prefix, options, i)

    def _dropout(self, p: float, site: int, layer: int) -> Dropout:
        return Dropout(p, site=site, layer=layer, locked=self.config.locked, pool=self.pool)

    @property
    def fixed_launches(self) -> bool:
        """Whether a training step without lengths can be a CUDA graph: see `heads.Head`."""
        # An adaptive input deals ids out to its tables on the host.
        return self.head.fixed_launches and not self.config.adaptive_input

    def initialise(self, seed: int) -> None:
        """Draw the weights that `config` asks for; the same for the same seed.

        See `pynlm.models.initialise`.
        """
        initialise(self.parameters, self.config, seed)

    def to(self, device: str) -> RecurrentLM:
        """This model on "cpu" or "cuda": itself if it is there, else a copy."""
        if device == self.device:
            return self
        moved = RecurrentLM(self.config, self.dtype, **self._given, device=device)
        moved.load_state_dict({name: to_host(x) for name, x in self.state_dict().items()})
        return moved

    def initial_state(self, batch: int) -> ModelState:
        """Zeros, one entry a layer."""
        return tuple(layer.initial_state(batch) for layer in self.layers)

    def __call__(
        self,
        ids: object,
        targets: object,
        state: Sequence[Sequence[Array]] | None,
        ctx: Context,
        lengths: object = None,
        weights: object = None,
    ) -> tuple[Array, ModelState, RecurrentLMBackprop | None]:
        """Loss of each target given all ids up to its own place.

        Parameters
        ----------
        ids, targets
            Integers [T, B] in [0, V); targets beyond a row's length are ignored.
        state
            As returned by `initial_state` or an earlier call; never changed. None means zeros.
        ctx
            `train` decides about dropout and whether a backprop is returned.
        lengths
            Integers [B] in [0, T], in any order; None means T for every row.
        weights
            Of the losses in the gradient: [T, B], or one number for all (on a GPU also float64 [1]
            there); None means 1. One number here is cheaper than the same number given to backprop.

        Returns
        -------
        nll, state, backprop
            nll [T, B] in nats, not weighted, 0 beyond a row's length; the new state; and
            `backprop(scale=1.0)` -> None, which adds the gradient of scale * sum(weights * loss) to
            the parameters' gradients, None unless `ctx.train`. The loss is the nll unless the head
            smooths or penalises it.

        Raises
        ------
        TypeError, ValueError
            Wrong kinds, shapes or lengths.
        IndexError
            An id outside [0, V).
        """
        func = "RecurrentLM"
        ids = self._ids(ids, func)
        shape = time, batch = ids.shape
        goals = as_ids(targets, func=func, name="targets")
        if goals.shape != shape:
            raise ValueError(
                f"{func}: targets must be [T, B] = {list(shape)}, got {list(goals.shape)}"
            )
        factors: Any = None
        if is_one_there(weights):
            factors = weights
        elif weights is not None:
            factors = np.asarray(to_host(weights), self.dtype)
            if factors.shape not in ((), shape):
                raise ValueError(
                    f"{func}: weights must be [T, B] = {list(shape)} or a number, "
                    f"got {list(factors.shape)}"
                )
        each = factors is not None and factors.ndim == 2
        lengths, order = row_order(lengths, time, batch, func=func)
        if order is not None:
            goals = order.sort(goals, self.pool)
            if each:
                factors = order.sort(factors, self.pool)
        hidden, last, trail = self._hidden(ids, state, ctx, lengths, order)
        flat = hidden.reshape(time * batch, hidden.shape[2])
        del hidden
        goals = goals.reshape(-1)
        if each:
            factors = factors.reshape(-1)
        scored = _scored(lengths, time, batch)
        if scored is not None:
            # The head is most of the work: it sees the tokens only, not the padding.
            flat, goals = take(flat, scored, self.pool), take(goals, scored, self.pool)
            if each:
                factors = take(factors, scored, self.pool)
        nll, head = self.head(flat, goals, ctx, factors)
        if scored is not None:
            scored = self.pool.bring(scored)
            padded = self.pool.zeros((time * batch,), self.dtype)
            padded[scored] = nll
            nll = padded
        nll = nll.reshape(shape)
        if order is not None:
            nll = order.restore(nll, self.pool)
        if trail is None or head is None:
            return nll, last, None
        return (
            nll,
            last,
            RecurrentLMBackprop(func, head, trail, scored, shape, self.pool),
        )

    def hidden(
        self,
        ids: object,
        state: Sequence[Sequence[Array]] | None,
        ctx: Context = SCORING,
        lengths: object = None,
    ) -> tuple[Array, ModelState]:
        """What the head sees: [T, B, H of the last layer], and the new state.

        Parameters are those of the call.
        """
        ids = self._ids(ids, "RecurrentLM.hidden")
        lengths, order = row_order(lengths, *ids.shape, func="RecurrentLM.hidden")
        hidden, last, _ = self._hidden(ids, state, ctx, lengths, order)
        return hidden if order is None else order.restore(hidden, self.pool), last

    def log_prob(self, hidden: Array, ctx: Context = SCORING) -> Array:
        """Log-probabilities [N, V] in nats of the token after each hidden state [N, H]."""
        return self.head.log_prob(hidden, ctx)

    def state_dict(self) -> dict[str, Array]:
        """Name -> weights, as views: they change when the model is trained.

        And what a head has of constants that are saved with them (`BaseHead.constants`).
        """
        return {**self.parameters.state_dict(), **self.head.constants()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy weights in; nothing is written unless all names, shapes and dtypes fit.

        Raises
        ------
        KeyError, TypeError, ValueError
            See `Parameters.load_state_dict`; a ValueError for other constants than the head's.
        """
        constants = self.head.constants()
        for name, own in constants.items():
            if name in state and not np.array_equal(state[name], own):
                raise ValueError(f"RecurrentLM: {name} {_difference(own, state[name])}")
        weights = {name: x for name, x in state.items() if name not in constants}
        self.parameters.load_state_dict(weights)

    def _ids(self, ids: object, func: str) -> IntArray:
        numbers = as_ids(ids, func=func, name="ids")
        if numbers.ndim != 2:
            raise ValueError(f"{func}: ids must be [T, B], got {list(numbers.shape)}")
        return numbers

    def _hidden(
        self,
        ids: IntArray,
        state: Sequence[Sequence[Array]] | None,
        ctx: Context,
        lengths: IntArray | None,
        order: RowOrder | None,
    ) -> tuple[Array, ModelState, _Trail | None]:
        """Hidden states in sorted row order, new state in the caller's, what backprop needs."""
        if state is None:
            state = self.initial_state(ids.shape[1])
        if len(state) != len(self.layers):
            raise ValueError(
                f"RecurrentLM: state must have one entry for each of {len(self.layers)} layers, "
                f"got {len(state)}"
            )
        if order is not None:
            ids = order.sort(ids, self.pool)
            state = [order.sort_state(entry, self.pool) for entry in state]
        below, embedding = self.embedding(ids, ctx)
        # Nothing else needs the embedding's output; the recurrent layers' outputs are needed.
        below, drop = self.dropout_input(below, ctx, inplace=True, order=order)
        handed = [below]
        del below
        (x, last), layers = self._stack(handed, state, ctx, lengths, order)
        if order is not None:
            last = [order.restore_state(end, self.pool) for end in last]
        return x, tuple(last), (embedding, drop, layers) if ctx.train else None


_Trail = tuple[
    EmbeddingBackprop | AdaptiveEmbeddingBackprop | None,
    DropoutBackprop | None,
    StackBackprop | None,
]
"""Backprops of embedding, its dropout and the recurrent layers, all there in training."""


class RecurrentLMBackprop(Once):
    """`backprop(scale=1.0)`: adds to the gradients of all parameters; may be called once."""

    __slots__ = ()

    def __call__(self, scale: float = 1.0) -> None:
        """Add the gradient of scale * sum(weights * loss).

        A scale other than 1 costs one more pass over the head's gradient.
        """
        head: HeadBackprop
        pool: Pool
        head, (embedding, drop, layers), scored, (time, batch), pool = self._take()
        dy = head(scale)
        if scored is not None:
            padded = pool.lease((time * batch, dy.shape[1]), dy.dtype)
            padded.fill(0)
            padded[scored] = dy
            dy = padded
            del padded
        handed = [dy.reshape(time, batch, dy.shape[1])]
        del dy
        embedding(drop(layers(handed), inplace=True))


def _difference(own: Array, given: Any) -> str:
    """How a constant of a saved model differs from the head's own."""
    if np.shape(given) != own.shape:
        return f"must be the head's own, {describe(own)}, got {describe(given)}"
    i = int(np.argmax(own != given))
    return f"must be the head's own, with {own[i]} at [{i}], got {np.asarray(given)[i]}"


def _scored(lengths: IntArray | None, time: int, batch: int) -> npt.NDArray[np.intp] | None:
    """Flat places of the tokens within [T, B], None if that is all of them."""
    if lengths is None or batch == 0 or int(lengths.min()) == time:
        return None
    return np.flatnonzero(np.arange(time)[:, None] < lengths[None, :])
