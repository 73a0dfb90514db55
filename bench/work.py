"""What a contender is: something to time, and its results for a check that it does the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Work:
    """One contender of one case.

    Attributes
    ----------
    run
        One call or one training step; timed.
    results
        Does the work and returns what must agree between contenders, by name. To be called before
        `run`, because training steps change the weights.
    """

    run: Callable[[], object]
    results: Callable[[], dict[str, NDArray[Any]]]
