"""Evaluation of a model in training, by the recipe that it is trained by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pynlm.evaluate import Evaluation, TrainingLoss, evaluate_sentences, evaluate_stream
from pynlm.evaluate.facts import start_of
from pynlm.models import RecurrentLM
from pynlm.text import Tokenizer
from pynlm.train.config import Recipe
from pynlm.train.data import IntArray


def evaluate_heldout(
    model: RecurrentLM,
    ids: IntArray,
    tokenizer: Tokenizer,
    recipe: Recipe,
    *,
    stripes: int,
    backend: str | None,
    progress: Callable[[int], None],
) -> Evaluation:
    """Perplexity of token ids, or the training loss of a head that learns no likelihood.

    Parameters
    ----------
    stripes : at most so many pieces are read side by side, see `evaluate_stream`.
    backend, progress : as there.
    """
    start_id, start_token = start_of(tokenizer)
    eos = tokenizer.eos_id
    facts: dict[str, Any] = {
        "unk_id": tokenizer.unk_id,
        "start_token": start_token,
        "backend": backend,
        "progress": progress,
    }
    learns = model.head.learns_likelihood
    reader: Any = model if learns else TrainingLoss(model, recipe.train.seed)
    if recipe.data.batching == "sentences" and eos is not None:
        found = evaluate_sentences(reader, ids, start_id, eos, **facts)
    else:
        stripes = min(stripes, len(ids))
        found = evaluate_stream(reader, ids, start_id, stripes=stripes, eos_id=eos, **facts)
    return found if learns else replace(found, loss=recipe.head.kind)
