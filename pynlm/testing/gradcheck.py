"""Gradients against central differences in float64.

`check_vjp` compares, for each input, <v, f(x + s u) - f(x - s u)> / 2 s with <vjp(v), u> for one
random direction u and one random upstream gradient v, which costs two forward passes an input at
any size (the idea of jax.test_util.check_vjp). `check_elementwise` does it for every single element
of a tiny case, so that an error says which element is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm import kernels

from .arguments import Arguments, arguments, beyond
from .cases import CASES, XENT_OPTIONS, Case
from .checks import assert_close
from .tolerances import FINITE_DIFFERENCE_STEP, finite_difference_tolerance

Array = npt.NDArray[Any]
Named = dict[str, Array]


@dataclass(frozen=True)
class Map:
    """A kernel as a differentiable map.

    Parameters
    ----------
    inputs
        Point at which to differentiate.
    forward
        Inputs -> outputs.
    vjp
        Inputs and upstream gradients (named like the outputs) -> gradients (named like the inputs).
    upstream
        Upstream gradients to use instead of random ones.
    """

    inputs: Named
    forward: Callable[[Named], Named]
    vjp: Callable[[Named, Named], Named]
    upstream: Named | None = None


def gradient_cases(kernel: str) -> list[Case]:
    """The kernel's cases that suit finite differences: all but the large ones.

    (There some relu unit always crosses its kink within the step.)
    """
    return [case for case in CASES[kernel] if "threads" not in case.name]


def check_vjp(kernel: str, case: Case, backend: str = "reference") -> None:
    """Raise AssertionError unless the backend's gradients match finite differences along a line.

    One random direction for each input, in float64.
    """
    mapping = MAPS[kernel](case, backend, np.float64)
    rng = case.rng("vjp")
    upstream = random_upstream(mapping, rng)
    gradients = mapping.vjp(mapping.inputs, upstream)
    assert gradients.keys() == mapping.inputs.keys()
    for name, x in mapping.inputs.items():
        direction = rng.normal(size=x.shape)
        slope = _slope(mapping, upstream, name, direction)
        expected = float((gradients[name] * direction).sum())
        size = float(np.abs(gradients[name] * direction).sum())
        # Appended `size` sets the scale: the terms of the inner product may cancel.
        assert_close(
            np.array([slope, size]),
            np.array([expected, size]),
            finite_difference_tolerance(case.name),
            what=f"finite differences [got] and backward [expected] for {name}, [slope, scale]",
            kernel=kernel,
            case=case,
            backend=backend,
        )


def check_elementwise(kernel: str, case: Case, backend: str = "reference") -> None:
    """Like `check_vjp`, for every element of every input; for tiny cases."""
    assert case.is_tiny, f"{case} is too large to be differentiated element by element"
    mapping = MAPS[kernel](case, backend, np.float64)
    upstream = random_upstream(mapping, case.rng("elementwise"))
    gradients = mapping.vjp(mapping.inputs, upstream)
    for name, x in mapping.inputs.items():
        slopes = np.empty_like(x)
        for index in np.ndindex(x.shape):
            direction = np.zeros_like(x)
            direction[index] = 1
            slopes[index] = _slope(mapping, upstream, name, direction)
        assert_close(
            slopes,
            gradients[name],
            finite_difference_tolerance(case.name),
            what=f"finite differences [got] and backward [expected] for {name}",
            kernel=kernel,
            case=case,
            backend=backend,
        )


def random_upstream(mapping: Map, rng: np.random.Generator) -> Named:
    """Upstream gradients for every output."""
    if mapping.upstream is not None:
        return mapping.upstream
    outputs = mapping.forward(mapping.inputs)
    return {
        name: rng.normal(size=value.shape).astype(value.dtype) for name, value in outputs.items()
    }


def _blank(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.full(shape, np.nan, dtype)


def _slope(mapping: Map, upstream: Named, name: str, direction: Array) -> float:
    """Central difference of <upstream, outputs> along `direction` of one input."""
    ends = []
    for sign in (1, -1):
        moved = dict(mapping.inputs)
        moved[name] = moved[name] + sign * FINITE_DIFFERENCE_STEP * direction
        ends.append(mapping.forward(moved))
    total = sum(float((upstream[k] * (ends[0][k] - ends[1][k])).sum()) for k in upstream)
    return total / (2 * FINITE_DIFFERENCE_STEP)


def _split(
    function: str, case: Case, dtype: Any, names: tuple[str, ...]
) -> tuple[Named, Arguments]:
    """The forward function's arguments as (differentiable inputs, everything else)."""
    made = arguments(function, case, dtype)
    inputs = {name: made.pop(name) for name in names if made.get(name) is not None}
    return inputs, made


