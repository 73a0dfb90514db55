"""Find the function of a backend that a kernel's checked arguments go to."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

_MODULES = {"cpu": "pynlm._kernels", "cuda": "pynlm.cuda", "reference": "pynlm.reference"}
# Filled on first use: scoring and training never load the reference.
_found: dict[tuple[str, str], Callable[..., Any]] = {}


def function(name: str, backend: str) -> Callable[..., Any]:
    """Return `backend`'s function `name`, importing the backend on first use.

    Parameters
    ----------
    name
        Kernel function, for example "lstm_forward".
    backend
        "cpu" (compiled), "cuda" (a GPU's) or "reference" (plain NumPy, the oracle of the tests).

    Raises
    ------
    ValueError
        Unknown backend.
    """
    try:
        return _found[name, backend]
    except (KeyError, TypeError):
        pass
    if not isinstance(backend, str) or backend not in _MODULES:
        valid = " or ".join(f'"{key}"' for key in _MODULES)
        raise ValueError(f"{name}: backend must be {valid}, got {backend!r}")
    found: Callable[..., Any] = getattr(import_module(_MODULES[backend]), name)
    _found[name, backend] = found
    return found
