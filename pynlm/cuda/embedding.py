"""Rows of a table by id on a GPU, and the gradient of the table."""

from __future__ import annotations

from ._sorted import sort_ids, sum_sorted
from .device import Array, current

_SOURCE = "embedding/embedding.cu"


def embedding_forward(*, y: Array, ids: Array, w: Array) -> None:
    """y[n] = w[ids[n]]; see `pynlm.kernels.embedding_forward`."""
    device = current()
    N, D = y.shape
    device.launch(
        _SOURCE,
        "embedding_forward",
        device.blocks_for(32 * N),
        real=y.dtype,
        y=y,
        ids=ids,
        w=w,
        N=N,
        V=len(w),
        D=D,
    )


def embedding_backward(*, rows: Array, drows: Array, ids: Array, dy: Array) -> int:
    """Coalesced gradient rows; see `pynlm.kernels.embedding_backward`. Waits for the count."""
    if not ids.size:
        return 0
    found = sort_ids(ids)
    sum_sorted(found, out=drows, x=dy, ids=rows)
    return int(found.count[0])


def embedding_backward_dense(*, dw: Array, ids: Array, dy: Array) -> None:
    """The table's gradient dw [V, D], whole, without waiting for the device.

    Row v is the sum of dy[n] over the n with ids[n] = v in their order, 0 where there is none.
    """
    dw.fill(0)
    if ids.size:
        sum_sorted(sort_ids(ids, len(dw)), out=dw, x=dy)
