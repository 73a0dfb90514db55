"""Initial weights, reproducible from a seed and a parameter's name alone.

Each parameter has its own Philox stream, keyed by seed and name, so that one more parameter does
not change the others. Numbers are derived from the raw 64-bit output here, because NumPy promises
stable streams for its bit generators only, not for its distributions. They are drawn in double
precision: a float32 model has the rounded weights of the float64 model.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.layers.context import UINT32_MAX, Site

Array = npt.NDArray[Any]

# Drawn so many at a time: no large temporary array beside a large table.
_CHUNK = 1 << 18


class Stream:
    """The random numbers of one parameter.

    Parameters
    ----------
    seed
        In [0, 2^32).
    name
        The parameter's name.

    Raises
    ------
    ValueError
        Seed outside its range.

    Examples
    --------
    >>> w = np.empty((3, 5), np.float32)
    >>> Stream(1, "head.weight").uniform(w, 0.1)
    >>> bool((abs(w) <= 0.1).all())
    True
    """

    def __init__(self, seed: int, name: str) -> None:
        if not 0 <= seed <= UINT32_MAX:
            raise ValueError(f"initialise: seed must be in [0, 2^32), got {seed}")
        word = Site.INIT << 32 | zlib.crc32(name.encode())
        self._bits = np.random.Philox(key=np.array([seed, word], np.uint64))

    def _unit(self, n: int) -> npt.NDArray[np.float64]:
        """n doubles in [0, 1)."""
        raw: npt.NDArray[np.uint64] = self._bits.random_raw(n)
        unit: npt.NDArray[np.float64] = (raw >> np.uint64(11)) * 2.0**-53
        return unit

    def uniform(self, w: Array, bound: float) -> None:
        """Fill `w` (C-contiguous) from U(-bound, bound)."""
        flat = w.reshape(-1)
        for i in range(0, flat.size, _CHUNK):
            part = flat[i : i + _CHUNK]
            part[...] = (2.0 * self._unit(part.size) - 1.0) * bound

    def normal(self, w: Array, scale: float = 1.0) -> None:
        """Fill `w` (C-contiguous) from N(0, scale^2), by Box and Muller's transform."""
        flat = w.reshape(-1)
        for i in range(0, flat.size, _CHUNK):
            part = flat[i : i + _CHUNK]
            half = (part.size + 1) // 2
            radius = np.sqrt(-2.0 * np.log(1.0 - self._unit(half))) * scale
            angle = 2.0 * math.pi * self._unit(half)
            pair = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
            part[...] = pair[: part.size]

    def orthogonal(self, w: Array) -> None:
        """Fill `w` [m, n] with orthonormal rows or columns, whichever are fewer.

        Source: Saxe et al., arXiv:1312.6120; uniform over such matrices by the sign of R's
        diagonal (Mezzadri, arXiv:math-ph/0609050). The last bits depend on NumPy's LAPACK.
        """
        rows, columns = w.shape
        a = np.empty((max(rows, columns), min(rows, columns)))
        self.normal(a)
        q, r = np.linalg.qr(a)
        q *= np.where(np.diagonal(r) < 0.0, -1.0, 1.0)
        w[...] = q if rows >= columns else q.T


def xavier_bound(fan_in: int, fan_out: int) -> float:
    """Bound of the uniform distribution. Source: Glorot and Bengio, AISTATS 2010, equation 16."""
    return math.sqrt(6.0 / (fan_in + fan_out))


def he_bound(fan_in: int) -> float:
    """Bound of the uniform distribution with variance 2/fan_in. Source: He et al., 1502.01852."""
    return math.sqrt(6.0 / fan_in)


def fan_bound(fan_in: int) -> float:
    """Bound that PyTorch's recurrent (fan_in = H) and linear layers start from."""
    return 1.0 / math.sqrt(fan_in)
