"""A tiny text and a tiny recipe that trains in a fraction of a second."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm import _kernels
from pynlm.kernels import Variant, _backend
from pynlm.testing import FUNCTIONS, capture
from pynlm.testing.device_arrays import DeviceArray, unwrap
from pynlm.testing.emulated import StrictDevice, emulation
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


def behind_the_wall(name: str) -> Callable[..., Any]:
    """A kernel of the CPU that takes arrays of the device only."""

    def call(**given: Any) -> Any:
        values = {key: unwrap(value) for key, value in given.items()}
        variant = values.pop("variant", None)
        if variant is not None:
            values |= {"rows": unwrap(variant.rows), "step": unwrap(variant.step)}
        return capture.queue(run, values, variant)

    def run(values: dict[str, Any], variant: Variant | None) -> Any:
        for late in ("scale", "limit", "lr", "t", "step"):
            if isinstance(values.get(late), np.ndarray):  # on the device, not waited for
                number = values[late].item()
                values[late] = int(number) if late in ("t", "step") else number
        scale = values.get("scale", 1.0)
        if scale != scale:
            return None  # as those of the GPU: no update
        if variant is not None:
            moved = {part: values.pop(part) for part in ("rows", "step")}
            values["variant"] = replace(variant, **moved)
        count = getattr(_kernels, name)(**values)
        if count is not None:
            DeviceArray.waits += 1
        return count

    return call


@pytest.fixture
def device() -> Iterator[StrictDevice]:
    with emulation(StrictDevice()) as found:
        yield found


@pytest.fixture
def fast(device: StrictDevice, monkeypatch: pytest.MonkeyPatch) -> StrictDevice:
    """The device, with kernels of the CPU in the place of the GPU's."""
    for name in FUNCTIONS:
        monkeypatch.setitem(_backend._found, (name, "cuda"), behind_the_wall(name))
    return device


@pytest.fixture
def few_lines(texts: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The beginnings of the tiny texts."""
    found = {}
    for name, lines in {"text": 14, "valid": 2, "test": 2}.items():
        found[name] = tmp_path / f"{name}.txt"
        found[name].write_text("".join(texts[name].read_text().splitlines(True)[:lines]))
    return found
