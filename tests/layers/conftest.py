"""Finite differences of a whole recurrent layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pynlm.layers import Context, Parameters, Recurrent
from pynlm.testing import assert_close
from pynlm.testing.tolerances import finite_difference_tolerance


@pytest.fixture
def check_gradients(numeric_gradient: Callable[..., np.ndarray]) -> Callable[..., None]:
    """Compare the gradients of input, state and every parameter with central differences."""

    def check(
        layer: Recurrent,
        parameters: Parameters,
        a: dict[str, Any],
        lengths: list[int] | None,
        *,
        train: Context,
        loss_in: Context,
    ) -> None:
        def loss() -> float:
            (y, state), _ = layer(a["x"], a["state"], loss_in, lengths)
            ends = sum(float((d * s).sum()) for d, s in zip(a["dstate"], state, strict=True))
            return float((a["dy"] * y).sum()) + ends

        _, backprop = layer(a["x"], a["state"], train, lengths)
        assert backprop is not None
        dx = backprop(a["dy"], a["dstate"])
        for got, x in (
            (dx, a["x"]),
            *zip(backprop.dstart, a["state"], strict=True),
            *((p.densify(), p.data) for p in parameters.values()),
        ):
            tolerance = finite_difference_tolerance("layer")
            assert_close(got, numeric_gradient(loss, x), tolerance, what="gradient")

    return check
