"""A run folder made by ``pynlm train`` itself, once a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pynlm.cli import main

SENTENCES = [
    "the cat sat on the mat",
    "a dog saw the cat",
    "the dog sat on a mat",
    "the old cat saw a dog and sat",
]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_pynlm(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """``python -m pynlm ARGUMENTS`` in a fresh process."""
    return subprocess.run(
        [sys.executable, "-m", "pynlm", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NO_COLOR": "1"},
    )


@pytest.fixture
def pynlm_command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process; in a fresh one where it is to read stdin."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        if stdin is not None:
            return run_pynlm(*arguments, stdin=stdin)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        code = stopped.value.code
        assert code is None or isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code or 0, out, err)

    return run


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
