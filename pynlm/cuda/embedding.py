"""Rows of a table by id on a GPU, and the gradient of the table."""

from __future__ import annotations

from .device import Array, current
from .sort import sort_ids

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
        D=D,
    )


def embedding_backward(*, rows: Array, drows: Array, ids: Array, dy: Array) -> int:
    """Coalesced gradient rows; see `pynlm.kernels.embedding_backward`. Waits for the count."""
    if not ids.size:
        return 0
    return int(_sums(drows, rows, ids, dy, bits=31)[0])


def embedding_backward_dense(*, dw: Array, ids: Array, dy: Array) -> None:
    """The table's gradient dw [V, D], whole, without waiting for the device.

    Row v is the sum of dy[n] over the n with ids[n] = v in their order, 0 where there is none.
    """
    dw.fill(0)
    if ids.size:
        _sums(dw, None, ids, dy, bits=(len(dw) - 1).bit_length())


def _sums(dw: Array, rows: Array | None, ids: Array, dy: Array, *, bits: int) -> Array:
    """Sum over equal ids; returns int32 [1], the number of distinct ones."""
    device = current()
    N, D = dy.shape
    found = sort_ids(ids, bits)
    threads = min(256, 1 << max(0, -(-D // 4) - 1).bit_length())  # of up to 4 numbers each
    device.launch(
        _SOURCE,
        "embedding_sums",
        device.blocks_for(threads * N),
        real=dy.dtype,
        dw=dw,
        rows=rows,
        dy=dy,
        **found._asdict(),
        D=D,
        threads=threads,
    )
    return found.count
