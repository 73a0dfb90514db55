"""Break every argument of a kernel function in turn, and read the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm import kernels

from .arguments import FUNCTIONS, Arguments, arguments
from .cases import Case

Array = npt.NDArray[Any]


def check_contract(function: str, case: Case) -> None:
    """Raise AssertionError unless every faulty array argument is refused with a full message.

    Faults: no array, another dtype, one dimension too many, one size too large, not contiguous,
    and, for what is written, read-only. The message starts with the function's name and, where the
    fault lies in one array alone, names it. (With one size too large the arrays disagree, and
    either may be named.)
    """
    given = arguments(function, case, np.float32)
    for name, value in given.items():
        if isinstance(value, np.ndarray):
            for fault, kind, spoil in _FAULTS:
                if fault == "read-only" and name not in FUNCTIONS[function].writes:
                    continue
                if fault in _SHAPE_FAULTS and _takes_any_shape(function):
                    continue
                error = _error_of(function, {**given, name: spoil(value)})
                problem = f"{function} with {name} {fault}: {error!r}"
                assert isinstance(error, kind), problem
                start = (
                    f"{function}: " if fault == "one too large" else f"{function}: {name} must be"
                )
                assert str(error).startswith(start), problem
                assert "got" in str(error), problem


def _error_of(function: str, given: Arguments) -> Exception | None:
    try:
        getattr(kernels, function)(**given)
    except Exception as error:
        return error
    return None


def _takes_any_shape(function: str) -> bool:
    return FUNCTIONS[function].kernel == "clip"


def _read_only(x: Array) -> Array:
    copy: Array = x.copy()
    copy.flags.writeable = False
    return copy


_SHAPE_FAULTS = ("of one dimension more", "one too large")
_FAULTS: list[tuple[str, type[Exception], Callable[[Array], Any]]] = [
    ("a list", TypeError, lambda x: x.tolist()),
    ("of another dtype", TypeError, lambda x: np.zeros(x.shape, np.int64)),
    ("in another byte order", TypeError, lambda x: x.astype(x.dtype.newbyteorder())),
    ("of one dimension more", ValueError, lambda x: x[None]),
    (
        "one too large",
        ValueError,
        lambda x: np.concatenate([x, x[..., -1:]], axis=-1),
    ),
    ("not contiguous", ValueError, lambda x: np.stack([x, x], axis=-1)[..., 0]),
    ("read-only", ValueError, _read_only),
]
