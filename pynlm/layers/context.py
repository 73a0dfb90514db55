"""What a forward pass is told: train or eval, and where its random numbers stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pynlm.arrays import on_device

UINT32_MAX = 0xFFFFFFFF


class Site:
    """The purposes of random numbers: the upper half of Philox's last counter word.

    The map stands in `csrc/common/philox.h` and `pynlm/reference/philox.py`.
    """

    EMBEDDING = 1
    INPUT = 2
    BETWEEN = 3
    OUTPUT = 4
    RECURRENT = 5
    WEIGHT = 6
    SAMPLE = 7
    INIT = 8
    SHUFFLE = 9
    ZONEOUT_H = 10
    ZONEOUT_C = 11
    CANDIDATES = 12


@dataclass(frozen=True)
class Context:
    """Train or eval, seed and step: all that a layer knows besides its inputs and parameters.

    Dropout masks are a function of (seed, step, site, layer, absolute time, row, unit), so a
    forward pass repeated with an equal context gives the same bits, and the backward pass
    recomputes its masks from it.

    Parameters
    ----------
    train
        True: apply dropout and return backprops. False: no dropout, backprops are None.
    seed, step
        The generator's key, each in [0, 2^32). In a step that a CUDA graph is made of, `step` is
        float64 [1] on the GPU, which each run of the graph reads anew.
    time0
        Absolute time of the first step of the input.
    backend
        Passed through to the kernels; None: by the arrays' type.
    drawn
        What the head's `draw` gave for this step, where its weights are; None: the head draws.

    Raises
    ------
    ValueError
        A number outside its range.
    """

    train: bool
    seed: int = 0
    step: Any = 0
    time0: int = 0
    backend: str | None = None
    drawn: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("seed", "step", "time0"):
            value = getattr(self, name)
            if name == "step" and on_device(value):
                continue
            if not 0 <= value <= UINT32_MAX:
                raise ValueError(f"Context: {name} must be in [0, 2^32), got {value}")


SCORING = Context(train=False)
"""The context of calls that take none: no dropout, the backend by the arrays' type."""
