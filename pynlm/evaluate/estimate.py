"""The loss of heads that learn no likelihood, for a trainer to choose the best model by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pynlm.layers.context import Context


class TrainingLoss:
    """A model as evaluation takes it, whose losses are those that its head is trained on.

    There is no dropout, and all tokens share the samples of step 0, so that two evaluations compare
    and no result depends on how the text is cut.

    Parameters
    ----------
    model
        `pynlm.models.RecurrentLM`.
    seed
        Of the samples.
    """

    def __init__(self, model: Any, seed: int) -> None:
        self._model, self._seed = model, seed
        self.initial_state = model.initial_state

    def __call__(
        self, ids: Any, targets: Any, state: Any, ctx: Context, lengths: Any = None
    ) -> tuple[Any, Any, None]:
        """Losses [T, B] in nats and the new state."""
        hidden, state = self._model.hidden(ids, state, ctx, lengths)
        how = replace(ctx, train=True, seed=self._seed, step=0)
        flat = hidden.reshape(targets.size, hidden.shape[2])
        loss, _ = self._model.head.loss(flat, targets.reshape(-1), how, reduction="none")
        return loss.reshape(targets.shape), state, None
