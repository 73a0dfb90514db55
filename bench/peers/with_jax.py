"""Recurrent layers in JAX as its users write them: one product of the input, then `lax.scan`.

Kernels are laid out as in Flax, [I, G·H] and [H, G·H]. XLA's thread pool gets its size when a
client is made, from `PJRT_NPROC`; so a new client is made wherever the number of threads changes.
With one thread all work is then done by the caller, or by one thread that it waits for (measured:
as much CPU time as wall time).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.backend import clear_backends
from numpy.typing import NDArray

from bench.cases import Case, Recurrent
from bench.inputs import Inputs, RecurrentInputs
from bench.peers import JAX
from bench.work import Work

Array = NDArray[Any]
Layers = list[dict[str, jax.Array]]
State = tuple[jax.Array, ...]
Step = Callable[[dict[str, jax.Array], State, jax.Array], State]

_threads = 1
_made_for: int | None = None


def set_threads(n: int) -> None:
    """Let what is made from now on use `n` threads; what was made before no longer runs."""
    global _threads
    _threads = n


def versions() -> dict[str, str]:
    """JAX's version."""
    return {JAX: jax.__version__}


def make(case: Case, inputs: Inputs) -> dict[str, Work]:
    """Plain recurrent layers."""
    if not isinstance(case, Recurrent) or case.variant:
        return {}
    assert isinstance(inputs, RecurrentInputs)
    _renew_client()
    layers = [
        {name: jnp.asarray(w.T if w.ndim == 2 else w) for name, w in weights.items()}
        for weights in inputs.weights
    ]
    x, dy = jnp.asarray(inputs.x), jnp.asarray(inputs.dy)
    zeros = jnp.zeros((case.B, case.H), jnp.float32)
    states = [(zeros, zeros) if case.cell == "lstm" else (zeros,)] * case.layers
    lengths = None if inputs.lengths is None else jnp.asarray(inputs.lengths)
    forward = partial(_forward, _STEPS[case.cell])

    @jax.jit
    def forward_only(layers: Layers, x: jax.Array, states: list[State]) -> jax.Array:
        return forward(layers, x, states, lengths)

    @jax.jit
    def train(layers: Layers, x: jax.Array, states: list[State], dy: jax.Array) -> Any:
        y, backward = jax.vjp(partial(forward, lengths=lengths), layers, x, states)
        return y, backward(dy)

    def run() -> Any:
        found = train(layers, x, states, dy) if case.train else forward_only(layers, x, states)
        return jax.block_until_ready(found)

    def results() -> dict[str, Array]:
        if not case.train:
            return {"y": np.asarray(run())}
        y, (dlayers, dx, _) = run()
        found = {"y": np.asarray(y), "dx": np.asarray(dx)}
        for i, gradients in enumerate(dlayers):
            found |= {f"d{name}.{i}": np.asarray(g).T for name, g in gradients.items()}
        return found

    return {JAX: Work(run, results)}


def _renew_client() -> None:
    """A client with a pool of `set_threads`'s size, unless there is one."""
    global _made_for
    if _made_for == _threads:
        return
    # The benchmarks are about CPUs, also where a device is at hand.
    jax.config.update("jax_platforms", "cpu")
    os.environ["PJRT_NPROC"] = str(_threads)
    jax.clear_caches()
    clear_backends()
    _made_for = _threads


def _forward(
    step: Step,
    layers: Layers,
    x: jax.Array,
    states: list[State],
    lengths: jax.Array | None = None,
) -> jax.Array:
    """y [T, B, H] of a stack of layers."""
    lives = None
    if lengths is not None:
        lives = jnp.arange(x.shape[0])[:, None, None] < lengths[:, None]
    for weights, state in zip(layers, states, strict=True):
        x = _layer(step, weights, x, state, lives)
    return x


def _layer(
    step: Step, weights: dict[str, jax.Array], x: jax.Array, state: State, lives: jax.Array | None
) -> jax.Array:
    def scanned(state: State, a: jax.Array) -> tuple[State, jax.Array]:
        state = step(weights, state, a)
        return state, state[0]

    def masked(state: State, given: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
        a, lives = given
        new = step(weights, state, a)
        state = tuple(jnp.where(lives, n, s) for n, s in zip(new, state, strict=True))
        return state, jnp.where(lives, state[0], 0.0)

    a = x @ weights["w_ih"] + weights["b"]
    if lives is None:
        return lax.scan(scanned, state, a)[1]
    return lax.scan(masked, state, (a, lives))[1]


def _lstm(weights: dict[str, jax.Array], state: State, a: jax.Array) -> State:
    h, c = state
    i, f, g, o = jnp.split(a + h @ weights["w_hh"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru(weights: dict[str, jax.Array], state: State, a: jax.Array) -> State:
    (h,) = state
    a_r, a_z, a_n = jnp.split(a, 3, axis=-1)
    u_r, u_z, u_n = jnp.split(h @ weights["w_hh"], 3, axis=-1)
    r, z = jax.nn.sigmoid(a_r + u_r), jax.nn.sigmoid(a_z + u_z)
    n = jnp.tanh(a_n + r * (u_n + weights["b_hn"]))
    return ((1 - z) * n + z * h,)


def _rnn(weights: dict[str, jax.Array], state: State, a: jax.Array) -> State:
    (h,) = state
    return (jnp.tanh(a + h @ weights["w_hh"]),)


_STEPS: dict[str, Step] = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}
