"""What stands for CuPy is as strict as it: else what passes with it could fail on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pynlm.testing.device_arrays import Cupy, DeviceArray

xp = Cupy()


@pytest.mark.parametrize(
    "mixed",
    [
        lambda there, here: there + here,
        lambda there, here: here * there,
        lambda there, here: np.add(there, here),
        lambda there, here: np.exp(there, out=here),
        lambda there, here: there.__iadd__(here),
        lambda there, here: xp.concatenate([there, here]),
        lambda there, here: np.concatenate([there, there]),
        lambda there, here: here.__setitem__(slice(None), there),
        lambda there, here: there.__setitem__(slice(None), here),
        lambda there, here: there[np.array([0, 1])],
        lambda there, here: there.take(np.array([0, 1])),
        lambda there, here: np.asarray(there),
        lambda there, here: np.array(there),
        lambda there, here: np.copyto(here, there),
        lambda there, here: xp.where(there > 0, here, there),
    ],
)
def test_both_kinds_do_not_mix(mixed: Callable[..., Any]) -> None:
    there, here = xp.asarray(np.arange(3.0)), np.arange(3.0)
    with pytest.raises(TypeError):
        mixed(there, here)


def test_what_waits_is_counted() -> None:
    x = xp.asarray(np.arange(3.0))
    before = DeviceArray.waits
    y = np.add(x, 1.0, out=xp.empty_like(x))
    y[1:] += x[:2] * np.float64(2)
    y[xp.asarray(np.array([0]))] = x.sum(dtype=np.float64)
    y.set(np.arange(3.0))
    assert DeviceArray.waits == before
    for wait in (y.get, y.sum().item, lambda: float(y[0]), lambda: bool(y[0] > 0)):
        wait()
    assert len(y[y > 0]) == 2
    xp.unique(y)
    assert DeviceArray.waits == before + 6


def test_only_what_cupy_has() -> None:
    x = xp.empty((2,), np.float32)
    assert np.isnan(x.get()).all()
    for name in ("ctypes", "tobytes", "setflags"):
        with pytest.raises(AttributeError):
            getattr(x, name)
    with pytest.raises(AttributeError):
        x.flags.writeable = False
        x.flags.writeable  # noqa: B018
