"""Pytest plugin: records the calls of compiled kernels, for replay.cpp on another machine.

`pytest -p record --record FILE tests/kernels` writes each call of `pynlm._kernels` as its name, its
arguments before and its arrays after; the tests themselves check that what is recorded is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from pynlm import _kernels

LARGEST_CALL = 1 << 18  # bytes of all its arrays
CALLS_PER_KERNEL = 300
TOLERANCE = {"float32": 2e-5, "float64": 1e-11, "int32": 0.0}
NOT_KERNELS = {"isa_name", "available_isas", "get_num_threads", "set_num_threads", "fma_peak"}
KERNELS = [name for name in dir(_kernels) if name[0] != "_" and name not in NOT_KERNELS]
_count: Counter[str] = Counter()


def write_value(file: BinaryIO, before: Any, after: Any) -> None:
    """Write one argument or result, in the form that read_value of replay.cpp reads."""
    if isinstance(before, np.ndarray):
        sizes = " ".join(map(str, (before.ndim, *before.shape)))
        file.write(f"{before.dtype} {sizes}\n".encode() + before.tobytes() + after.tobytes())
    elif before is None:
        file.write(b"none ")
    elif isinstance(before, str):
        file.write(f"str {before} ".encode())
    else:
        kind = type(before).__name__ if isinstance(before, bool | int) else "float"
        file.write(f"{kind} {float(before)!r} ".encode())


def recorded(name: str, kernel: Callable[..., Any], file: BinaryIO) -> Callable[..., Any]:
    """`kernel`, writing its calls to `file`."""

    def call(**arguments: Any) -> Any:
        arrays = {key: a for key, a in arguments.items() if isinstance(a, np.ndarray)}
        before = arguments | {key: array.copy() for key, array in arrays.items()}
        result = kernel(**arguments)  # a call that raises is not recorded
        if (
            sum(a.nbytes for a in arrays.values()) > LARGEST_CALL
            or _count[name] == CALLS_PER_KERNEL
        ):
            return result
        _count[name] += 1
        file.write(f"\ncall {name} {len(arguments)}\n".encode())
        for key, value in before.items():
            file.write(f"{key} ".encode())
            write_value(file, value, arguments[key])
        write_value(file, result, result)
        return result

    return call


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, required=True, help="file to write the calls to")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--record").open("wb")
    config.add_cleanup(file.close)
    for dtype, tolerance in TOLERANCE.items():
        file.write(f"tolerance {dtype} {tolerance}\n".encode())
    for name in KERNELS:
        setattr(_kernels, name, recorded(name, getattr(_kernels, name), file))


def pytest_sessionfinish(session: pytest.Session) -> None:
    missing = set(KERNELS) - set(_count)
    if missing:
        raise pytest.UsageError(f"no test in the recording calls {sorted(missing)}")
