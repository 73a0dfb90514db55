"""SIGKILL at any moment: the run stays loadable, and resumed it gives the uninterrupted bits.

`kill_loop.py` beside this file does the same with whole processes, for as long as one likes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pynlm.train import Trainer, load_model

Make = Callable[..., Trainer]

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SYSCALLS = ("fsync", "replace", "symlink", "rename", "mkdir", "unlink", "rmdir")
"""What changes the run folder; between any two of them a kill may come."""

SHORT = {"train.epochs": 1, "train.bptt": 12}


def in_child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_before(call: int) -> None:
    """From now on, kill this process just before the `call`-th change of the folder."""
    count = 0

    def patch(name: str) -> None:
        real = getattr(os, name)

        def fatal(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(os, name, fatal)

    for name in SYSCALLS:
        patch(name)


def test_killed_before_every_change_of_the_folder(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    whole = make("whole", overrides=SHORT).run()
    expected = weights_of(tmp_path / "whole")

    def stop(progress: Any) -> None:
        if progress.step == whole.steps - 1:
            os.kill(os.getpid(), signal.SIGINT)

    # One step, the epoch's checkpoint, validation and the best checkpoint are left to do.
    make("base", overrides=SHORT, on_step=stop).run()
    run, call = tmp_path / "run", 1
    while True:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(tmp_path / "base", run, symlinks=True)

        def work(call: int = call) -> None:
            trainer = make("run", overrides=SHORT, resume=True)
            die_before(call)
            trainer.run()

        code = in_child(work)
        if code == 0:  # fewer changes than `call`
            break
        assert code == -signal.SIGKILL
        for which in ("last", "best"):
            load_model(run, which)
        make("run", overrides=SHORT, resume=True).run()
        for which in ("last", "best"):
            assert weights_of(run, which) == expected, f"killed before change {call}"
        call += 1
    assert call > 30


def test_killed_at_random_moments(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    overrides = {"train.checkpoint_seconds": 0.01}
    began = time.perf_counter()
    make("whole", overrides=overrides).run()
    whole = time.perf_counter() - began

    def train() -> None:
        make("run", overrides=overrides, resume=True).run()

    rng = random.Random(5)
    for _ in range(8):
        child = os.fork()
        if not child:
            try:
                train()
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.02, 0.25) * whole)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (tmp_path / "run" / "last").exists():
            load_model(tmp_path / "run", "last")
    train()
    for which in ("last", "best"):
        assert weights_of(tmp_path / "run", which) == weights_of(tmp_path / "whole", which)


def test_whole_processes_are_killed() -> None:
    script = Path(__file__).with_name("kill_loop.py")
    command = [sys.executable, str(script), "--kills", "3", "--epochs", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical" in done.stdout


def test_two_trainers_do_not_share_a_folder(make: Make) -> None:
    def second() -> None:
        with pytest.raises(ValueError, match=r"another process is training in"):
            make(resume=True).run()

    tried: list[int] = []

    def on_step(progress: Any) -> None:
        if progress.step == 20:
            tried.append(in_child(second))

    make(on_step=on_step).run()
    assert tried == [0]
