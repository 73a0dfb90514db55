"""Inverted dropout with a mask computed from its position, plain or locked over time.

Source: Srivastava et al., "Dropout", JMLR 15, 2014; locked: Gal & Ghahramani, "A theoretically
grounded application of dropout in recurrent neural networks", arXiv:1512.05287, §4.
Generator: `philox.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.reference.philox import ALL_TIMES, words

Array = npt.NDArray[Any]


def dropout(
    *,
    y: Array,
    x: Array,
    p: float,
    seed: int,
    step: int,
    site: int,
    layer: int,
    time0: int = 0,
    locked: bool = False,
) -> None:
    """y = x * mask / (1 - p); see `pynlm.kernels.dropout`."""
    T, B, D = x.shape
    times = np.array([ALL_TIMES]) if locked else np.arange(time0, time0 + T)
    drawn = words(times, np.arange(B), D, site=site, layer=layer, seed=seed, step=step)
    keep = drawn >= np.uint32(np.floor(p * 2.0**32 + 0.5))
    y[...] = np.where(keep, x * x.dtype.type(1 / (1 - p)), 0)
