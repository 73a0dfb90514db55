"""A language model small enough to check by hand, and small texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm.language_model import LanguageModel
from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.text import Tokenizer

TEXT = """the cat sat on the mat
a dog saw the cat
the dog sat

on a mat sat the old cat and the dog
the end
"""


BACKEND = "cpu"


class Toy:
    """A float64 tanh RNN in plain NumPy with the protocol of ``pynlm.models``.

    Counts the tokens that it reads, to show that none is read twice.
    """

    def __init__(self, vocab_size: int = 7, size: int = 5, seed: int = 0) -> None:
        draw = np.random.default_rng(seed).standard_normal
        self.size = size
        self.embedding = draw((vocab_size, size))
        self.w_hh = draw((size, size)) * 0.5
        self.head = draw((vocab_size, size))
        self.steps_read = 0
        self.longest = 0

    def initial_state(self, batch: int) -> tuple[tuple[np.ndarray]]:
        return ((np.zeros((batch, self.size)),),)

    def hidden(
        self, ids: Any, state: Any, ctx: Any, lengths: Any = None
    ) -> tuple[np.ndarray, tuple[tuple[np.ndarray]]]:
        assert ids.dtype == np.int32
        assert ids.flags.c_contiguous
        steps, batch = ids.shape
        lengths = np.full(batch, steps) if lengths is None else lengths
        assert (np.diff(lengths) <= 0).all()
        self.steps_read += int(lengths.sum())
        self.longest = max(self.longest, ids.size)
        h = state[0][0]
        y = np.zeros((steps, batch, self.size))
        for t in range(steps):
            new = np.tanh(self.embedding[ids[t]] + h @ self.w_hh.T)
            h = np.where((t < lengths)[:, None], new, h)
            y[t] = np.where((t < lengths)[:, None], new, 0.0)
        return y, ((h,),)

    def log_prob(self, hidden: np.ndarray, ctx: Any = None) -> np.ndarray:
        logits = hidden @ self.head.T
        top = logits.max(-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))

    def __call__(
        self, ids: Any, targets: Any, state: Any, ctx: Any, lengths: Any = None
    ) -> tuple[np.ndarray, Any, None]:
        assert not ctx.train
        hidden, state = self.hidden(ids, state, ctx, lengths)
        nll = -np.take_along_axis(self.log_prob(hidden), targets[..., None], -1)[..., 0]
        if lengths is not None:  # what stands beyond a length must never be counted
            nll[np.arange(len(ids))[:, None] >= lengths] = np.nan
        return nll, state, None

    def by_hand(self, ids: Any, context: int) -> np.ndarray:
        """``nll`` of each id, one token at a time from a zero state after ``context``."""
        h = np.zeros(self.size)
        out = []
        for target in ids:
            h = np.tanh(self.embedding[context] + self.w_hh @ h)
            out.append(-self.log_prob(h[None])[0, target])
            context = target
        return np.array(out)


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def make(text_file: Path, level: Any, **config: Any) -> LanguageModel:
    """A random model with the vocabulary of ``text_file``."""
    options = {"min_count": 2} if level == "word" else {}
    tokenizer = Tokenizer.train([text_file], level, **options)
    model = RecurrentLM(
        RecurrentLMConfig(
            vocab_size=tokenizer.vocab_size,
            embedding_size=7,
            hidden_sizes=(11, 9),
            init_scale=0.7,
            **config,
        )
    )
    model.initialise(1)
    return LanguageModel(model, tokenizer, backend=BACKEND)


@pytest.fixture
def word_lm(text_file: Path) -> LanguageModel:
    return make(text_file, "word")


@pytest.fixture
def char_lm(text_file: Path) -> LanguageModel:
    return make(text_file, "char")


@pytest.fixture(params=["word", "char", "byte"])
def any_lm(request: pytest.FixtureRequest, text_file: Path) -> LanguageModel:
    return make(text_file, request.param)
