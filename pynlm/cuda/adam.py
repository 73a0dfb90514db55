"""Adam and AdamW on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._updates import launch_flat, launch_rows
from .device import Array, Late, current

_SOURCE = "optim/adam.cu"


def adam_update(
    *,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    scale: Late,
    lr: Late,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    t: Late,
) -> None:
    """One step on flat parameters; see `pynlm.kernels.adam_update`."""
    rates = _rates(lr, beta1, beta2, eps, weight_decay, decoupled, t)
    launch_flat(_SOURCE, "adam_update", w=w, g=g, m=m, v=v, scale=scale, **rates)


def adam_update_rows(
    *,
    w: Array,
    rows: Array,
    drows: Array,
    m: Array,
    v: Array,
    scale: Late,
    lr: Late,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    t: Late,
) -> None:
    """The same step for a row-sparse gradient; see `pynlm.kernels.adam_update_rows`."""
    rates = _rates(lr, beta1, beta2, eps, weight_decay, decoupled, t)
    launch_rows(
        _SOURCE, "adam_update_rows", w=w, rows=rows, drows=drows, m=m, v=v, scale=scale, **rates
    )


def _rates(
    lr: Late, beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool, t: Late
) -> dict[str, Any]:
    """The members of AdamRates but the scale (csrc/optim/adam_math.h)."""
    device = current()
    rates = device.empty((3,), np.float64)
    device.launch(
        _SOURCE, "adam_rates", 1, rates=rates, lr=lr, t=t, beta1=beta1, beta2=beta2,
        weight_decay=weight_decay, decoupled=decoupled,
    )  # fmt: skip
    return {
        "rates": rates,
        "decay": 0.0 if decoupled else weight_decay,
        "beta1": beta1,
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1 - beta2,
        "eps": eps,
    }
