"""Dropout on a GPU."""

from __future__ import annotations

from .device import Array, Late, current


def dropout(
    *,
    y: Array,
    x: Array,
    p: float,
    seed: int,
    step: Late,
    site: int,
    layer: int,
    time0: int = 0,
    locked: bool = False,
) -> None:
    """y = x * mask / (1 - p); see `pynlm.kernels.dropout`."""
    device = current()
    T, B, D = x.shape
    device.launch(
        "dropout/dropout.cu",
        "dropout",
        device.blocks_for(T * B * -(-D // 4)),
        real=x.dtype,
        y=y,
        x=x,
        T=T,
        B=B,
        D=D,
        scale=1 / (1 - p),
        threshold=threshold(p),
        seed=seed,
        step=step,
        purpose=site << 16 | layer,
        time0=time0,
        locked=locked,
    )


def threshold(p: float) -> int:
    """What a word of Philox is below with probability p: philox_threshold of common/philox.h."""
    return min(int(p * 4294967296.0 + 0.5), 0xFFFFFFFF)
