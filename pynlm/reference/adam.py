"""Adam and AdamW, as torch.optim.Adam and torch.optim.AdamW.

Source: Kingma & Ba, "Adam", arXiv:1412.6980, algorithm 1; decoupled weight decay: Loshchilov &
Hutter, arXiv:1711.05101, algorithm 2 (PyTorch's form: the decay is multiplied by lr).

    g = scale * g;  decoupled: w *= 1 - lr * weight_decay;  else: g += weight_decay * w
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    w -= lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def adam_update(
    *,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    t: int,
) -> None:
    """One step on flat parameters; see `pynlm.kernels.adam_update`."""
    d = scale * g
    if decoupled:
        w *= 1 - lr * weight_decay
    else:
        d = d + weight_decay * w
    m[...] = beta1 * m + (1 - beta1) * d
    v[...] = beta2 * v + (1 - beta2) * d**2
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    w -= lr * m_hat / (np.sqrt(v_hat) + eps)


def adam_update_rows(
    *,
    w: Array,
    rows: Array,
    drows: Array,
    m: Array,
    v: Array,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    t: int,
) -> None:
    """The same step for a row-sparse gradient; see `pynlm.kernels.adam_update_rows`."""
    g = np.zeros_like(w)
    g[rows] = drows
    adam_update(
        w=w,
        g=g,
        m=m,
        v=v,
        scale=scale,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
        t=t,
    )
