"""How XLA can call the kernels, as far as it is known without JAX."""

from __future__ import annotations

import os

from pynlm import _kernels

WAYS = ("ffi", "callback")


def chosen_way() -> str:
    """What the environment variable `PYNLM_JAX` and this build say; see `pynlm.jax.calls_by`.

    Returns
    -------
    str
        "ffi" (XLA's foreign function interface) or "callback" (through Python).

    Raises
    ------
    ValueError
        `PYNLM_JAX` is neither, or is "ffi" and this build has no such calls.

    Examples
    --------
    >>> chosen_way() in WAYS
    True
    """
    wanted = os.environ.get("PYNLM_JAX") or None
    if wanted not in (None, *WAYS):
        raise ValueError(f"PYNLM_JAX must be ffi or callback, got {wanted!r}")
    handlers = _kernels.xla_handlers()
    if wanted == "ffi" and not handlers:
        raise ValueError(
            "PYNLM_JAX must be callback in this build of pynlm, which was made without XLA's "
            "headers, got 'ffi'"
        )
    return wanted or ("ffi" if handlers else "callback")
