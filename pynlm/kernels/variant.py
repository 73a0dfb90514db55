"""What a recurrent kernel does besides its cell's plain equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pynlm.arrays import (
    INT32,
    UINT32_MAX,
    Array,
    check,
    check_integer,
    check_number,
    check_together,
    on_device,
)

from .queued import is_late


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Settings of one call of a recurrent kernel: zoneout, clipping, and more for the LSTM.

    With h' and c' the new states of the plain cell::

        c' = min(max(f * c_{t-1} + i * g, -clip_c), clip_c);  h' likewise
        h_t = d * h_{t-1} + (1 - d) * h';  c_t likewise

    The LSTM's h' = o * tanh(c') sees c' before zoneout, as in Krueger et al.

    Parameters
    ----------
    zoneout_h, zoneout_c : float
        Probability in [0, 1) that a unit keeps its state. zoneout_c: LSTM only.
    clip_h : float
        Bound of the new state's magnitude (after projection, before zoneout); 0: none.
    clip_c : float
        Bound of the cell state; 0: none. LSTM only.
    coupled : bool
        Three gates i, g, o and f = 1 - i (CIFG). LSTM only.
    norm_state : bool
        With layer norm, what becomes the new cell state: True the normalised c', False c' itself,
        of which only the output sees the normalised. LSTM only.
    sample : bool
        True (training): d is 1 with that probability and else 0, drawn for each step, row and unit.
        False (evaluation): d is the probability itself.
    seed, step, layer, time0 : int
        Key and counter of the random numbers, as in `dropout`; so is `step` on a GPU.
    rows : int32 [B] or None
        Number of each row in the caller's batch, if rows were sorted.

    Notes
    -----
    Sources: Krueger et al., arXiv:1606.01305, eq. 5-7; Sak, Senior & Beaufays, arXiv:1402.1128
    (clipping); Greff et al., arXiv:1503.04069 (CIFG).
    """

    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    clip_h: float = 0.0
    clip_c: float = 0.0
    coupled: bool = False
    norm_state: bool = False
    sample: bool = False
    seed: int = 0
    step: Any = 0
    layer: int = 0
    time0: int = 0
    rows: Array | None = None


def check_variant(
    variant: Variant | None,
    mask_h: Array | None,
    h_in: Array | None,
    d: dict[str, Any],
    *,
    func: str,
    writes: bool,
    width: str = "H",
) -> None:
    """Raise unless `variant`, `mask_h` and `h_in` fit the call whose dimensions `d` holds.

    `width` is the symbol of the state's width.

    Raises
    ------
    TypeError, ValueError
        Naming the function and the argument or field.
    """
    if check_together(func=func, h_in=h_in, mask_h=mask_h):
        check(mask_h, f"B {width}", d, func=func, name="mask_h")
        check(h_in, f"T B {width}", d, func=func, name="h_in", out=writes)
    if variant is None:
        return
    if not isinstance(variant, Variant):
        raise TypeError(f"{func}: variant must be a Variant or None, got {type(variant).__name__}")

    def number(name: str, **bounds: Any) -> None:
        check_number(getattr(variant, name), func=func, name=f"variant.{name}", low=0.0, **bounds)

    def integer(name: str, high: int) -> None:
        value = getattr(variant, name)
        check_integer(value, func=func, name=f"variant.{name}", low=0, high=high)

    for name in ("sample", "coupled", "norm_state"):
        if not isinstance(getattr(variant, name), (bool, np.bool_)):
            value = getattr(variant, name)
            raise TypeError(f"{func}: variant.{name} must be True or False, got {value!r}")
    number("zoneout_h", high=1.0, high_open=True)
    number("zoneout_c", high=1.0, high_open=True)
    number("clip_h")
    number("clip_c")
    mixes = variant.zoneout_h > 0 and not variant.sample
    if variant.clip_h > 0 and mixes and func.endswith("_backward"):
        raise ValueError(f"{func}: variant.sample must be True: y does not say what was clipped")
    cell = func.partition("_")[0]
    for name in ("zoneout_c", "clip_c", "coupled", "norm_state"):
        if cell != "lstm" and getattr(variant, name) != 0:
            raise ValueError(
                f"{func}: variant.{name} is for the LSTM, a {cell.upper()} has no cell state"
            )
    integer("seed", UINT32_MAX)
    if not is_late(variant.step, d, func=func, name="variant.step"):
        integer("step", UINT32_MAX)
    integer("layer", 0xFFFF)
    integer("time0", UINT32_MAX - d["T"])
    if variant.rows is not None:
        rows, batch = variant.rows, d["B"]
        check(rows, "B", d, func=func, name="variant.rows", dtype=INT32)
        if batch and not on_device(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < batch:
            raise ValueError(f"{func}: variant.rows must be in [0, B={batch}), got {rows.tolist()}")


def check_norm(
    gates: int,
    d: dict[str, Any],
    *,
    func: str,
    ln_gates: Array | None,
    norm: Array | None,
    rstd: Array | None,
    saves: bool,
    norms: int = 2,
) -> None:
    """Raise unless the arrays of layer norm fit a call of a cell with so many gates.

    `saves`: the call needs those that a backward pass reads; `norms`: rows of `rstd`.

    Raises
    ------
    TypeError, ValueError
        Naming the function and the argument.
    """
    if ln_gates is not None:
        check(ln_gates, f"2 {gates}H", d, func=func, name="ln_gates")
    if check_goes_with(
        func, ln_gates if saves else None, "ln_gates", "nothing is saved", norm=norm, rstd=rstd
    ):
        check(norm, f"2 T B {gates}H", d, func=func, name="norm", out=True)
        check(rstd, f"{norms} T B", d, func=func, name="rstd", out=True)


def check_goes_with(
    func: str, other: Array | None, name: str, why: str = "", /, **given: Array | None
) -> bool:
    """Raise ValueError unless the given arrays are there exactly if `other` is; return that."""
    there = other is not None
    for own, array in given.items():
        if (array is not None) != there:
            reason = (
                f"{name} is one" if there else f"{name} is None" + (f" or {why}" if why else "")
            )
            raise ValueError(
                f"{func}: {own} must be {'an array' if there else 'None'}, because {reason}"
            )
    return there
