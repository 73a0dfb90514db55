"""Softmax cross-entropy of a linear map on a GPU: a chunk of tokens between cuBLAS's products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ._columns import sum_parts
from .device import Array, Device, current

_SOURCE = "softmax/xent.cu"
_PREDICT = "softmax/xent_predict.cu"
_BLOCK = 256
_WARP_WORDS = 1024  # rows of up to so many words are one warp's
_PART_WORDS = 4096  # that a block has of a row, where blocks divide few rows
_FEW_ROWS = 16
_SPAN = 128  # rows that a block sums, and that a filter looks at
_FACTS = 5

_JOIN_BYTES = (3 * _BLOCK + 3) * 8  # of shared memory, where a block shares a row
_MOST_SEARCHED = 200  # more tokens than that are found by sorting
_CANDIDATES = 1024

# Logits exist for a chunk of tokens. Each chunk reads w twice, and reads and writes dw: of fewer
# than about H tokens that is more than what is done to the logits themselves. H tokens' logits take
# as much memory as dw.
_CHUNK_BYTES = 128 << 20


class Logits(NamedTuple):
    """Logits of some tokens, before bias and temperature.

    Attributes
    ----------
    rows : slice
        The tokens.
    z : [n, width]
        The logits are z[:, :V]. Rows begin at multiples of 128 bytes, for cuBLAS and packets.
    """

    rows: slice
    z: Array


def chunks(device: Device, h: Array, w: Array, *, multiple: int = 1) -> Iterator[Logits]:
    """The logits of all tokens, chunk by chunk in the same memory; chunks of `multiple` tokens."""
    (N, H), V = h.shape, len(w)
    width = -(-V // 32) * 32
    most = max(_CHUNK_BYTES // (width * h.dtype.itemsize), H, multiple)
    size = min(-(-N // -(-N // most)), N) if N else 0
    size = min(-(-size // multiple) * multiple, N)
    z = device.empty((size, width), h.dtype)
    for first in range(0, N, size or 1):
        rows = slice(first, min(first + size, N))
        some = z[: rows.stop - first]
        device.matmul(some[:, :V], h[rows], w.T)
        yield Logits(rows, some)


def xent_forward(
    *,
    nll: Array,
    loss: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
) -> None:
    """Loss of every row; see `pynlm.kernels.xent_forward`."""
    device = current()
    for rows, z in chunks(device, h, w):
        _losses(
            device, rows, z, None, nll=nll, loss=loss, b=b, targets=targets, weights=None, V=len(w),
            temperature=temperature, label_smoothing=label_smoothing, z_loss=z_loss,
            gradient_filter=0.0,
        )  # fmt: skip


def xent_gradients(
    *,
    nll: Array,
    loss: Array | None = None,
    dh: Array,
    dw: Array,
    db: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    weights: Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    gradient_filter: float = 0.0,
) -> None:
    """Loss and gradients; see `pynlm.kernels.xent_gradients`.

    The gradient filter gives the contract's results, and saves no time here.
    """
    device = current()
    N, V = len(h), len(w)
    if not N:
        for gradient in (dw, db):
            if gradient is not None:
                gradient.fill(0)
        return
    span = span_of(N)
    for rows, z in chunks(device, h, w, multiple=span):
        count, start = len(z), rows.start
        facts = device.empty((_FACTS, count), h.dtype)
        _losses(
            device, rows, z, facts, nll=nll, loss=loss, b=b, targets=targets, weights=weights, V=V,
            temperature=temperature, label_smoothing=label_smoothing, z_loss=z_loss,
            gradient_filter=gradient_filter,
        )  # fmt: skip
        sums = launch_tiles(
            device, _SOURCE, "xent_dlogits", z, V, span, kinds=_FACTS, more=4 * _BLOCK,
            summed=db is not None, b=b, facts=facts, targets=targets[rows],
            inverse=inverse(temperature, h.dtype), filtered=gradient_filter > 0,
        )  # fmt: skip
        dz = z[:, :V]
        device.matmul(dh[rows], dz, w)
        device.matmul(dw, dz.T, h[rows], accumulate=start > 0)
        if sums is not None:
            sum_parts(db, sums, accumulate=start > 0)


def xent_log_prob(
    *, log_prob: Array, h: Array, w: Array, b: Array | None = None, temperature: float = 1.0
) -> None:
    """Log-probabilities of every row; see `pynlm.kernels.xent_log_prob`."""
    device = current()
    device.matmul(log_prob, h, w.T)
    N, V = log_prob.shape
    if 0 < N <= _FEW_ROWS and V > _PART_WORDS:
        _log_prob_of_few_rows(device, log_prob, b, inverse(temperature, h.dtype))
        return
    launch_rows(
        device, "xent_log_prob", h.dtype, N, V, z=log_prob, b=b,
        inverse=inverse(temperature, h.dtype),
    )  # fmt: skip


def _log_prob_of_few_rows(device: Device, z: Array, b: Array | None, inverse: float) -> None:
    """In place of the logits: as many blocks as the card has use for, where rows alone are few."""
    N, V = z.shape
    blocks = (-(-V // _PART_WORDS), N)
    parts = device.empty((N, blocks[0], 2), np.float64)
    given = {"z": z, "parts": parts, "b": b, "V": V, "words": _PART_WORDS, "inverse": inverse}
    for kernel, shared in (("xent_part_sums", _JOIN_BYTES), ("xent_part_log_prob", 0)):
        device.launch(
            _SOURCE, kernel, blocks, real=z.dtype, shared=shared, defines=("ROW_WARPS=8",), **given
        )


def xent_entropy(
    *, entropy: Array, h: Array, w: Array, b: Array | None = None, temperature: float = 1.0
) -> None:
    """Entropy of every row; see `pynlm.kernels.xent_entropy`."""
    device = current()
    for rows, z in chunks(device, h, w):
        launch_rows(
            device, "xent_entropy", h.dtype, len(z), len(w), entropy=entropy[rows], z=z, b=b,
            width=z.shape[1], inverse=inverse(temperature, h.dtype),
        )  # fmt: skip


def xent_top_k(
    *,
    log_prob: Array,
    ids: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    temperature: float = 1.0,
) -> None:
    """The most probable tokens of every row; see `pynlm.kernels.xent_top_k`."""
    device = current()
    real, K, V = h.dtype, ids.shape[1], len(w)
    for rows, z in chunks(device, h, w):
        if K > _MOST_SEARCHED:
            _top_by_sorting(device, log_prob[rows], ids[rows], z, b, V, temperature)
            continue
        shared = (
            _JOIN_BYTES + 4 * (2 + _BLOCK + _CANDIDATES) + real.itemsize * (_BLOCK + _CANDIDATES)
        )
        device.launch(
            _PREDICT,
            "xent_top_k",
            device.blocks_for(len(z), 1),
            real=real,
            shared=shared,
            log_prob=log_prob[rows],
            ids=ids[rows],
            z=z,
            b=b,
            N=len(z),
            V=V,
            width=z.shape[1],
            K=K,
            inverse=inverse(temperature, real),
        )


def xent_sample(
    *,
    ids: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    rows: Array | None = None,
    seed: int,
    step: int,
    time: int = 0,
    layer: int = 0,
    temperature: float = 1.0,
) -> None:
    """One token drawn for every row; see `pynlm.kernels.xent_sample`."""
    device = current()
    for some, z in chunks(device, h, w):
        device.launch(
            _PREDICT,
            "xent_sample",
            device.blocks_for(len(z), 1),
            real=h.dtype,
            shared=8 * (_BLOCK + 3),
            ids=ids[some],
            z=z,
            b=b,
            rows=None if rows is None else rows[some],
            first=some.start,
            N=len(z),
            V=len(w),
            width=z.shape[1],
            seed=seed,
            step=step,
            time=time,
            layer=layer,
            inverse=inverse(temperature, h.dtype),
        )


def _top_by_sorting(
    device: Device,
    log_prob: Array,
    ids: Array,
    z: Array,
    b: Array | None,
    V: int,
    temperature: float,
) -> None:
    """Of many tokens: the whole row sorted."""
    xp, real = device.xp, z.dtype
    x = z[:, :V] if b is None else z[:, :V] + b
    x = xp.ascontiguousarray(x * inverse(temperature, real), real)
    best = xp.argsort(-x, axis=1, kind="stable")[:, : ids.shape[1]]
    launch_rows(device, "xent_log_prob", real, len(x), V, z=x, b=None, inverse=1.0)
    log_prob[...] = xp.take_along_axis(x, best, axis=1)
    ids[...] = best


def _losses(
    device: Device,
    rows: slice,
    z: Array,
    facts: Array | None,
    *,
    nll: Array,
    loss: Array | None,
    b: Array | None,
    targets: Array,
    weights: Array | None,
    V: int,
    temperature: float,
    **options: Any,
) -> None:
    launch_rows(
        device, "xent_losses", z.dtype, len(z), V, nll=nll[rows],
        loss=None if loss is None else loss[rows], facts=facts, z=z, b=b, targets=targets[rows],
        weights=None if weights is None else weights[rows], width=z.shape[1],
        inverse=inverse(temperature, z.dtype), temperature=temperature, **options,
    )  # fmt: skip


def launch_rows(
    device: Device,
    kernel: str,
    real: Any,
    N: int,
    V: int,
    *,
    source: str = _SOURCE,
    shared: int = 0,
    **given: Any,
) -> None:
    """Launch a kernel whose rows are a warp's or, of more than 1024 words, a block's."""
    if not N:
        return
    warps = 1 if V <= _WARP_WORDS else 8
    blocks = min(-(-N * warps // 8), 8 * device.processors)
    device.launch(
        source, kernel, blocks, real=real, defines=(f"ROW_WARPS={warps}",),
        shared=shared + (_JOIN_BYTES if warps > 1 else 0), N=N, V=V, **given,
    )  # fmt: skip


def span_of(N: int) -> int:
    """Rows of a tile: all tiles but the last have as many, at most 128."""
    return -(-N // -(-N // _SPAN))


def launch_tiles(
    device: Device,
    source: str,
    kernel: str,
    z: Array,
    V: int,
    span: int,
    *,
    kinds: int,
    more: int = 0,
    summed: bool,
    **given: Any,
) -> Array | None:
    """Make gradients in place of logits z; return their sums over spans of rows [spans, V].

    `kinds` numbers of each row, and `more` bytes, are in shared memory. `summed` False: None.
    """
    N, width = z.shape
    spans, item = -(-N // span), z.dtype.itemsize
    words = 32 * 16 // item
    sums = device.empty((spans, V), z.dtype) if summed else None
    device.launch(
        source, kernel, (-(-V // words), spans), real=z.dtype,
        shared=(8 * words + kinds * _SPAN) * item + 4 * _SPAN + more,
        z=z, sums=sums, N=N, V=V, width=width, rows=span, **given,
    )  # fmt: skip
    return sums


def inverse(temperature: float, dtype: Any) -> float:
    """1 / temperature; finite, so that a logit of 0 stays 0."""
    return min(1 / temperature, float(np.finfo(dtype).max))
