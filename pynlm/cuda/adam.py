"""Adam and AdamW on a GPU."""

from __future__ import annotations

import math

from ._updates import Scale, launch_flat, launch_rows
from .device import Array

_SOURCE = "optim/adam.cu"


def adam_update(
    *,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    scale: Scale,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    t: int,
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
    scale: Scale,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    t: int,
) -> None:
    """The same step for a row-sparse gradient; see `pynlm.kernels.adam_update_rows`."""
    rates = _rates(lr, beta1, beta2, eps, weight_decay, decoupled, t)
    launch_rows(
        _SOURCE, "adam_update_rows", w=w, rows=rows, drows=drows, m=m, v=v, scale=scale, **rates
    )


def _rates(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool, t: int
) -> dict[str, float]:
    """The members of AdamRates but the scale (csrc/optim/adam_math.h), in double precision."""
    return {
        "keep": 1 - lr * weight_decay if decoupled else 1.0,
        "decay": 0.0 if decoupled else weight_decay,
        "beta1": beta1,
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1 - beta2,
        "step": lr / (1 - beta1**t),
        "correction": 1 / math.sqrt(1 - beta2**t),
        "eps": eps,
    }
