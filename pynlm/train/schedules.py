"""Learning-rate schedules and early stopping.

A schedule is asked for the rate of an epoch before it begins and told the validation loss when it
ends. Its whole state is a few numbers, which the checkpoint stores.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from pynlm.train.config import ScheduleConfig


class Schedule(Protocol):
    """What the trainer needs of a schedule."""

    def rate(self, epoch: int) -> float:
        """Learning rate of the 0-based `epoch`."""

    def observe(self, valid_loss: float) -> None:
        """Take note of the validation loss (nats a token) of the epoch that just ended."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which `load_state_dict` restores the schedule exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""


class Constant:
    """The same rate throughout."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def rate(self, epoch: int) -> float:
        return self.lr

    def observe(self, valid_loss: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Step(Constant):
    """`lr` for `start_epoch` epochs, then multiplied by `decay` at each one (Zaremba et al. 2014).

    Examples
    --------
    >>> schedule = Step(1.0, decay=0.5, start_epoch=4)
    >>> [schedule.rate(epoch) for epoch in range(6)]
    [1.0, 1.0, 1.0, 1.0, 0.5, 0.25]
    """

    def __init__(self, lr: float, *, decay: float, start_epoch: int, min_lr: float = 0.0) -> None:
        super().__init__(lr)
        self.decay, self.start_epoch, self.min_lr = decay, start_epoch, min_lr

    def rate(self, epoch: int) -> float:
        lowered = self.lr * self.decay ** max(epoch + 1 - self.start_epoch, 0)
        return max(lowered, min(self.min_lr, self.lr))


class Plateau(Constant):
    """Multiplied by `decay` after `patience` epochs in a row without a better validation loss."""

    def __init__(self, lr: float, *, decay: float, patience: int = 1, min_lr: float = 0.0) -> None:
        super().__init__(lr)
        self.decay, self.patience, self.min_lr = decay, patience, min_lr
        self.best = math.inf
        self.waited = 0

    def observe(self, valid_loss: float) -> None:
        if valid_loss < self.best:
            self.best, self.waited = valid_loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.lr = max(self.lr * self.decay, min(self.min_lr, self.lr))
            self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        # JSON has no infinity; None stands for "nothing seen yet".
        best = self.best if math.isfinite(self.best) else None
        return {"lr": self.lr, "best": best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lr, self.waited = float(state["lr"]), int(state["waited"])
        self.best = math.inf if state["best"] is None else float(state["best"])


def make_schedule(config: ScheduleConfig, lr: float) -> Schedule:
    """The schedule that a recipe's `[schedule]` describes, starting from rate `lr`."""
    if config.kind == "step":
        return Step(lr, decay=config.decay, start_epoch=config.start_epoch, min_lr=config.min_lr)
    if config.kind == "plateau":
        return Plateau(lr, decay=config.decay, patience=config.patience, min_lr=config.min_lr)
    return Constant(lr)
