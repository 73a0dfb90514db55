"""Find the function of a backend that a kernel's checked arguments go to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from pynlm.arrays import Dims, describe

_MODULES = {"cpu": "pynlm._kernels", "cuda": "pynlm.cuda", "reference": "pynlm.reference"}
# Filled on first use: scoring and training never load the reference.
_found: dict[tuple[str, str | None], Callable[..., Any]] = {}


def function(name: str, backend: str | None, dims: Dims) -> Callable[..., Any]:
    """Return a backend's function `name`, importing the backend on first use.

    Parameters
    ----------
    name
        Kernel function, for example "lstm_forward".
    backend
        "cpu" (compiled), "cuda" (a GPU's) or "reference" (plain NumPy, the oracle of the tests);
        None: "cuda" for arrays of a GPU, else "cpu".
    dims
        What `check` found out about the call's arrays.

    Raises
    ------
    TypeError
        Arrays on a GPU for a backend that computes elsewhere.
    ValueError
        Unknown backend.
    RuntimeError
        "cuda" where there is no GPU, or no CuPy.
    """
    if "device" in dims:
        return partial(_call_on_device, name, backend, dims["device"])
    try:
        return _found[name, backend]
    except (KeyError, TypeError):
        return _import(name, backend)


def _import(name: str, backend: str | None) -> Callable[..., Any]:
    module = "cpu" if backend is None else backend
    if not isinstance(module, str) or module not in _MODULES:
        valid = " or ".join(f'"{key}"' for key in _MODULES)
        raise ValueError(f"{name}: backend must be {valid}, got {backend!r}")
    found: Callable[..., Any] = getattr(import_module(_MODULES[module]), name)
    _found[name, backend] = found
    return found


def _call_on_device(name: str, backend: str | None, first: str, /, **given: Any) -> Any:
    """Call a function of "cuda" unless some of its arrays are on a GPU and some are not.

    Lengths, and the rows of a variant, are copied there.
    """
    if backend not in (None, "cuda"):
        raise TypeError(f"{name}: backend {backend!r} takes NumPy arrays, got {first} on a GPU")
    for argument, value in given.items():
        if argument == "lengths":
            given[argument] = _there(value)
        elif argument == "variant" and value is not None and value.rows is not None:
            given[argument] = replace(value, rows=_there(value.rows))
        elif isinstance(value, np.ndarray):
            raise TypeError(
                f"{name}: {argument} must be on the GPU as {first} is, "
                f"got NumPy's {describe(value)}"
            )
    return function(name, "cuda", {})(**given)


def _there(x: Any) -> Any:
    """A NumPy array on the GPU, without waiting; anything else as it is."""
    if not isinstance(x, np.ndarray):
        return x
    from pynlm.cuda.device import current

    return current().bring(x)
