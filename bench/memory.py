"""Memory that training takes: each contender in a process of its own.

The process first trains a tiny model of the same kind for a few steps, so that libraries are loaded
and threads started; what it holds then is the base. From there the growth of its resident memory is
followed through building the model and its training steps, with the peak within a step.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.catalogue import FAMILIES, Adaptive, Softmax, Train
from bench.inputs import batches

ROOT = Path(__file__).resolve().parent.parent
STEPS = 100
HEAD_STEPS = 3
"""Of a head alone: nothing of it grows later."""

_TINY_STEPS, _TINY_VOCABULARY = 3, 50


@dataclass(frozen=True)
class Memory:
    """Resident memory of one contender, in bytes above the base.

    Attributes
    ----------
    case, contender, threads, steps
        What was run.
    first, second, last
        After the first, the second and the last step.
    peak
        The most at any moment.
    """

    case: str
    contender: str
    threads: int
    steps: int
    first: int
    second: int
    last: int
    peak: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def contenders() -> list[str]:
    """pynlm, and torch in each of its ways where it is installed."""
    found = ["pynlm"]
    if find_spec("torch") is not None:
        from bench.peers import with_torch

        found += with_torch.losses()
    return found


def heads() -> dict[str, Softmax | Adaptive]:
    """The cases of a head alone, loss with gradients, by group and name."""
    cases = FAMILIES["softmax"]
    return {
        f"{case.group} {case.name}": case
        for case in cases
        if isinstance(case, (Softmax, Adaptive)) and case.train
    }


def measure(
    case: Train | Softmax | Adaptive, contender: str, threads: int, steps: int = STEPS
) -> Memory:
    """Train in a new process and follow its memory.

    Raises
    ------
    RuntimeError
        The process failed; the message holds what it printed.
    """
    command = [sys.executable, "-m", "bench.memory", contender]
    if isinstance(case, Train):
        command += [case.recipe, "--vocabulary", str(case.V)]
    else:
        command.append(f"{case.group} {case.name}")
    command += ["--threads", str(threads), "--steps", str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return Memory(**json.loads(done.stdout))


def follow(case: Train | Softmax | Adaptive, contender: str, threads: int, steps: int) -> Memory:
    """Train in this process and follow its memory; of a head alone, from before its weights are."""
    make: Callable[[Any, int, int], Callable[[int], object]]
    if isinstance(case, Train):
        make = _ours if contender == "pynlm" else partial(_torch, contender)
        tiny: Any = replace(case, V=_TINY_VOCABULARY)
    else:
        make, tiny = partial(_head, contender), replace(case.smoke(), N=2)
    step = make(tiny, threads, _TINY_STEPS)
    for i in range(_TINY_STEPS):
        step(i)
    del step
    gc.collect()

    base = _resident()
    reset_peak()
    # The batches are the data, not the training; they are small beside any model.
    step = make(case, threads, steps)
    grown = []
    for i in range(steps):
        step(i)
        grown.append(_resident() - base)
    peak = max(peak_memory() - base, *grown)
    name = case.name if isinstance(case, Train) else f"{case.group} {case.name}"
    return Memory(name, contender, threads, steps, grown[0], grown[1], grown[-1], peak)


def _head(
    contender: str, case: Softmax | Adaptive, threads: int, steps: int
) -> Callable[[int], object]:
    from bench import ours

    inputs = ours.make_inputs(case)
    if contender == "pynlm":
        from pynlm import kernels

        kernels.set_num_threads(threads)
        work = ours.make(case, inputs)[ours.NAME]
    else:
        from bench.peers import with_torch

        with_torch.set_threads(threads)
        work = with_torch.make(case, inputs)[contender]
    return lambda _: work.run()


def _ours(case: Train, threads: int, steps: int) -> Callable[[int], float]:
    from bench.ours import Trainee
    from pynlm import kernels

    kernels.set_num_threads(threads)
    supply = batches(case, steps)
    trainee = Trainee(case)
    trainee.model.initialise(1)
    return lambda i: trainee.step(supply[i])


def _torch(loss: str, case: Train, threads: int, steps: int) -> Callable[[int], float]:
    from bench.peers import with_torch

    with_torch.set_threads(threads)
    supply = [with_torch.as_tensors(batch) for batch in batches(case, steps)]
    trainee = with_torch.Trainee(case.settings, case.config, with_torch.losses()[loss])
    return lambda i: trainee.step(*supply[i])


def _resident() -> int:
    """Bytes of this process in memory now."""
    try:
        # Exact, other than the counters in `status`, which the kernel updates in batches.
        found = re.search(r"^Rss:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text(), re.M)
    except OSError:
        found = None
    if found is None:
        shown = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True
        )
        return int(shown.stdout) * 1024
    return int(found[1]) * 1024


def reset_peak() -> None:
    """Forget the peak so far, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """The most bytes that this process had in memory at once."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Follow one contender and print its figures as JSON."""
    parser = argparse.ArgumentParser(description="Memory of training steps, in this process.")
    parser.add_argument("contender", choices=contenders())
    parser.add_argument("case", help="a recipe, or the group and name of a head's case")
    parser.add_argument("--vocabulary", type=int, default=Train.V)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, default=STEPS, help="at least 2")
    given = parser.parse_args()
    case = heads().get(given.case) or Train(given.case, given.vocabulary)
    print(json.dumps(follow(case, given.contender, given.threads, given.steps).to_dict()))


if __name__ == "__main__":
    main()
