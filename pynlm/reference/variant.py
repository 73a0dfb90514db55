"""Zoneout and recurrent dropout, for all recurrent cells.

Sources: Krueger et al., "Zoneout", arXiv:1606.01305, eq. 5-7; Gal & Ghahramani, "A theoretically
grounded application of dropout in recurrent neural networks", arXiv:1512.05287, eq. 7.

    h_t = d * h_{t-1} + (1 - d) * h'      d drawn in training, its probability in evaluation
    h_{t-1} * mask_h enters W_hh          one mask for all steps
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .philox import ZONEOUT_C, ZONEOUT_H, words

if TYPE_CHECKING:
    from pynlm.kernels.variant import Variant

Array = npt.NDArray[Any]


def keeps_h(variant: Variant | None, t: int, n: int, like: Array) -> Array | float:
    """d of the hidden state: [n, H], or one number for all."""
    return 0.0 if variant is None else _keeps(variant, variant.zoneout_h, ZONEOUT_H, t, n, like)


def keeps_c(variant: Variant | None, t: int, n: int, like: Array) -> Array | float:
    """d of the cell state: [n, H], or one number for all."""
    return 0.0 if variant is None else _keeps(variant, variant.zoneout_c, ZONEOUT_C, t, n, like)


def mix(d: Array | float, previous: Array, fresh: Array) -> Array:
    """d * previous + (1 - d) * fresh."""
    return fresh if isinstance(d, float) and d == 0 else d * previous + (1 - d) * fresh


def parts(d: Array | float, gradient: Array) -> tuple[Array | float, Array]:
    """d * gradient and (1 - d) * gradient: what flows past the cell, and through it."""
    if isinstance(d, float) and d == 0:
        return 0.0, gradient
    return d * gradient, (1 - d) * gradient


def enters(mask_h: Array | None, h: Array) -> Array:
    """What of the first rows' states [n, H] enters W_hh."""
    return h if mask_h is None else h * mask_h[: len(h)]


def _keeps(variant: Variant, p: float, site: int, t: int, n: int, like: Array) -> Array | float:
    if p == 0 or not variant.sample:
        return p
    rows = np.arange(n) if variant.rows is None else variant.rows[:n]
    drawn = words(
        [variant.time0 + t], rows, like.shape[1], site=site, layer=variant.layer,
        seed=variant.seed, step=variant.step,
    )  # fmt: skip
    # round(p 2^32); a p within 2^-33 of 1 would need one more bit
    threshold = min(int(p * 4294967296.0 + 0.5), 0xFFFFFFFF)
    kept: Array = (drawn[0] < threshold).astype(like.dtype)
    return kept
