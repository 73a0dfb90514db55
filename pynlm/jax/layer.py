"""A recurrent layer as a differentiable function of checked arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from pynlm.jax.calls import Setting, call_kernel
from pynlm.layers import GRU, LSTM, RNN, Recurrent, RecurrentOptions

Array: TypeAlias = jax.Array
Weights = Mapping[str, Array]
Results = tuple[Array, tuple[Array, ...]]
Extra = dict[str, Array | None]
CELLS: dict[str, type[Recurrent]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
# What the backward pass of each kernel changes in place.
_CONSUMED = {"lstm": ("gates", "norm"), "gru": ("gates", "hn", "norm"), "rnn": ("norm",)}


@dataclass(frozen=True)
class Plan:
    """A call but for its arrays: what is known when it is traced."""

    cell: str
    options: RecurrentOptions
    relu: bool

    @property
    def gates(self) -> int:
        return CELLS[self.cell].gate_count(self.options)

    @property
    def states(self) -> tuple[str, ...]:
        return ("h", "c")[: CELLS[self.cell].states]

    @property
    def settings(self) -> dict[str, Setting]:
        """What the kernels take besides arrays."""
        options = self.options
        found: dict[str, Setting] = {"zoneout_h": options.zoneout, "clip_h": options.state_clip}
        if self.cell == "lstm":
            found |= {"zoneout_c": options.zoneout_cell, "clip_c": options.cell_clip}
            found |= {"coupled": bool(options.coupled_gates)}
            found["norm_state"] = bool(options.layer_norm_state)
        if self.cell == "rnn":
            found["relu"] = self.relu
        return found


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer(
    plan: Plan, weights: Weights, x: Array, state: tuple[Array, ...], extra: Extra
) -> Results:
    """y and the last state of a layer, from arrays that fit one another.

    Parameters
    ----------
    extra
        lengths int32 [B], key uint32 [2] and mask_h [B, H], each an array or None.
    """
    found, order = _forward(plan, weights, x, state, extra, saves=False)
    return _unsorted(plan, found, order)


def _layer_forward(
    plan: Plan, weights: Weights, x: Array, state: tuple[Array, ...], extra: Extra
) -> tuple[Results, Any]:
    options = plan.options
    if options.zoneout and extra["key"] is None and (plan.cell == "rnn" or options.state_clip):
        both = " and state_clip" * (plan.cell != "rnn")
        raise ValueError(f"{plan.cell}: gradients with zoneout{both} need a key, got None")
    found, order = _forward(plan, weights, x, state, extra, saves=True)
    results = _unsorted(plan, found, order)
    return results, (weights, x, state, extra, found)


def _layer_backward(plan: Plan, residuals: Any, upstream: Results) -> tuple[Any, ...]:
    extra = residuals[3]
    dweights, dx, dstate = _gradients(plan, residuals, upstream)
    # Integers have no gradient, and a mask is a constant.
    none = {name: None if a is None else _nothing(a) for name, a in extra.items()}
    return dweights, dx, dstate, none


layer.defvjp(_layer_forward, _layer_backward)


def _forward(
    plan: Plan,
    weights: Weights,
    x: Array,
    state: tuple[Array, ...],
    extra: Extra,
    *,
    saves: bool,
) -> tuple[dict[str, Array], Array | None]:
    """What the kernel writes, with rows sorted by length, and their order."""
    order, sorted_extra = _order(extra)
    x, state = _take(x, order, 1), tuple(_take(s, order, 0) for s in state)
    sizes = _Sizes(plan, weights, x)
    results = sizes.of("y", "h_last", *(["c_last"] if plan.cell == "lstm" else []))
    if extra["mask_h"] is not None:
        results |= sizes.of("h_in")
    if saves:
        results |= sizes.saved()
    starts = {f"{name}0": s for name, s in zip(plan.states, state, strict=True)}
    inputs = {"x": x, **starts, **weights, **sorted_extra}
    return call_kernel(f"{plan.cell}_forward", results, inputs, plan.settings), order


def _unsorted(plan: Plan, found: dict[str, Array], order: Array | None) -> Results:
    back = None if order is None else jnp.argsort(order)
    last = tuple(_take(found[f"{name}_last"], back, 0) for name in plan.states)
    return _take(found["y"], back, 1), last


def _gradients(plan: Plan, residuals: Any, upstream: Results) -> tuple[Any, Any, Any]:
    """Gradients of weights, x and state."""
    weights, x, state, extra, found = residuals
    dy, dlast = upstream
    order, sorted_extra = _order(extra)
    x, dy = _take(x, order, 1), _take(dy, order, 1)
    sizes = _Sizes(plan, weights, x)
    results = {f"d{name}": _like(w) for name, w in weights.items()}
    results |= {
        "dx": _like(x),
        **{f"d{name}0": _like(s) for name, s in zip(plan.states, state, strict=True)},
    }
    saved = {n: a for n, a in found.items() if not n.endswith("_last")}
    results |= {name: _like(saved[name]) for name in _CONSUMED[plan.cell] if name in saved}
    if plan.cell == "rnn":
        results |= sizes.of("dpre")
    inputs = {"x": x, "dy": dy, **weights, **saved, **sorted_extra}
    for unread in ("b", "b_hn"):
        inputs.pop(unread, None)
    for name, start, dend in zip(plan.states, state, dlast, strict=True):
        inputs |= {f"{name}0": _take(start, order, 0), f"d{name}_last": _take(dend, order, 0)}
    made = call_kernel(f"{plan.cell}_backward", results, inputs, plan.settings)
    back = None if order is None else jnp.argsort(order)
    dweights = {name: made[f"d{name}"] for name in weights}
    dstate = tuple(_take(made[f"d{name}0"], back, 0) for name in plan.states)
    return dweights, _take(made["dx"], back, 1), dstate


class _Sizes:
    """Shapes of what the kernels write."""

    def __init__(self, plan: Plan, weights: Weights, x: Array) -> None:
        time, batch, _ = x.shape
        rows, width = weights["w_hh"].shape
        size = rows // plan.gates
        self._plan, self._dtype = plan, x.dtype
        self._shapes: dict[str, tuple[int, ...]] = {
            "y": (time, batch, width), "h_in": (time, batch, width), "h_last": (batch, width),
            "c_last": (batch, size), "gates": (time, batch, rows), "c": (time, batch, size),
            "m": (time, batch, size), "hn": (time, batch, size), "dpre": (time, batch, size),
            "norm": (2, time, batch, rows), "norm_c": (time, batch, size),
            "rstd": (3 if plan.cell == "lstm" else 2, time, batch),
        }  # fmt: skip

    def of(self, *names: str) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(self._shapes[name], self._dtype) for name in names}

    def saved(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What a backward pass reads."""
        cell, options = self._plan.cell, self._plan.options
        names = {"lstm": ["gates", "c"], "gru": ["gates", "hn"], "rnn": []}[cell]
        if options.projection:
            names.append("m")
        if options.layer_norm:
            names += ["norm", "rstd", *(["norm_c"] if cell == "lstm" else [])]
        return self.of(*names)


def _order(extra: Extra) -> tuple[Array | None, Extra]:
    """Rows by falling length, and what goes with them."""
    lengths, mask_h = extra["lengths"], extra["mask_h"]
    if lengths is None:
        return None, extra
    order = jnp.argsort(-lengths)
    return order, {
        **extra,
        "lengths": lengths[order],
        "mask_h": None if mask_h is None else mask_h[order],
        # Random numbers are those of the rows as they were given.
        "rows": None if extra["key"] is None else order.astype(jnp.int32),
    }


def _take(x: Array, order: Array | None, axis: int) -> Array:
    return x if order is None else jnp.take(x, order, axis, unique_indices=True)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _nothing(x: Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.integer):
        return np.zeros(x.shape, jax.dtypes.float0)
    return jnp.zeros_like(x)
