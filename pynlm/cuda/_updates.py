"""What the optimisers' updates share."""

from __future__ import annotations

from typing import Any

from .device import Array, current

Scale = float | Array
"""What the gradient is multiplied by: a number, or float64 [1] on the device (`clip_scale`)."""


def launch_flat(
    source: str, kernel: str, *, w: Array, g: Array, scale: Scale, **given: Any
) -> None:
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
        **_split(scale),
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
    scale: Scale,
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
        **_split(scale),
        **given,
    )


def _split(scale: Scale) -> dict[str, Any]:
    """The kernel's parameters for a number or an array."""
    if hasattr(scale, "dtype") and scale.ndim:
        return {"scale": 1.0, "scale_at": scale}
    return {"scale": scale, "scale_at": None}
