"""LSTM, GRU and RNN as functions of JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pynlm.jax.layer import CELLS, Array, Extra, Plan, Weights, layer
from pynlm.layers import RecurrentOptions
from pynlm.layers.rnn import NONLINEARITIES


def lstm(
    weights: Weights,
    x: Any,
    state: tuple[Any, Any] | None = None,
    *,
    lengths: Any = None,
    options: RecurrentOptions | None = None,
    mask_h: Any = None,
    key: Any = None,
) -> tuple[Array, tuple[Array, Array]]:
    """LSTM over a batch of sequences.

    Parameters
    ----------
    weights
        By name, in torch.nn.LSTM's layout with one bias: `w_ih` [4H, I], `w_hh` [4H, H], `b` [4H]
        (gates i, f, g, o), and what else `options` ask for, see `pynlm.layers.LSTM`. All arrays are
        float32 or all float64.
    x
        [T, B, I].
    state
        h [B, H] and c [B, H] (h [B, P] with a projection); None: zeros.
    lengths
        Integers [B] in [0, T], in any order: a row takes part in so many steps. None: all T.
    options
        Variants of the cell. `recurrent_dropout` is `mask_h` here, and `weight_drop` a mask on
        `w_hh` before the call, so both must be 0.
    mask_h
        [B, H], of h where it enters `w_hh`, one for all steps (variational recurrent dropout). No
        gradient flows to it.
    key
        Of `jax.random` (two words): zoneout is drawn by it. None: its expectation, as in scoring.

    Returns
    -------
    y, (h_last, c_last)
        y [T, B, H], 0 beyond a row's length; the state after each row's last step.

    Raises
    ------
    TypeError, ValueError
        When traced: wrong kinds, dtypes, shapes, names or options. When run (by JAX's own error,
        if they are not known before): lengths out of range.

    Notes
    -----
    Gradients of weights, x and state; no second derivatives, no forward mode. Equations, with
    sources: `pynlm.kernels.lstm_forward`.

    Examples
    --------
    >>> weights = initial_weights("lstm", jax.random.key(0), input_size=3, hidden_size=5)
    >>> y, (h, c) = jax.jit(lstm)(weights, jnp.ones((7, 2, 3)))
    >>> y.shape, c.shape
    ((7, 2, 5), (2, 5))
    >>> jax.grad(lambda w: lstm(w, jnp.ones((7, 2, 3)))[0].sum())(weights)["w_hh"].shape
    (20, 5)
    """
    y, last = _run("lstm", "tanh", weights, x, state, lengths, options, mask_h, key)
    return y, (last[0], last[1])


def gru(
    weights: Weights,
    x: Any,
    state: Any = None,
    *,
    lengths: Any = None,
    options: RecurrentOptions | None = None,
    mask_h: Any = None,
    key: Any = None,
) -> tuple[Array, Array]:
    """GRU over a batch of sequences.

    Parameters
    ----------
    weights
        In torch.nn.GRU's layout: `w_ih` [3H, I], `w_hh` [3H, H], `b` [3H] (gates r, z, n) and
        `b_hn` [H], the bias inside the reset product, which the option `reset_before` has not; with
        layer norm `ln_gates` [2, 3H].
    state
        h [B, H]; None: zeros.
    x, lengths, options, mask_h, key
        See `lstm`, for errors, too.

    Returns
    -------
    y, h_last
        [T, B, H], 0 beyond a row's length, and [B, H].

    Examples
    --------
    >>> weights = initial_weights("gru", jax.random.key(0), input_size=3, hidden_size=5)
    >>> y, h = gru(weights, jnp.ones((7, 2, 3)), lengths=[7, 4])
    >>> y.shape, bool((h[1] == y[3, 1]).all()), float(abs(y[4:, 1]).max())
    ((7, 2, 5), True, 0.0)
    """
    start = None if state is None else (state,)
    y, last = _run("gru", "tanh", weights, x, start, lengths, options, mask_h, key)
    return y, last[0]


def rnn(
    weights: Weights,
    x: Any,
    state: Any = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Any = None,
    options: RecurrentOptions | None = None,
    mask_h: Any = None,
    key: Any = None,
) -> tuple[Array, Array]:
    """Simple (Elman) recurrent network over a batch of sequences.

    Parameters
    ----------
    weights
        `w_ih` [H, I], `w_hh` [H, H], `b` [H]; with layer norm `ln_gates` [2, H].
    state
        h [B, H]; None: zeros.
    nonlinearity
        "tanh" or "relu".
    x, lengths, options, mask_h, key
        See `lstm`, for errors, too.

    Returns
    -------
    y, h_last
        [T, B, H], 0 beyond a row's length, and [B, H].

    Examples
    --------
    >>> weights = initial_weights("rnn", jax.random.key(0), input_size=3, hidden_size=5)
    >>> y, h = rnn(weights, jnp.ones((7, 2, 3)), nonlinearity="relu")
    >>> y.shape, h.shape
    ((7, 2, 5), (2, 5))
    """
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"rnn: nonlinearity must be tanh or relu, got {nonlinearity!r}")
    start = None if state is None else (state,)
    y, last = _run("rnn", nonlinearity, weights, x, start, lengths, options, mask_h, key)
    return y, last[0]


def initial_weights(
    cell: str,
    key: Any,
    input_size: int,
    hidden_size: int,
    *,
    options: RecurrentOptions | None = None,
    dtype: Any = jnp.float32,
) -> dict[str, Array]:
    """Weights for `lstm`, `gru` or `rnn`: uniform within 1 / sqrt(H), layer norm's gains 1.

    Parameters
    ----------
    cell
        "lstm", "gru" or "rnn".
    key
        Of `jax.random`.

    Raises
    ------
    ValueError
        Another cell; an option that it does not have.

    Examples
    --------
    >>> weights = initial_weights("gru", jax.random.key(0), input_size=3, hidden_size=5)
    >>> {name: w.shape for name, w in weights.items()}
    {'w_ih': (15, 3), 'w_hh': (15, 5), 'b': (15,), 'b_hn': (5,)}
    """
    if cell not in CELLS:
        raise ValueError(f"initial_weights: cell must be lstm, gru or rnn, got {cell!r}")
    shapes = _shapes(cell, input_size, hidden_size, options)
    bound = hidden_size**-0.5
    weights = {}
    for part, (name, shape) in zip(jax.random.split(key, len(shapes)), shapes.items(), strict=True):
        weights[name] = jax.random.uniform(part, shape, dtype, -bound, bound)
        if name == "ln_gates":
            weights[name] = jnp.ones(shape, dtype)
        elif name == "ln_cell":  # gain and bias
            weights[name] = jnp.stack([jnp.ones(shape[1], dtype), jnp.zeros(shape[1], dtype)])
    return weights


def _shapes(
    cell: str, input_size: int, hidden_size: int, options: RecurrentOptions | None
) -> dict[str, tuple[int, ...]]:
    """The weights of a cell by name."""
    specs = CELLS[cell].specs("", input_size, hidden_size, options=options)
    return {spec.name.removeprefix("."): spec.shape for spec in specs}


def _run(
    cell: str,
    nonlinearity: str,
    weights: Any,
    x: Any,
    state: Any,
    lengths: Any,
    options: Any,
    mask_h: Any,
    key: Any,
) -> tuple[Array, tuple[Array, ...]]:
    """Check all arguments, then compute."""
    options = RecurrentOptions() if options is None else options
    if not isinstance(options, RecurrentOptions):
        kind = type(options).__name__
        raise TypeError(f"{cell}: options must be RecurrentOptions or None, got {kind}")
    for name, instead in (
        ("recurrent_dropout", "give mask_h"),
        ("weight_drop", "multiply w_hh by a mask"),
    ):
        if getattr(options, name):
            value = getattr(options, name)
            raise ValueError(f"{cell}: options.{name} must be 0 ({instead}), got {value}")
    plan = Plan(cell, options, nonlinearity == "relu")
    x = jnp.asarray(x)
    if x.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"{cell}: x must be float32 or float64 [T, B, I], got {_describe(x)}")
    if x.ndim != 3 or not x.shape[2]:
        raise ValueError(f"{cell}: x must be [T, B, I>0], got {_describe(x)}")
    if not isinstance(weights, Mapping):
        raise TypeError(f"{cell}: weights must be arrays by name, got {type(weights).__name__}")
    given = {name: jnp.asarray(w) for name, w in weights.items()}
    rows = jnp.shape(given["w_hh"])[0] if "w_hh" in given and given["w_hh"].ndim else 0
    shapes = _shapes(cell, x.shape[2], max(rows // plan.gates, 1), options)
    if given.keys() != shapes.keys():
        raise ValueError(
            f"{cell}: weights must be {', '.join(shapes)}, got {', '.join(given) or 'none'}"
        )
    for name, shape in shapes.items():
        _require(cell, f"weights[{name!r}]", given[name], shape, x.dtype)
    batch, size = x.shape[1], rows // plan.gates
    names = plan.states
    widths = (given["w_hh"].shape[1], size)[: len(names)]
    if state is None:
        start = tuple(jnp.zeros((batch, width), x.dtype) for width in widths)
    else:
        if not isinstance(state, (tuple, list)) or len(state) != len(names):
            raise ValueError(f"{cell}: state must be {' and '.join(names)}, got {_kind(state)}")
        start = tuple(jnp.asarray(s) for s in state)
        for name, s, width in zip(names, start, widths, strict=True):
            _require(cell, f"state {name}", s, (batch, width), x.dtype)
    extra: Extra = {"lengths": _lengths(cell, lengths, *x.shape[:2])}
    extra["key"] = _words(cell, key)
    if mask_h is not None:
        mask_h = jnp.asarray(mask_h)
        _require(cell, "mask_h", mask_h, (batch, widths[0]), x.dtype)
        mask_h = jax.lax.stop_gradient(mask_h)
    return layer(plan, given, x, start, {**extra, "mask_h": mask_h})


def _require(cell: str, name: str, x: Array, shape: tuple[int, ...], dtype: Any) -> None:
    wanted = f"{cell}: {name} must be {dtype} {list(shape)}, got {_describe(x)}"
    if x.dtype != dtype:
        raise TypeError(wanted)
    if x.shape != shape:
        raise ValueError(wanted)


def _describe(x: Array) -> str:
    return f"{x.dtype} {list(x.shape)}"


def _kind(state: object) -> str:
    if isinstance(state, (tuple, list)):
        return f"{len(state)} arrays"
    return type(state).__name__


def _lengths(cell: str, lengths: Any, time: int, batch: int) -> Array | None:
    if lengths is None:
        return None
    # What is known already is checked here, what is not where the kernel runs.
    known = not isinstance(lengths, jax.core.Tracer)
    none = isinstance(lengths, (list, tuple)) and not lengths  # which NumPy takes for floats
    n = np.asarray(lengths, np.int32 if none else None) if known else lengths
    if not jnp.issubdtype(n.dtype, jnp.integer):
        raise TypeError(f"{cell}: lengths must be integers [B={batch}], got {_describe(n)}")
    if n.shape != (batch,):
        raise ValueError(f"{cell}: lengths must be [B={batch}], got {list(n.shape)}")
    if batch and known:
        low, high = int(n.min()), int(n.max())
        if low < 0 or high > time:
            wrong = low if low < 0 else high
            raise ValueError(f"{cell}: lengths must be in [0, T={time}], got {wrong}")
    elif n.dtype.itemsize > 4:  # where 2**32 + 3 would become 3
        n = jnp.clip(n, max(-1, jnp.iinfo(n.dtype).min), time + 1)
    return jnp.asarray(n, jnp.int32)


def _words(cell: str, key: Any) -> Array | None:
    """The two words of a random key."""
    if key is None:
        return None
    if jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    key = jnp.asarray(key)
    if key.dtype != jnp.uint32 or key.shape != (2,):
        raise TypeError(f"{cell}: key must be a key of two words, got {_describe(key)}")
    return key
