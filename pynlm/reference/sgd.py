"""Stochastic gradient descent with momentum, as torch.optim.SGD (dampening 0).

Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013,
in PyTorch's form: the learning rate multiplies the buffer, not the gradient inside it.

    d = scale * g + weight_decay * w
    buffer = momentum * buffer + d
    w -= lr * (d + momentum * buffer  if nesterov else  buffer)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def sgd_update(
    *,
    w: Array,
    g: Array,
    momentum_buffer: Array | None = None,
    scale: float,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """One step on flat parameters; see `pynlm.kernels.sgd_update`."""
    d = scale * g + weight_decay * w
    if momentum_buffer is not None:
        momentum_buffer[...] = momentum * momentum_buffer + d
        d = d + momentum * momentum_buffer if nesterov else momentum_buffer
    w -= lr * d


def sgd_update_rows(
    *,
    w: Array,
    rows: Array,
    drows: Array,
    momentum_buffer: Array | None = None,
    scale: float,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """The same step for a row-sparse gradient; see `pynlm.kernels.sgd_update_rows`."""
    g = np.zeros_like(w)
    g[rows] = drows
    sgd_update(
        w=w,
        g=g,
        momentum_buffer=momentum_buffer,
        scale=scale,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
    )
