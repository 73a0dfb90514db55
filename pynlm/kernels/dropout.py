"""Dropout with a recomputed mask: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import UINT32_MAX, Array, check, check_integer, check_number

from ._backend import function
from .queued import is_late

_P_MAX = 1 - 2.0**-32


def dropout(
    *,
    y: Array,
    x: Array,
    p: float,
    seed: int,
    step: int,
    site: int,
    layer: int,
    time0: int = 0,
    locked: bool = False,
    backend: str | None = None,
) -> None:
    """y = x * mask / (1 - p), each element of the mask 0 with probability p and else 1.

    The mask depends on (seed, step, site, layer, time0 + t, row, unit) alone, by Philox 4x32-10, so
    it is the same on every backend and for any number of threads. The map is its own adjoint: the
    backward pass is the same call on dy.

    Parameters
    ----------
    y : [T, B, D], output
        May be `x` itself.
    x : [T, B, D]
    p : float
        Probability of dropping, 0 to 1 - 2**-32.
    seed, step : int
        0 to 2**32 - 1. On a GPU `step` may also be float64 [1] there.
    site : int
        Purpose, 1 to 65535; the numbers are in `pynlm.reference.philox`.
    layer : int
        0 to 65535.
    time0 : int
        Absolute time of t = 0; time0 + T is below 2**32.
    locked : bool
        One mask for all time steps.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array or has another dtype.
    ValueError
        Shape, layout or range.

    Notes
    -----
    Source: Srivastava et al. 2014; locked: Gal & Ghahramani, arXiv:1512.05287, §4.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.ones((1, 1, 6))
    >>> dropout(y=y, x=y, p=0.5, seed=1, step=0, site=2, layer=0)
    >>> y[0, 0]
    array([0., 2., 2., 0., 0., 2.])
    """
    f = "dropout"
    d: dict[str, Any] = {}
    check(x, "T B D", d, func=f, name="x")
    check(y, "T B D", d, func=f, name="y", out=True)
    check_number(p, func=f, name="p", low=0.0, high=1.0, high_open=True)
    if p > _P_MAX:  # the threshold of the 32-bit words would round to 2**32
        raise ValueError(f"{f}: p must be at most 1 - 2**-32, got {float(p)!r}")
    check_integer(seed, func=f, name="seed", low=0, high=UINT32_MAX)
    if not is_late(step, d, func=f, name="step"):
        check_integer(step, func=f, name="step", low=0, high=UINT32_MAX)
    check_integer(site, func=f, name="site", low=1, high=0xFFFF)
    check_integer(layer, func=f, name="layer", low=0, high=0xFFFF)
    check_integer(time0, func=f, name="time0", low=0, high=UINT32_MAX - d["T"])
    function(f, backend, d)(
        y=y,
        x=x,
        p=p,
        seed=seed,
        step=step,
        site=site,
        layer=layer,
        time0=time0,
        locked=locked,
    )
