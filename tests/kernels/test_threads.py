"""How many threads: what the environment says, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def threads_with(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new process, in another folder, so that it imports what is installed."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    code = "import pynlm; print(pynlm.get_num_threads())"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYNLM_NUM_THREADS": "3"}, 3),
        ({"PYNLM_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"PYNLM_NUM_THREADS": "", "OMP_NUM_THREADS": "nonsense"}, len(os.sched_getaffinity(0))),
    ],
    ids=str,
)
def test_the_environment_decides(
    environment: dict[str, str], expected: int, tmp_path: Path
) -> None:
    ran = threads_with(tmp_path, **environment)
    assert ran.stderr == ""
    # a cgroup may allow less than the affinity mask
    assert int(ran.stdout) == expected or (
        "" in environment.values() and int(ran.stdout) < expected
    )


@pytest.mark.parametrize("text", ["two", "0", "-1", "2x", "1.5"])
def test_a_malformed_number_is_named(text: str, tmp_path: Path) -> None:
    ran = threads_with(tmp_path, PYNLM_NUM_THREADS=text)
    assert ran.returncode != 0
    assert f"ValueError: PYNLM_NUM_THREADS must be a positive integer, got '{text}'" in ran.stderr
