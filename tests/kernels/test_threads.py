"""How many threads: what the environment says, what is refused."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pynlm import kernels


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


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the flags of x86"
)
def test_a_caller_that_flushes_denormals_changes_nothing() -> None:
    """As XLA's threads do: workers would compute other numbers than their caller."""
    library = ctypes.CDLL("libm.so.6")
    before, flushing = ((ctypes.c_uint32 * 8)() for _ in range(2))
    library.fegetenv(before)
    library.fegetenv(flushing)
    flushing[7] |= 0x8040  # of MXCSR: flush results to zero, take denormals for zero
    x, w = np.full((3, 1), 0.5, np.float32), np.full((2, 1), 1e-38, np.float32)
    y, expected = np.empty((3, 2), np.float32), np.full((3, 2), 5e-39, np.float32)
    library.fesetenv(flushing)
    try:
        kernels.linear_forward(y=y, x=x, w=w)
        after = (ctypes.c_uint32 * 8)()
        library.fegetenv(after)
    finally:
        library.fesetenv(before)
    assert np.array_equal(y, expected) and expected.all()
    assert after[7] & 0x8040 == 0x8040
