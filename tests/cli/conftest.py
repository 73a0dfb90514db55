"""A run folder made by ``pynlm train`` itself, once a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SENTENCES = [
    "the cat sat on the mat",
    "a dog saw the cat",
    "the dog sat on a mat",
    "the old cat saw a dog and sat",
]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_pynlm(*arguments: object, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
    """``python -m pynlm ARGUMENTS`` in a fresh process."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [sys.executable, "-m", "pynlm", *map(str, arguments)],
        input=data,
        capture_output=True,
        timeout=120,
        env={**os.environ, "NO_COLOR": "1"},
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.fixture(scope="session")
def pynlm_command() -> Run:
    return run_pynlm


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.txt, valid.txt and test.txt."""
    folder = tmp_path_factory.mktemp("texts")
    for name, count in (("train", 40), ("valid", 6), ("test", 5)):
        lines = [SENTENCES[(i * i + i // 3) % 4] for i in range(count)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "test.txt").write_text("the cat saw the zebra\n\nthe dog sat on the mat\n")
    return folder


@pytest.fixture(scope="session")
def run_folder(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word model trained for one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "words"
    done = run_pynlm(
        "train",
        *("--text", texts / "train.txt", "--valid", texts / "valid.txt"),
        *("--test", texts / "test.txt", "--out", folder, "--seed", 1, "--quiet"),
        *("--set", "data.level=word", "train.epochs=1", "train.batch_size=4", "train.bptt=5"),
        *("model.embedding_size=8", "model.hidden_sizes=[8]"),
    )
    assert done.returncode == 0, done.stderr
    return folder
