"""What the optimisers' updates share."""

from __future__ import annotations

from typing import Any

from .device import Array, Late, current


def launch_flat(source: str, kernel: str, *, w: Array, g: Array, scale: Late, **given: Any) -> None:
    """Launch an update of flat parameters."""
    device = current()
    device.launch(
        source,
        kernel,
        device.blocks_for(-(-w.size * w.itemsize // 16)),
        real=w.dtype,
        w=w,
        g=g,
        n=w.size,
        scale=scale,
        **given,
    )


def launch_rows(
    source: str,
    kernel: str,
    *,
    w: Array,
    rows: Array,
    drows: Array,
    absent_too: bool = True,
    scale: Late,
    **given: Any,
) -> None:
    """Launch an update of a table; without `absent_too` rows without a gradient do not change."""
    device = current()
    V, D = w.shape
    device.launch(
        source,
        kernel,
        device.blocks_for(32 * (V if absent_too else len(rows))),
        real=w.dtype,
        w=w,
        rows=rows,
        drows=drows,
        count=len(rows),
        V=V,
        D=D,
        absent_too=absent_too,
        scale=scale,
        **given,
    )
