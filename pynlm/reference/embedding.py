"""Rows of a table by id, and the row-sparse gradient of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def embedding_forward(*, y: Array, ids: Array, w: Array) -> None:
    """y[n] = w[ids[n]]; see `pynlm.kernels.embedding_forward`."""
    y[...] = w[ids]


def embedding_backward(*, rows: Array, drows: Array, ids: Array, dy: Array) -> int:
    """Coalesced gradient rows; see `pynlm.kernels.embedding_backward`."""
    unique, place = np.unique(ids, return_inverse=True)
    n = len(unique)
    rows[:n] = unique
    drows[:n] = 0
    np.add.at(drows, place.reshape(-1), dy)
    return n
