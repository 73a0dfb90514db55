"""Where a run stands: what the checkpoint keeps of it, and what is told after each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Progress(NamedTuple):
    """What `on_step` is told after each step; losses in nats a token."""

    step: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int


@dataclass
class Position:
    """Where a run stands; with weights, optimiser and recurrent state, all that resuming needs.

    `epoch` and `batch` count what is done, so they are the next ones' 0-based numbers.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epoch_nats: float = 0.0
    epoch_tokens: int = 0
    logged_nats: float = 0.0
    logged_tokens: int = 0
    best_nats: float | None = None
    best_epoch: int = 0
    waited: int = 0