def _recurrent_map(
    kernel: str,
    case: Case,
    backend: str,
    dtype: Any,
    inputs_of: tuple[str, ...],
    states: tuple[str, ...],
    saved: tuple[str, ...],
) -> Map:
    inputs, fixed = _split(f"{kernel}_forward", case, dtype, inputs_of)
    forward_function = getattr(kernels, f"{kernel}_forward")
    backward_function = getattr(kernels, f"{kernel}_backward")
    results = ("y", *(f"{state}_last" for state in states))
    options = {
        name: fixed[name]
        for name in ("lengths", "nonlinearity", "mask_h", "variant")
        if name in fixed
    }
    of_variants = ("h_in", "m", "norm", "norm_c", "rstd")
    saved = (*saved, *(name for name in of_variants if name in fixed))
    # a GRU without this bias is another one
    no_bias = kernel == "gru" and "b_hn" not in inputs

    def all_results(given: Named) -> Arguments:
        out = {name: _blank(fixed[name].shape, dtype) for name in (*results, *saved)}
        extra: Arguments = {"b_hn": None} if no_bias else {}
        forward_function(**out, **given, **extra, **options, backend=backend)
        return out

    def forward(given: Named) -> Named:
        out = all_results(given)
        return {name: out[name] for name in results}

    def vjp(given: Named, upstream: Named) -> Named:
        out = all_results(given)
        gradients = {f"d{name}": _blank(value.shape, dtype) for name, value in given.items()}
        extra: Arguments = {"dpre": _blank(out["y"].shape, dtype)} if kernel == "rnn" else {}
        if no_bias:
            extra["db_hn"] = None
        dy = np.where(beyond(case)[:, :, None], np.nan, upstream["y"])  # must be ignored there
        backward_function(
            **gradients,
            **extra,
            **{name: out[name] for name in ("y", *saved)},
            **{name: value for name, value in given.items() if not name.startswith("b")},
            dy=dy,
            **{f"d{name}": upstream[name] for name in results[1:]},
            **options,
            backend=backend,
        )
        return {name: gradients[f"d{name}"] for name in given}

    return Map(inputs, forward, vjp)


def _lstm(case: Case, backend: str, dtype: Any) -> Map:
    weights = ("w_ih", "w_hh", "b", "peephole", "w_hr", "ln_gates", "ln_cell")
    names = ("x", "h0", "c0", *weights)
    return _recurrent_map("lstm", case, backend, dtype, names, ("h", "c"), ("gates", "c"))


def _gru(case: Case, backend: str, dtype: Any) -> Map:
    names = ("x", "h0", "w_ih", "w_hh", "b", "b_hn", "ln_gates")
    return _recurrent_map("gru", case, backend, dtype, names, ("h",), ("gates", "hn"))


def _rnn(case: Case, backend: str, dtype: Any) -> Map:
    names = ("x", "h0", "w_ih", "w_hh", "b", "ln_gates")
    return _recurrent_map("rnn", case, backend, dtype, names, ("h",), ())


def _linear(case: Case, backend: str, dtype: Any) -> Map:
    inputs, fixed = _split("linear_forward", case, dtype, ("x", "w", "b"))

    def forward(given: Named) -> Named:
        y = _blank(fixed["y"].shape, dtype)
        kernels.linear_forward(y=y, **given, backend=backend)
        return {"y": y}

    def vjp(given: Named, upstream: Named) -> Named:
        gradients = {f"d{name}": _blank(value.shape, dtype) for name, value in given.items()}
        kernels.linear_backward(
            **gradients, dy=upstream["y"], x=given["x"], w=given["w"], backend=backend
        )
        return {name: gradients[f"d{name}"] for name in given}

    return Map(inputs, forward, vjp)


def _xent(case: Case, backend: str, dtype: Any) -> Map:
    inputs, fixed = _split("xent_gradients", case, dtype, ("h", "w", "b"))
    targets, weights = fixed["targets"], fixed["weights"]
    options = {name: fixed[name] for name in XENT_OPTIONS if name in fixed}

    def call(function: str, given: Named, **further: Any) -> Array:
        out = {"nll": _blank(targets.shape, dtype)}
        if options:
            out["loss"] = _blank(targets.shape, dtype)
        further |= {"targets": targets, "backend": backend}
        getattr(kernels, function)(**out, **given, **options, **further)
        return out.get("loss", out["nll"])

    def vjp(given: Named, upstream: Named) -> Named:
        gradients = {f"d{name}": _blank(value.shape, dtype) for name, value in given.items()}
        call("xent_gradients", given, **gradients, weights=upstream["loss"])
        return {name: gradients[f"d{name}"] for name in given}

    def forward(given: Named) -> Named:
        return {"loss": call("xent_forward", given)}

    return Map(inputs, forward, vjp, None if weights is None else {"loss": weights})


