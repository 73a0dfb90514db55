"""Evaluation: perplexity, scores and samples of a trained model."""

from __future__ import annotations

from pynlm.evaluate.estimate import TrainingLoss
from pynlm.evaluate.facts import TextCounts, count_file, count_lines, count_text, start_of
from pynlm.evaluate.generate import Detokeniser, Sampler, generate_ids
from pynlm.evaluate.perplexity import (
    CHUNK,
    Evaluation,
    NoPerplexity,
    evaluate_sentences,
    evaluate_stream,
    span_nll,
    stream_nll,
)
from pynlm.evaluate.score import Scorer, SentenceScore, read_lines, split_lines

__all__ = [
    "CHUNK",
    "Detokeniser",
    "Evaluation",
    "NoPerplexity",
    "Sampler",
    "Scorer",
    "SentenceScore",
    "TextCounts",
    "TrainingLoss",
    "count_file",
    "count_lines",
    "count_text",
    "evaluate_sentences",
    "evaluate_stream",
    "generate_ids",
    "read_lines",
    "span_nll",
    "split_lines",
    "start_of",
    "stream_nll",
]
