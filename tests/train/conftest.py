"""A tiny text and a tiny recipe that trains in a fraction of a second."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm.train import Trainer

WORDS = ["the", "cat", "dog", "sat", "on", "mat", "and", "ran", "far", "home"]


def write_text(path: Path, lines: int, seed: int) -> Path:
    """Lines in which each word depends on the one before, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    text = []
    for _ in range(lines):
        words, at = [], int(rng.integers(10))
        for _ in range(int(rng.integers(2, 9))):
            words.append(WORDS[at])
            at = (3 * at + int(rng.integers(1, 3))) % 10
        text.append(" ".join(words) + "\n")
    path.write_text("".join(text), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training, validation and test text files."""
    folder = tmp_path_factory.mktemp("texts")
    sizes = {"text": 80, "valid": 15, "test": 15}
    return {
        name: write_text(folder / f"{name}.txt", lines, seed)
        for seed, (name, lines) in enumerate(sizes.items())
    }


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A recipe with dropout, momentum and decay, so that all state there is matters."""
    return {
        "name": "tiny",
        "model": {
            "cell": "lstm",
            "embedding_size": 6,
            "hidden_sizes": [9, 7],
            "dropout_input": 0.2,
            "dropout_between": 0.2,
            "dropout_output": 0.2,
        },
        "train": {
            "batch_size": 4,
            "bptt": 6,
            "epochs": 3,
            "clip_norm": 0.5,
            "log_every": 4,
        },
        "optimiser": {"kind": "adam", "lr": 0.02, "weight_decay": 0.001},
        "schedule": {"kind": "plateau", "decay": 0.5},
    }


@pytest.fixture
def make(
    texts: dict[str, Path], tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Trainer]:
    """Builds a quiet trainer on the tiny texts; `out` is a name below the test's folder."""
    # A picture takes longer than the training.
    monkeypatch.setattr("pynlm.train.trainer.draw_curve", lambda *args, **kwargs: None)

    def build(out: str = "run", **arguments: Any) -> Trainer:
        arguments = {"recipe": tiny, **texts, "quiet": True, **arguments}
        return Trainer(out=tmp_path / out, **arguments)

    return build


def weights(run: Path, which: str = "last") -> str:
    """Digest of a checkpoint's weights."""
    return hashlib.sha256((run / which / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def weights_of() -> Callable[..., str]:
    """`weights_of(run, which="last")`: digest of a checkpoint's weights."""
    return weights