def _candidates(case: Case, backend: str, dtype: Any) -> Map:
    inputs, fixed = _split("candidates_gradients", case, dtype, ("h", "w", "b"))
    weights = fixed.pop("weights")
    out: Arguments = {name: fixed.pop(name) for name in ("loss", "dh", "rows", "drows", "db")}
    fixed["backend"] = backend

    def forward(given: Arguments) -> Named:
        loss = out["loss"].copy()
        kernels.candidates_forward(loss=loss, **given, **fixed)
        return {"loss": loss}

    def vjp(given: Arguments, upstream: Named) -> Named:
        written: Arguments = {name: None if x is None else x.copy() for name, x in out.items()}
        n = kernels.candidates_gradients(**written, **given, **fixed, weights=upstream["loss"])
        gradients = {name: np.zeros_like(value) for name, value in given.items()}
        gradients["h"][...] = written["dh"]
        rows = written["rows"][:n]
        for name, of_rows in (("w", "drows"), ("b", "db")):
            if name in given:
                gradients[name][rows] = written[of_rows][:n]
        return gradients

    return Map(inputs, forward, vjp, None if weights is None else {"loss": weights})


def _hsoftmax(case: Case, backend: str, dtype: Any) -> Map:
    inputs, fixed = _split("hsoftmax_gradients", case, dtype, ("h", "w", "b"))
    path: dict[str, Any] = {name: fixed[name] for name in ("first", "parent", "targets")}
    path["backend"] = backend

    def forward(given: dict[str, Any]) -> Named:
        nll = _blank(fixed["nll"].shape, dtype)
        kernels.hsoftmax_forward(nll=nll, **given, **path)
        return {"nll": nll}

    def vjp(given: dict[str, Any], upstream: Named) -> Named:
        out: dict[str, Any] = {name: fixed[name] for name in ("nll", "dh", "rows", "drows")}
        db = fixed["db"] if "b" in given else None
        n = kernels.hsoftmax_gradients(**out, db=db, **given, **path, weights=upstream["nll"])
        gradients = {name: np.zeros_like(x) for name, x in given.items()} | {"h": fixed["dh"]}
        gradients["w"][fixed["rows"][:n]] = fixed["drows"][:n]
        if db is not None:
            gradients["b"][fixed["rows"][:n]] = db[:n]
        return gradients

    return Map(inputs, forward, vjp)


def _embedding(case: Case, backend: str, dtype: Any) -> Map:
    inputs, fixed = _split("embedding_forward", case, dtype, ("w",))
    ids, shape = fixed["ids"], fixed["y"].shape

    def forward(given: Named) -> Named:
        y = _blank(shape, dtype)
        kernels.embedding_forward(y=y, ids=ids, **given, backend=backend)
        return {"y": y}

    def vjp(given: Named, upstream: Named) -> Named:
        rows, drows = np.empty(len(ids), np.int32), _blank(shape, dtype)
        n = kernels.embedding_backward(
            rows=rows, drows=drows, ids=ids, dy=upstream["y"], backend=backend
        )
        dw = np.zeros_like(given["w"])
        dw[rows[:n]] = drows[:n]
        return {"w": dw}

    return Map(inputs, forward, vjp)


def _dropout(case: Case, backend: str, dtype: Any) -> Map:
    inputs, fixed = _split("dropout", case, dtype, ("x",))
    del fixed["y"]

    def apply(x: Array) -> Array:
        y = _blank(x.shape, dtype)
        kernels.dropout(y=y, x=x, **fixed, backend=backend)
        return y

    def vjp(given: Named, upstream: Named) -> Named:
        return {"x": apply(upstream["y"])}  # the map is its own adjoint

    return Map(inputs, lambda given: {"y": apply(given["x"])}, vjp)


MAPS: dict[str, Callable[[Case, str, Any], Map]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn": _rnn,
    "linear": _linear,
    "xent": _xent,
    "candidates": _candidates,
    "hsoftmax": _hsoftmax,
    "embedding": _embedding,
    "dropout": _dropout,
}
