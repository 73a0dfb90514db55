"""Memory that training takes: each contender in a process of its own.

The process first trains a tiny model of the same kind for a few steps, so that libraries are loaded
and threads started; what it holds then is the base. From there the growth of its resident memory is
followed through building the model and its training steps, with the peak within a step.

`python -m bench.memory --heads [--out DIR]` does so for heads alone, loss with gradients: what is
held before the first step (weights, inputs), and the most within a few steps, without what building
took. Writes DIR/memory.json and DIR/memory.md.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Adaptive, Softmax, Train, zipf_counts
from bench.catalogue import ADAPTIVE, HEADS
from bench.inputs import SEED, adaptive_inputs, batches, softmax_inputs, zipf

ROOT = Path(__file__).resolve().parent.parent
STEPS = 100
HEAD_STEPS = 5
"""Of a head alone: nothing of it grows later."""

OURS = "pynlm"
EXACT, USERS, OWN = "exact", "adaptive, users' cutoffs", "adaptive, own cutoffs"
HIERARCHICAL, SAMPLED = "hierarchical, Huffman", "sampled, 1024"
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
    found = [OURS]
    if find_spec("torch") is not None:
        from bench.peers import with_torch

        found += with_torch.losses()
    return found


@dataclass(frozen=True)
class HeadMemory:
    """Resident memory of one contender with one head, in bytes above the base.

    Attributes
    ----------
    shape, cutoffs
        N, H, V, and of an adaptive softmax those of torch's users, else empty.
    head, contender, threads
        What was run.
    held
        Before the first step: weights and inputs.
    peak
        The most at any moment of the steps; `held` is in it.
    """

    shape: tuple[int, int, int]
    cutoffs: tuple[int, ...]
    head: str
    contender: str
    threads: int
    held: int
    peak: int


def measure(case: Train, contender: str, threads: int, steps: int = STEPS) -> Memory:
    """Train in a new process and follow its memory.

    Raises
    ------
    ValueError
        An unknown contender.
    RuntimeError
        The process failed; the message holds what it printed.
    """
    if contender not in contenders():
        raise ValueError(f"contender must be one of {', '.join(contenders())}, got {contender!r}")
    given = {"recipe": case.recipe, "V": case.V, "contender": contender, "threads": threads}
    return Memory(**_apart({**given, "steps": steps}))


def measure_head(
    shape: Sequence[int], cutoffs: Sequence[int], head: str, contender: str, threads: int
) -> HeadMemory:
    """Loss and gradients of a head in a new process; RuntimeError if it fails."""
    given = {"shape": list(shape), "cutoffs": list(cutoffs), "head": head}
    found = _apart({**given, "contender": contender, "threads": threads})
    return HeadMemory(
        (shape[0], shape[1], shape[2]), tuple(cutoffs), head, contender, threads, **found
    )


def _apart(request: Mapping[str, Any]) -> dict[str, Any]:
    """What `_follow` finds in a new process."""
    command = [sys.executable, "-m", "bench.memory", "--run", json.dumps(request)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _follow(request: dict[str, Any]) -> dict[str, Any]:
    """The request of `measure` or `measure_head`, in this process."""
    contender, threads = request["contender"], request["threads"]
    if "recipe" in request:
        case = Train(request["recipe"], request["V"])
        return follow(case, contender, threads, request["steps"]).to_dict()
    return follow_head(request["shape"], request["cutoffs"], request["head"], contender, threads)


def follow(case: Train, contender: str, threads: int, steps: int) -> Memory:
    """Train in this process and follow its memory."""
    make = _ours if contender == OURS else partial(_torch, contender)
    step = make(replace(case, V=_TINY_VOCABULARY), threads, _TINY_STEPS)
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
    return Memory(case.name, contender, threads, steps, grown[0], grown[1], grown[-1], peak)


def follow_head(
    shape: Sequence[int], cutoffs: Sequence[int], head: str, contender: str, threads: int
) -> dict[str, int]:
    """`held` and `peak` of a `HeadMemory`, in this process.

    Where the system cannot forget a peak (other than Linux), that of building is in it.
    """
    N, H, V = shape
    case = Adaptive(N, H, V, tuple(cutoffs), head == OWN) if cutoffs else Softmax(N, H, V)
    make = partial(_our_head, head) if contender == OURS else partial(_torch_head, contender)
    step = make(replace(case.smoke(), N=2), threads)
    for _ in range(_TINY_STEPS):
        step()
    del step
    give_back()

    base = _resident()
    step = make(case, threads)
    give_back()
    held = _resident() - base
    reset_peak()
    for _ in range(HEAD_STEPS):
        step()
    return {"held": held, "peak": max(peak_memory() - base, held)}


def _our_head(head: str, case: Softmax | Adaptive, threads: int) -> Callable[[], object]:
    """As a model has it: weights among `Parameters`, their gradients with them."""
    from pynlm import kernels
    from pynlm.heads import HeadOptions
    from pynlm.layers import Context, Parameters

    kernels.set_num_threads(threads)
    options = {
        EXACT: HeadOptions(),
        HIERARCHICAL: HeadOptions(kind="hierarchical"),
        SAMPLED: HeadOptions(kind="sampled", samples=min(1024, case.V // 2)),
    }
    if isinstance(case, Adaptive):
        options[head] = HeadOptions(kind="adaptive", cutoffs=case.cutoffs, div_value=case.div_value)
    rng = np.random.default_rng(SEED)
    specs = options[head].specs("head", case.V, case.H, bias=True, tied=False)
    parameters = Parameters(specs)
    for parameter in parameters.values():
        parameter.data[...] = rng.random(parameter.data.shape, np.float32) * 2 - 1
        parameter.data *= case.H**-0.5
    layer = options[head].make(parameters, None, counts=zipf_counts(case.V))
    h = rng.random((case.N, case.H), np.float32) * 2 - 1
    targets, numbers = zipf(rng, case.V, case.N), count()

    def step() -> None:
        parameters.zero_grad()
        _, backprop = layer.loss(h, targets, Context(train=True, seed=SEED, step=next(numbers)))
        assert backprop is not None
        backprop()

    return step


def _torch_head(contender: str, case: Softmax | Adaptive, threads: int) -> Callable[[], object]:
    from bench.peers import with_torch

    with_torch.set_threads(threads)
    # What torch computes on are copies of these.
    inputs = adaptive_inputs(case) if isinstance(case, Adaptive) else softmax_inputs(case)
    return with_torch.make(case, inputs)[contender].run


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


def give_back() -> None:
    """Return memory that nothing uses to the system, so that it counts for nobody."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


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


