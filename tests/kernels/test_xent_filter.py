"""The gradient filter: what it leaves out, beside the oracle, and its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pynlm import kernels, set_num_threads
from pynlm.testing import DTYPES, assert_close, assert_same_bits
from pynlm.testing.tolerances import kernel_tolerance

OUT = ("nll", "loss", "dh", "dw", "db")
SHAPES = {"one block": (50, 7, 301), "blocks": (300, 19, 5003), "one row": (1, 3, 40)}


def given(shape: str, dtype: str, **options: Any) -> dict[str, Any]:
    """Zipfian words, so that most are improbable everywhere."""
    N, H, V = SHAPES[shape]
    rng = np.random.default_rng(0)
    return {
        "nll": np.zeros(N, dtype), "loss": np.zeros(N, dtype), "dh": np.zeros((N, H), dtype),
        "dw": np.zeros((V, H), dtype), "db": np.zeros(V, dtype),
        "h": rng.normal(size=(N, H)).astype(dtype),
        "w": (rng.normal(size=(V, H)) / 4).astype(dtype),
        "b": (-2 * np.log(np.arange(V) + 2.7)).astype(dtype),
        "targets": rng.integers(0, V, N).astype(np.int32),
        **options,
    }  # fmt: skip


EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.01, "temperature": 0.8}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_the_oracle(
    shape: str, dtype: str, options: dict[str, float], weighted: bool
) -> None:
    N = SHAPES[shape][0]
    weights = np.random.default_rng(1).normal(size=N).astype(dtype) if weighted else None
    ours = given(shape, dtype, weights=weights, **options)
    wide = {
        name: x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == dtype else x
        for name, x in ours.items()
    }
    for bound in (2.0**-12, 2.0**-8):
        kernels.xent_gradients(**ours, gradient_filter=bound)
        kernels.xent_gradients(**wide, gradient_filter=bound, backend="reference")
        for name in OUT:
            assert_close(
                ours[name], wide[name], kernel_tolerance("xent", dtype, "sharp"), what=name,
                terms=N,
            )  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_leaves_out_what_it_says(backend: str) -> None:
    """Words under the bound throughout a block lose their part, all others keep theirs."""
    full, some, all_of_it = (given("one block", "float64") for _ in range(3))
    kernels.xent_gradients(**full, backend=backend)
    kernels.xent_gradients(**some, gradient_filter=1e-3, backend=backend)
    log_prob = np.empty((50, 301))
    kernels.xent_log_prob(log_prob=log_prob, h=full["h"], w=full["w"], b=full["b"])
    p = np.exp(log_prob)
    kept = (p >= 1e-3).any(axis=0)
    kept[full["targets"]] = True
    assert 0 < (~kept).sum() < 300
    assert not some["dw"][~kept].any() and not some["db"][~kept].any()
    tolerance = kernel_tolerance("xent", "float64", "sharp")
    assert_close(some["dw"][kept], full["dw"][kept], tolerance, what="dw", terms=50)
    assert_close(
        some["dh"], full["dh"] - p[:, ~kept] @ full["w"][~kept], tolerance, what="dh", terms=301
    )
    for name in ("nll", "loss"):
        assert_close(some[name], full[name], tolerance, what=name, terms=301)
    # A bound under every probability leaves nothing out.
    kernels.xent_gradients(**all_of_it, gradient_filter=1e-300, backend=backend)
    for name in OUT:
        assert_close(all_of_it[name], full[name], tolerance, what=name, terms=301)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype: str) -> None:
    found = []
    for threads in (1, 2, 3):
        set_num_threads(threads)
        arrays = given("blocks", dtype)
        kernels.xent_gradients(**arrays, gradient_filter=2.0**-12)
        found.append(arrays)
    for name in OUT:
        for other in found[1:]:
            assert_same_bits(other[name], found[0][name], what=name)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_no_rows_no_bias_and_errors(backend: str) -> None:
    arrays = given("one block", "float32")
    none = {**arrays, "db": None, "b": None}
    kernels.xent_gradients(**none, gradient_filter=0.5, backend=backend)
    kept = arrays["dw"].any(axis=1)
    assert set(np.flatnonzero(kept)) == set(arrays["targets"].tolist())
    for name in ("nll", "loss", "targets", "h", "dh"):
        none[name] = none[name][:0]
    kernels.xent_gradients(**none, gradient_filter=0.5, backend=backend)
    assert not arrays["dw"].any()
    for bound in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"xent_gradients: gradient_filter must be in \[0, 1"):
            kernels.xent_gradients(**arrays, gradient_filter=bound, backend=backend)
