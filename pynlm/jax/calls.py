"""How a computation of JAX calls a kernel: XLA's foreign function interface, or Python."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np

from pynlm import _kernels, kernels
from pynlm.xla import chosen_way

Setting = bool | float


@cache
def calls_by() -> str:
    """ "ffi" where this build and jaxlib have XLA's foreign function interface, else "callback".

    The environment variable `PYNLM_JAX` chooses one of them, before the first call.

    Raises
    ------
    ValueError
        `PYNLM_JAX` is neither, or is "ffi" and this build has no such calls.

    Examples
    --------
    >>> calls_by() in ("ffi", "callback")
    True
    """
    if chosen_way() == "callback":
        return "callback"
    try:
        for kernel, handler in _kernels.xla_handlers().items():
            jax.ffi.register_ffi_target(_target(kernel), handler, platform="cpu")
    except RuntimeError as error:  # a jaxlib older than the headers that pynlm was built with
        if os.environ.get("PYNLM_JAX"):
            raise
        what = "XLA refuses this build's calls, and kernels are called through Python"
        warnings.warn(f"pynlm.jax: {what}: {error}", RuntimeWarning, stacklevel=2)
        return "callback"
    return "ffi"


def call_kernel(
    kernel: str,
    results: Mapping[str, jax.ShapeDtypeStruct],
    inputs: Mapping[str, jax.Array | None],
    settings: Mapping[str, Setting],
) -> dict[str, jax.Array]:
    """Call a kernel of `pynlm.kernels` within a computation of JAX.

    Parameters
    ----------
    kernel
        For example "lstm_forward".
    results
        What it writes. A name that is among the inputs, too, is an array that it changes in place.
    inputs
        What it reads; None: not there. `key`, uint32 [2], is the seed and step of `Variant`, and
        `rows` its rows.
    settings
        Fields of `Variant`, and `relu`.

    Raises
    ------
    NotImplementedError
        The call is differentiated: kernels are the derivatives of one another, not of themselves.
    """
    given = {name: x for name, x in inputs.items() if x is not None}

    @jax.custom_jvp
    def call(given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return _call(kernel, results, given, settings)

    @call.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        cell = kernel.partition("_")[0]
        raise NotImplementedError(f"{cell}: second derivatives are not implemented")

    return dict(call(given))


def _call(
    kernel: str,
    results: Mapping[str, jax.ShapeDtypeStruct],
    given: dict[str, jax.Array],
    settings: Mapping[str, Setting],
) -> dict[str, jax.Array]:
    shapes = tuple(results.values())
    if calls_by() == "ffi":
        reads, writes = list(given), list(results)
        shared = {reads.index(name): i for i, name in enumerate(writes) if name in given}
        run = jax.ffi.ffi_call(
            _target(kernel), shapes, vmap_method="sequential", input_output_aliases=shared
        )
        typed = {
            name: value if isinstance(value, bool) else np.float64(value)
            for name, value in settings.items()
        }
        found = run(*given.values(), inputs=",".join(reads), results=",".join(writes), **typed)
    else:
        # Equal calls are equal objects, so that what was compiled for one serves the other.
        kinds = tuple((name, s.shape, np.dtype(s.dtype)) for name, s in results.items())
        host = _Host(kernel, kinds, tuple(given), tuple(settings.items()))
        found = jax.pure_callback(host, shapes, *given.values(), vmap_method="sequential")
    return dict(zip(results, found, strict=True))


def _target(kernel: str) -> str:
    return f"pynlm_{kernel}"


_WRITEABLE = ("h_in", "m", "norm_c", "rstd")


@dataclass(frozen=True)
class _Host:
    """A kernel as a function of arrays, for `jax.pure_callback`."""

    kernel: str
    results: tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...]
    inputs: tuple[str, ...]
    settings: tuple[tuple[str, Setting], ...]

    def __call__(self, *arrays: Any) -> Sequence[np.ndarray]:
        given = {name: np.ascontiguousarray(x) for name, x in zip(self.inputs, arrays, strict=True)}
        # JAX's arrays are read-only, and kernels want to write to some that they only read.
        given |= {name: given[name].copy() for name in _WRITEABLE if name in given}
        out = {
            name: given[name].copy() if name in given else np.empty(shape, dtype)
            for name, shape, dtype in self.results
        }
        settings = dict(self.settings)
        more: dict[str, Any] = {}
        if "relu" in settings:
            more["nonlinearity"] = "relu" if settings.pop("relu") else "tanh"
        key = given.pop("key", None)
        if key is not None:
            settings |= {"sample": True, "seed": int(key[0]), "step": int(key[1])}
        variant = kernels.Variant(rows=given.pop("rows", None), **settings)  # type: ignore[arg-type]
        if self.kernel == "gru_forward":
            more |= {"gates": None, "hn": None, "b_hn": None}
        elif self.kernel == "gru_backward":
            more["db_hn"] = None
        getattr(kernels, self.kernel)(**{**more, **given, **out}, variant=variant)
        return tuple(out.values())