def head_runs() -> list[tuple[tuple[int, int, int], tuple[int, ...], str, str]]:
    """Shape, users' cutoffs, head and contender of each line of the page."""
    found: list[tuple[tuple[int, int, int], tuple[int, ...], str, str]] = []
    for shape in HEADS:
        found += [(shape, (), EXACT, contender) for contender in contenders()]
    for N, H, V, cutoffs in ADAPTIVE:
        shape = (N, H, V)
        # torch has one way of it
        found += [(shape, cutoffs, USERS, contender) for contender in contenders()[:2]]
        found.append((shape, cutoffs, OWN, OURS))
        found += [(shape, (), head, OURS) for head in (HIERARCHICAL, SAMPLED)]
    return sorted(found, key=lambda run: HEADS.index(run[0]))


def render(facts: Mapping[str, str], rows: Sequence[HeadMemory], n: int) -> str:
    """The page of `--heads`."""
    from bench import page  # it imports this module

    table = []
    for row in rows:
        cutoffs = f" ({', '.join(map(str, row.cutoffs))})" if row.head == USERS else ""
        theirs = [
            other.peak
            for other in rows
            if other.contender != OURS and (other.shape, other.head) == (row.shape, row.head)
        ]
        table.append(
            [
                ",".join(map(str, row.shape)),
                row.head + cutoffs,
                row.contender,
                page.mebibytes(row.held),
                page.mebibytes(row.peak),
                page.mebibytes(row.peak - row.held),
                page.times(min(theirs) / row.peak) if theirs and row.contender == OURS else "",
            ]
        )
    parts = [
        "Resident memory while the loss of N rows of H over V words and all gradients are "
        f"computed with {page.threads(n)}, in MiB, each contender in a process of its own, "
        "above what that held after doing the same on a tiny vocabulary. Held: before the "
        "first step, weights and inputs. Peak: the most at any moment of "
        f"{HEAD_STEPS} steps; what a step adds is gradients and working memory. The last "
        "column is the least peak of torch over pynlm's.",
        page.table(
            ["N,H,V", "head", "", "held", "peak", "a step adds", "torch's peak over pynlm's"],
            table,
        ),
    ]
    return page.small("Memory of heads", facts, parts, "memory --heads")


def measure_heads(out: Path) -> None:
    """Measure all heads and write the page to a folder."""
    from bench.peers import TORCH, available
    from bench.small_page import SmallPage

    report, rows = SmallPage("memory", available(TORCH)), []
    for shape, cutoffs, head, contender in head_runs():
        print(f"{shape}: {head}, {contender}", file=sys.stderr, flush=True)
        rows.append(measure_head(shape, cutoffs, head, contender, report.threads))
    values = {"heads": [asdict(row) for row in rows]}
    report.write(out, values, lambda facts, n: render(facts, rows, n))


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--heads", action="store_true", help="measure all heads, write their page")
    which.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder")
    given = parser.parse_args(arguments)
    if given.heads:
        measure_heads(given.out)
    else:
        print(json.dumps(_follow(given.run)))


if __name__ == "__main__":
    main()
