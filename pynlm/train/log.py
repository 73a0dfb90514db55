"""What a run says: `log.jsonl` for programs, a progress bar or plain lines for people."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynlm.train.config import Recipe
    from pynlm.train.data import Data

BAR_SECONDS = 0.1
"""Between two drawings of the bar."""

PLAIN_SECONDS = 10.0
"""How often a run without a terminal prints a line within an epoch."""


class RunLog:
    """`log.jsonl`: one JSON object a line, appended as things happen.

    Parameters
    ----------
    path : the file.
    keep : bytes of it that the checkpoint knows; what was logged after it is cut off.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115 - open for the whole run
        size = self._file.seek(0, os.SEEK_END)
        if size > keep:
            self._file.truncate(keep)
            self._file.seek(keep)

    def write(self, event: str, **values: Any) -> None:
        """Append one event; numbers that JSON lacks become null.

        Raises
        ------
        OSError : the disk refused, with the file named.
        """
        values = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        line = json.dumps({"event": event, **values}) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(error.errno or errno.EIO, f"cannot write {self.path}: {reason}") from None

    def sync(self) -> int:
        """Force everything to the disk; the number of bytes that are there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file; a line that the disk already refused is not tried again."""
        try:
            self._file.close()
        except OSError:
            # `write` has raised for the same bytes.
            return


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a `log.jsonl`; a last line cut off by a kill is left out."""
    events = []
    for line in path.read_bytes().split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


class Reporter:
    """Progress of a run: a live bar on a terminal, plain lines elsewhere, nothing when quiet.

    Parameters
    ----------
    quiet : say nothing.
    total : tokens of all epochs.
    done : tokens trained before this process (after `--resume`).
    exact : whether the losses of steps are likelihoods; else they have no perplexity.
    """

    def __init__(self, *, quiet: bool, total: int, done: int = 0, exact: bool = True) -> None:
        self.quiet, self._exact = quiet, exact
        self._total, self._done, self._first = total, done, done
        self._began = self._shown = time.monotonic()
        self._bar: Any = None
        if not quiet and sys.stdout.isatty():
            self._bar, self._task = _bar(total, done)

    def say(self, text: str) -> None:
        """Print one line (above the bar, where there is one)."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(text, flush=True)

    def step(self, *, tokens: int, label: str, loss: float, rate: float) -> None:
        """After a step: all tokens so far, where in the run, loss (nats a token), tokens/s."""
        self._done = tokens
        if self.quiet:
            return
        now = time.monotonic()
        # Drawing at every step would cost more than a small step itself.
        if now - self._shown < (BAR_SECONDS if self._bar is not None else PLAIN_SECONDS):
            return
        self._shown = now
        ppl = f"ppl {perplexity(loss):,.1f}  " if self._exact else ""
        numbers = f"loss {loss:.3f}  {ppl}{rate:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(
                self._task, completed=tokens, label=label, numbers=numbers, refresh=True
            )
        else:
            elapsed = now - self._began
            left = elapsed * (self._total - tokens) / max(tokens - self._first, 1)
            share = 100.0 * tokens / max(self._total, 1)
            print(f"{label}  {share:3.0f} %  {numbers}  {duration(left)} left", flush=True)

    def close(self) -> None:
        """Take the bar off the screen; `say` goes on as plain lines."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, refresh=True)
            self._bar.stop()
            self._bar = None


def perplexity(nats: float) -> float:
    """`exp(nats)`, infinite instead of an overflow."""
    return math.exp(nats) if nats < 700.0 else math.inf


def perplexity_of(nats: float, likelihood: bool) -> float | None:
    """The perplexity, None where the loss is no likelihood."""
    return perplexity(nats) if likelihood else None


def shown(nats: float, likelihood: bool) -> str:
    """The perplexity, or the loss itself, by name, where that is no likelihood."""
    return f"{perplexity(nats):8.2f}" if likelihood else f"(loss {nats:.4f})"


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, second = divmod(round(max(seconds, 0.0)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def _bar(total: int, done: int) -> tuple[Any, Any]:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.fields[label]}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        # The trainer's own thread draws: a drawing thread would compete with the kernels' team.
        auto_refresh=False,
    )
    task = bar.add_task("train", total=total, completed=done, label="", numbers="")
    bar.start()
    return bar, task


def heading(recipe: Recipe, data: Data, parameters: int, vocabulary: int) -> str:
    """What is trained, on how much text."""
    sizes = " / ".join(f"{facts['tokens']:,}" for facts in data.digests.values())
    layers = "-".join(map(str, recipe.model.hidden_sizes))
    return (
        f"recipe {recipe.name}, seed {recipe.train.seed}: {recipe.model.cell} {layers}, "
        f"{parameters:,} parameters; {sizes} tokens "
        f"({' / '.join(data.digests)}), vocabulary {vocabulary:,}"
    )
