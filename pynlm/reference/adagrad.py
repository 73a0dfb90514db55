"""Adagrad, as torch.optim.Adagrad with lr_decay 0.

Source: Duchi, Hazan & Singer, "Adaptive subgradient methods", JMLR 12, 2011, fig. 1, diagonal form.

    d = scale * g + weight_decay * w
    v += d**2
    w -= lr * d / (sqrt(v) + eps)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def adagrad_update(
    *, w: Array, g: Array, v: Array, scale: float, lr: float, eps: float, weight_decay: float
) -> None:
    """One step on flat parameters; see `pynlm.kernels.adagrad_update`."""
    d = scale * g + weight_decay * w
    v += d**2
    w -= lr * d / (np.sqrt(v) + eps)


def adagrad_update_rows(
    *,
    w: Array,
    rows: Array,
    drows: Array,
    v: Array,
    scale: float,
    lr: float,
    eps: float,
    weight_decay: float,
) -> None:
    """The same step for a row-sparse gradient; see `pynlm.kernels.adagrad_update_rows`."""
    g = np.zeros_like(w)
    g[rows] = drows
    adagrad_update(w=w, g=g, v=v, scale=scale, lr=lr, eps=eps, weight_decay=weight_decay)
