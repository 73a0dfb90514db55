"""Sum of squares for clipping by global norm, and clipping by value.

Source: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks",
arXiv:1211.5063, algorithm 1 (norm).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_BLOCK = 4096


def sum_squares(*, x: Array) -> float:
    """Sum of x**2 in double precision; see `pynlm.kernels.sum_squares`."""
    flat = x.reshape(-1).astype(np.float64)
    blocks = [float((flat[k : k + _BLOCK] ** 2).sum()) for k in range(0, flat.size, _BLOCK)]
    return float(sum(blocks))


def clip_values(*, x: Array, limit: float) -> None:
    """Put every element into [-limit, limit]; see `pynlm.kernels.clip_values`."""
    np.clip(x, -limit, limit, out=x)
