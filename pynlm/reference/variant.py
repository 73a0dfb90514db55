"""Zoneout, recurrent dropout and layer norm, for all recurrent cells.

Sources: Krueger et al., "Zoneout", arXiv:1606.01305, eq. 5-7; Gal & Ghahramani, "A theoretically
grounded application of dropout in recurrent neural networks", arXiv:1512.05287, eq. 7; Ba, Kiros &
Hinton, "Layer normalization", arXiv:1607.06450, eq. 20-21.

    h_t = d * h_{t-1} + (1 - d) * h'      d drawn in training, its probability in evaluation
    h_{t-1} * mask_h enters W_hh          one mask for all steps
    N(v) = (v - mean(v)) / sqrt(var(v) + 1e-5)    over a row
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


def clip_h(variant: Variant | None, h: Array) -> Array:
    """The new state, held to its bound."""
    bound = 0.0 if variant is None else variant.clip_h
    return np.clip(h, -bound, bound) if bound > 0 else h


def unclip_h(variant: Variant | None, y: Array, dh: Array) -> Array:
    """Gradient of the new state before clipping; on the bound y was clipped (or dh is 0)."""
    bound = 0.0 if variant is None else variant.clip_h
    return np.where(np.abs(y) >= bound, 0, dh) if bound > 0 else dh


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


def normalise(v: Array) -> tuple[Array, Array]:
    """N(v) of each row, and 1 / sqrt(var + 1e-5) [n]."""
    centred = v - v.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return centred * rstd, rstd[:, 0]


def normalise_backward(d: Array, normalised: Array, rstd: Array) -> Array:
    """Gradient of v from that of N(v)."""
    along = (d * normalised).mean(axis=1, keepdims=True)
    gradient: Array = (d - d.mean(axis=1, keepdims=True) - normalised * along) * rstd[:, None]
    return gradient


class StepNorm:
    """Layer norm of both products in the steps of one call; without `ln_gates` it does nothing."""

    def __init__(self, ln_gates: Array | None, norm: Array | None, rstd: Array | None) -> None:
        self.ln_gates, self.norm, self.rstd = ln_gates, norm, rstd

    def forward(self, which: int, t: int, v: Array) -> Array:
        """What takes the place of v, the product with x (which = 0) or h (1) at step t."""
        if self.ln_gates is None:
            return v
        normalised, rstd = normalise(v)
        if self.norm is not None and self.rstd is not None:
            self.norm[which, t, : len(v)], self.rstd[which, t, : len(v)] = normalised, rstd
        return normalised * self.ln_gates[which]

    def backward(self, which: int, t: int, d: Array, dln_gates: Array | None) -> Array:
        """The gradient of v; adds to the gain's."""
        if self.ln_gates is None or self.norm is None or self.rstd is None or dln_gates is None:
            return d
        n = len(d)
        normalised = self.norm[which, t, :n].copy()
        dln_gates[which] += (d * normalised).sum(axis=0)
        dv = normalise_backward(d * self.ln_gates[which], normalised, self.rstd[which, t, :n])
        self.norm[which, t, :n], self.norm[which, t, n:] = dv, 0
        return dv


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
