"""Training losses over sampled tokens on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._columns import sum_parts
from ._sorted import Sorted, sort_ids, sum_sorted
from .device import Array, Device, current
from .embedding import embedding_forward
from .xent import Logits, chunks, inverse, launch_rows, launch_tiles, span_of

_SOURCE = "softmax/candidates.cu"
_FACTS = 2


class _Samples(NamedTuple):
    """What all tokens share: the samples' rows of w, what logits start from, tokens' hits."""

    w: Array
    start: Array
    hits: Array


def candidates_forward(
    *,
    loss: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    samples: Array,
    counts: Array | None = None,
    log_expected: Array | None = None,
    target_log_expected: Array | None = None,
    objective: str = "softmax",
    remove_hits: bool = True,
    temperature: float = 1.0,
) -> None:
    """Loss of every row; see `pynlm.kernels.candidates_forward`."""
    if not len(h):
        return
    device = current()
    logistic = objective == "logistic"
    shared = _begin(
        device, w, b, targets, samples, counts, log_expected, logistic, remove_hits, temperature
    )
    for some in chunks(device, h, shared.w):
        _losses(
            device, some, shared, loss=loss, facts=None, dt=None, h=h, w=w, b=b, targets=targets,
            weights=None, counts=counts, target_log_expected=target_log_expected,
            temperature=temperature, logistic=logistic,
        )  # fmt: skip


def candidates_gradients(
    *,
    loss: Array,
    dh: Array,
    rows: Array,
    drows: Array,
    db: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    weights: Array | None = None,
    samples: Array,
    counts: Array | None = None,
    log_expected: Array | None = None,
    target_log_expected: Array | None = None,
    objective: str = "softmax",
    remove_hits: bool = True,
    temperature: float = 1.0,
) -> int:
    """Loss and gradients; see `pynlm.kernels.candidates_gradients`. Waits for the count."""
    if not len(h):
        return 0
    found = _gradients(
        loss, dh, rows, drows, db, h=h, w=w, b=b, targets=targets, weights=weights,
        samples=samples, counts=counts, log_expected=log_expected,
        target_log_expected=target_log_expected, logistic=objective == "logistic",
        remove_hits=remove_hits, temperature=temperature,
    )  # fmt: skip
    return int(found.count[0])  # the only wait, with everything else under way


def candidates_gradients_dense(
    *, loss: Array, dh: Array, dw: Array, db: Array | None = None, h: Array, w: Array,
    objective: str = "softmax", **given: Any,
) -> None:  # fmt: skip
    """`candidates_gradients` with the whole gradients dw [V, H] and db [V], without waiting."""
    dw.fill(0)
    if db is not None:
        db.fill(0)
    if len(h):
        _gradients(loss, dh, None, dw, db, h=h, w=w, logistic=objective == "logistic", **given)


def _gradients(
    loss: Array,
    dh: Array,
    rows: Array | None,
    dw: Array,
    db: Array | None,
    *,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    weights: Array | None = None,
    samples: Array,
    counts: Array | None = None,
    log_expected: Array | None = None,
    target_log_expected: Array | None = None,
    logistic: bool,
    remove_hits: bool = True,
    temperature: float = 1.0,
) -> Sorted:
    """Into rows of dw and db, or those of w and b if `rows` is None; the ids, sorted."""
    (N, H), K = h.shape, len(samples)
    device, real = current(), h.dtype
    shared = _begin(
        device, w, b, targets, samples, counts, log_expected, logistic, remove_hits, temperature
    )
    both = device.empty((K + N,), np.int32)
    both[:K], both[K:] = samples, targets
    found = sort_ids(both, len(w))
    # What samples and targets add to rows of dw and to numbers of db, before equal ids are joined.
    parts, bias_parts = device.empty((K + N, H), real), device.empty((K + N, 1), real)
    dt = bias_parts.reshape(-1)[K:]
    span = span_of(N)
    for some in chunks(device, h, shared.w, multiple=span):
        tokens, z = some
        facts = device.empty((_FACTS, len(z)), real)
        _losses(
            device, some, shared, loss=loss, facts=facts, dt=dt, h=h, w=w, b=b, targets=targets,
            weights=weights, counts=counts, target_log_expected=target_log_expected,
            temperature=temperature, logistic=logistic,
        )  # fmt: skip
        sums = launch_tiles(
            device, _SOURCE, "candidates_dlogits", z, K, span, kinds=_FACTS, summed=db is not None,
            start=shared.start, facts=facts, hits=shared.hits[tokens], counts=counts,
            inverse=inverse(temperature, real), logistic=logistic,
        )  # fmt: skip
        dx, later = z[:, :K], tokens.start > 0
        device.matmul(dh[tokens], dx, shared.w)
        device.matmul(parts[:K], dx.T, h[tokens], accumulate=later)
        if sums is not None:
            sum_parts(bias_parts.reshape(-1)[:K], sums, accumulate=later)
    device.launch(
        _SOURCE, "candidates_targets", device.blocks_for(32 * N), real=real,
        dh=dh, y=parts[K:], dt=dt, h=h, w=w, targets=targets, N=N, H=H, words=len(w),
    )  # fmt: skip
    sum_sorted(found, out=dw, x=parts, ids=rows)
    if db is not None:
        sum_sorted(found, out=db.reshape(-1, 1), x=bias_parts, ids=rows)
    return found


def _begin(
    device: Device,
    w: Array,
    b: Array | None,
    targets: Array,
    samples: Array,
    counts: Array | None,
    log_expected: Array | None,
    logistic: bool,
    remove_hits: bool,
    temperature: float,
) -> _Samples:
    (N,), (K,), real = targets.shape, samples.shape, w.dtype
    made = _Samples(
        device.empty((K, w.shape[1]), real), device.empty((K,), real), device.empty((N,), np.int32)
    )
    embedding_forward(y=made.w, ids=samples, w=w)
    device.launch(
        _SOURCE, "candidates_begin", device.blocks_for(N + K), real=real,
        start=made.start, hits=made.hits, b=b, samples=samples, targets=targets, counts=counts,
        log_expected=log_expected, N=N, K=K, words=len(w), temperature=temperature,
        logistic=logistic, remove_hits=remove_hits,
    )  # fmt: skip
    return made


def _losses(
    device: Device,
    some: Logits,
    shared: _Samples,
    *,
    loss: Array,
    dt: Array | None,
    h: Array,
    targets: Array,
    weights: Array | None,
    target_log_expected: Array | None,
    temperature: float,
    **given: Any,
) -> None:
    rows, z = some
    of_rows: dict[str, Any] = {
        "loss": loss,
        "dt": dt,
        "h": h,
        "targets": targets,
        "hits": shared.hits,
        "weights": weights,
        "target_log_expected": target_log_expected,
    }
    given |= {name: None if x is None else x[rows] for name, x in of_rows.items()}
    launch_rows(
        device, "candidates_losses", z.dtype, len(z), len(shared.w), source=_SOURCE, z=z,
        start=shared.start, width=z.shape[1], H=h.shape[1], words=len(given["w"]),
        inverse=inverse(temperature, z.dtype), temperature=temperature, **given,
    )  # fmt: skip
