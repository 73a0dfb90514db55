"""`pynlm.jax` against cells written with `lax.scan`, and against pynlm's layers bit for bit."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

from pynlm.layers import GRU, LSTM, RNN, Context, Parameters, RecurrentOptions
from pynlm.testing import assert_close
from pynlm.testing.tolerances import jax_tolerance

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402

import pynlm.jax  # noqa: E402
from pynlm.jax import calls, gru, initial_weights, lstm, rnn  # noqa: E402

T, B, I, H = 7, 5, 3, 11
PLAIN = RecurrentOptions()
MANY = RecurrentOptions(
    peephole=True,
    coupled_gates=True,
    projection=6,
    layer_norm=True,
    zoneout_cell=0.1,
    cell_clip=0.8,
)
CASES: list[tuple[str, RecurrentOptions]] = [
    ("lstm", PLAIN),
    ("lstm", RecurrentOptions(peephole=True)),
    ("lstm", RecurrentOptions(coupled_gates=True)),
    ("lstm", RecurrentOptions(projection=4)),
    ("lstm", RecurrentOptions(layer_norm=True)),
    ("lstm", RecurrentOptions(layer_norm=True, layer_norm_state=True)),
    ("lstm", RecurrentOptions(zoneout=0.3, zoneout_cell=0.2)),
    ("lstm", RecurrentOptions(cell_clip=0.3, state_clip=0.1)),
    ("lstm", MANY),
    ("gru", PLAIN),
    ("gru", RecurrentOptions(reset_before=True)),
    ("gru", RecurrentOptions(layer_norm=True)),
    ("gru", RecurrentOptions(zoneout=0.3)),
    ("gru", RecurrentOptions(state_clip=0.1)),
    ("rnn", PLAIN),
    ("rnn", RecurrentOptions(layer_norm=True)),
    ("rnn", RecurrentOptions(state_clip=0.1)),
]


def name_of(cell: str, options: RecurrentOptions) -> str:
    return f"{cell} {' '.join(n for n in vars(options) if getattr(options, n)) or 'plain'}"


NAMES = [name_of(cell, options) for cell, options in CASES]
LENGTHS = [3, 7, 0, 5, 7]
LAYERS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


@pytest.fixture(params=["ffi", "callback"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of calling a kernel."""
    if calls.calls_by() == "callback" and request.param == "ffi":
        pytest.skip("this build has no XLA calls: install jax, then `make build` again")
    monkeypatch.setattr(calls, "calls_by", lambda: request.param)
    chosen: str = request.param
    return chosen


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", before)


def make(cell: str, options: RecurrentOptions, dtype: str) -> tuple[Any, Any, Any]:
    """Weights, x and state, all elements different."""
    rng = np.random.default_rng(3)
    weights = initial_weights(cell, jax.random.key(1), I, H, options=options, dtype=dtype)
    width = options.projection or H

    def draw(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape), dtype)

    weights = {name: w + 0.3 * draw(*w.shape) for name, w in weights.items()}
    state = (draw(B, width), draw(B, H)) if cell == "lstm" else draw(B, width)
    return weights, draw(T, B, I), state


def ours(cell: str) -> Callable[..., Any]:
    return {"lstm": lstm, "gru": gru, "rnn": rnn}[cell]


# ---- the oracle: what a user of JAX would write


def normalise(v: Any) -> Any:
    centred = v - v.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def clip(x: Any, bound: float) -> Any:
    return jnp.clip(x, -bound, bound) if bound else x


def step(cell: str, options: RecurrentOptions, relu: bool, w: Any, state: Any, x: Any, mask: Any):
    """The new state after one step."""
    h = state[0]
    enters = h if mask is None else h * mask
    from_x, from_h = x @ w["w_ih"].T, enters @ w["w_hh"].T
    if options.layer_norm:
        from_x = normalise(from_x) * w["ln_gates"][0]
        from_h = normalise(from_h) * w["ln_gates"][1]
    from_x = from_x + w["b"]
    if cell == "rnn":
        a = from_x + from_h
        new = jax.nn.relu(a) if relu else jnp.tanh(a)
    elif cell == "gru":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.split(v, 3, -1) for v in (from_x, from_h))
        r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
        inner = r * (h_n + w["b_hn"]) if "b_hn" in w else (r * enters) @ w["w_hh"][2 * H :].T
        new = (1 - z) * jnp.tanh(x_n + inner) + z * h
    else:
        c = state[1]
        a_i, *a_f, a_g, a_o = jnp.split(from_x + from_h, 3 if options.coupled_gates else 4, -1)
        p = jnp.zeros(3 * H, x.dtype)
        if options.peephole:
            p = w["peephole"]
        p_i, *p_f, p_o = jnp.split(p, 2 if options.peephole and options.coupled_gates else 3)
        i = jax.nn.sigmoid(a_i + p_i * c)
        f = jax.nn.sigmoid(a_f[0] + p_f[0] * c) if a_f else 1 - i
        new_c = seen = clip(f * c + i * jnp.tanh(a_g), options.cell_clip)
        if options.layer_norm:
            seen = normalise(new_c) * w["ln_cell"][0] + w["ln_cell"][1]
            new_c = seen if options.layer_norm_state else new_c
        new = jax.nn.sigmoid(a_o + p_o * new_c) * jnp.tanh(seen)
        if options.projection:
            new = new @ w["w_hr"].T
        d = options.zoneout_cell
        new_c = d * c + (1 - d) * new_c
    d = options.zoneout
    new = d * h + (1 - d) * clip(new, options.state_clip)
    return (new, new_c) if cell == "lstm" else (new,)


def scanned(
    cell: str, options: RecurrentOptions, w: Any, x: Any, state: Any, *, relu: bool = False,
    lengths: Any = None, mask: Any = None,
) -> Any:  # fmt: skip
    time, batch, _ = x.shape
    lives = jnp.arange(time)[:, None, None] < jnp.asarray(lengths or [time] * batch, int)[:, None]
    start = state if cell == "lstm" else (state,)

    def advance(state: Any, given: Any) -> Any:
        x, lives = given
        new = step(cell, options, relu, w, state, x, mask)
        state = tuple(jnp.where(lives, n, s) for n, s in zip(new, state, strict=True))
        return state, jnp.where(lives, state[0], 0)

    last, y = lax.scan(advance, start, (x, lives))
    return y, last if cell == "lstm" else last[0]


def upstream_of(results: Any) -> Any:
    """Gradients of all results, all elements different."""
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), results)


def pulled(function: Callable[..., Any], *arguments: Any) -> Any:
    """Results, and gradients of all arguments, under jit."""

    @jax.jit
    def both(arguments: Any, upstream: Any) -> Any:
        results, back = jax.vjp(function, *arguments)
        return results, back(upstream)

    upstream = upstream_of(jax.eval_shape(function, *arguments))
    return both(arguments, upstream)


def agree(got: Any, want: Any, dtype: str, case: str) -> None:
    tolerance = jax_tolerance(dtype, case)
    places = jax.tree_util.tree_flatten_with_path(want)[0]
    for value, (path, expected) in zip(jax.tree.leaves(got), places, strict=True):
        assert value.dtype == expected.dtype == dtype
        what = jax.tree_util.keystr(path)
        assert_close(value, expected, tolerance, what=what, case=case, terms=T * B)


# ---- what it computes


@cache
def expected(cell: str, options: RecurrentOptions, dtype: str) -> Any:
    """Results and gradients of the oracle, once for both ways."""
    lengths = LENGTHS if dtype == "float64" else None
    found = pulled(
        lambda *a: scanned(cell, options, *a, lengths=lengths), *make(cell, options, dtype)
    )
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize(("cell", "options"), CASES, ids=NAMES)
def test_as_scanned(cell: str, options: RecurrentOptions, dtype: str, way: str) -> None:
    """Rows of equal lengths in float32, of different ones in float64."""
    arguments = make(cell, options, dtype)
    lengths = LENGTHS if dtype == "float64" else None

    def function(*arguments: Any) -> Any:
        return ours(cell)(*arguments, lengths=lengths, options=options)

    want = expected(cell, options, dtype)
    agree(pulled(function, *arguments), want, dtype, name_of(cell, options))
    if options != PLAIN:
        return
    # A pass that saves nothing, outside jit.
    agree(function(*arguments), want[0], dtype, name_of(cell, options))


@pytest.mark.parametrize("cell", LAYERS)
def test_mask_and_relu(cell: str, dtype: str, way: str) -> None:
    arguments = make(cell, PLAIN, dtype)
    mask = jnp.asarray(np.random.default_rng(7).integers(0, 2, (B, H)) * 2, dtype)
    relu = cell == "rnn"
    more = {"nonlinearity": "relu"} if relu else {}

    def function(*arguments: Any) -> Any:
        return ours(cell)(*arguments, mask_h=mask, lengths=LENGTHS, **more)

    def want(*arguments: Any) -> Any:
        return scanned(cell, PLAIN, *arguments, relu=relu, mask=mask, lengths=LENGTHS)

    agree(pulled(function, *arguments), pulled(want, *arguments), dtype, cell)


@pytest.mark.parametrize(
    ("cell", "options"),
    [*CASES, ("rnn", RecurrentOptions(zoneout=0.4))],
    ids=[*NAMES, "rnn zoneout"],
)
def test_bits_of_the_layers(cell: str, options: RecurrentOptions, way: str) -> None:
    """Results, gradients and random choices are those of pynlm's own layers."""
    weights, x, state = make(cell, options, "float32")
    key = jax.random.key(9)
    seed, counter = (int(word) for word in jax.random.key_data(key))
    kind = LAYERS[cell]
    parameters = Parameters(kind.specs(cell, I, H, options=options))
    parameters.load_state_dict({f"{cell}.{name}": np.asarray(w) for name, w in weights.items()})
    layer = kind(parameters, cell, options=options)
    start = [np.asarray(s) for s in jax.tree.leaves(state)]
    ctx = Context(train=True, seed=seed, step=counter)
    (y, last), backprop = layer(np.asarray(x), start, ctx, LENGTHS)
    assert backprop is not None
    (got, end), (dweights, dx, dstate) = pulled(
        lambda *a: ours(cell)(*a, lengths=LENGTHS, options=options, key=key), weights, x, state
    )
    dy, dlast = upstream_of((got, end))
    want = {
        "y": y.copy(),
        "dx": backprop(np.asarray(dy), [np.asarray(d) for d in jax.tree.leaves(dlast)]),
    }
    assert np.array_equal(got, want["y"]) and np.array_equal(dx, want["dx"])
    for mine, theirs in zip(jax.tree.leaves(end), last, strict=True):
        assert np.array_equal(mine, theirs)
    for mine, theirs in zip(jax.tree.leaves(dstate), backprop.dstart, strict=True):
        assert np.array_equal(mine, theirs)
    for place, d in dweights.items():
        assert np.array_equal(d, parameters[f"{cell}.{place}"].grad), place


def test_zoneout_needs_its_key_to_draw(way: str) -> None:
    options = RecurrentOptions(zoneout=0.5)
    arguments = make("gru", options, "float32")
    draw = jax.jit(lambda key: gru(*arguments, options=options, key=key)[0])
    first, again, other = (draw(jax.random.key(n)) for n in (1, 1, 2))
    assert (first == again).all() and not (first == other).all()
    # The old kind of keys, too.
    assert (draw(jax.random.PRNGKey(1)) == first).all()


@pytest.mark.parametrize(("time", "batch"), [(0, 2), (3, 0), (1, 1)])
def test_edges(time: int, batch: int, way: str) -> None:
    for cell, options in (("lstm", PLAIN), ("gru", PLAIN), ("rnn", PLAIN), ("lstm", MANY)):
        weights, x, state = make(cell, options, "float32")
        arguments = weights, x[:time, :batch], jax.tree.map(lambda s: s[:batch], state)
        got = pulled(partial(ours(cell), options=options), *arguments)
        want = pulled(partial(scanned, cell, options), *arguments)
        assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)
        agree(got, want, "float32", name_of(cell, options))
        y, _ = ours(cell)(weights, x[:, :0], lengths=[], options=options)
        assert y.shape == (T, 0, options.projection or H)


# ---- transformations


@pytest.mark.parametrize("cell", LAYERS)
def test_vmap(cell: str, way: str) -> None:
    weights, x, state = make(cell, PLAIN, "float32")
    many = jnp.stack([x, 2 * x, -x])

    def loss(weights: Any, x: Any) -> Any:
        return (ours(cell)(weights, x, state, lengths=LENGTHS)[0] ** 2).sum()

    got = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(weights, many)
    for n, one in enumerate(many):
        for name, d in jax.grad(loss)(weights, one).items():
            assert np.array_equal(got[name][n], d)


def test_inside_scan_and_two_layers(way: str) -> None:
    """As in a training loop: layers on layers, pieces of text with the state carried."""
    first, x, state = make("lstm", PLAIN, "float32")
    second = initial_weights("lstm", jax.random.key(4), H, H)
    pieces = jnp.stack([x, x[::-1], 2 * x])

    def loss(weights: Any, layer: Any) -> Any:
        def advance(states: Any, x: Any) -> Any:
            y, one = layer(weights[0], x, states[0])
            y, two = layer(weights[1], y, states[1])
            return (one, two), (y**2).mean()

        return lax.scan(advance, (state, state), pieces)[1].sum()

    got = jax.jit(jax.value_and_grad(lambda w: loss(w, lstm)))([first, second])
    want = jax.jit(jax.value_and_grad(lambda w: loss(w, lambda *a: scanned("lstm", PLAIN, *a))))(
        [first, second]
    )
    agree(got, want, "float32", "scan")


@pytest.mark.parametrize(
    ("cell", "options", "masked"),
    [*((*case, False) for case in CASES), *((cell, PLAIN, True) for cell in LAYERS)],
    ids=[*NAMES, *(f"{cell} masked" for cell in LAYERS)],
)
def test_a_pass_is_pulled_back_twice(
    cell: str, options: RecurrentOptions, masked: bool, way: str
) -> None:
    """What a backward kernel changes in place is a copy where it is needed again."""
    arguments = make(cell, options, "float32")
    mask = 2 * (jax.tree.leaves(arguments[2])[0] > 0).astype("float32") if masked else None
    function = partial(ours(cell), options=options, mask_h=mask)

    def twice(arguments: Any) -> Any:
        results, back = jax.vjp(function, *arguments)
        return back(results), back(results)

    for run in (twice, jax.jit(twice)):
        first, second = run(arguments)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            assert np.array_equal(a, b)


def test_derivatives_that_are_refused(way: str) -> None:
    weights, x, state = make("lstm", PLAIN, "float32")

    def loss(x: Any) -> Any:
        return lstm(weights, x, state)[0].sum()

    with pytest.raises(NotImplementedError, match="lstm: second derivatives are not implemented"):
        jax.grad(lambda x: jax.grad(loss)(x).sum())(x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (x,), (x,))
    options = RecurrentOptions(zoneout=0.1)
    with pytest.raises(ValueError, match="rnn: gradients with zoneout need a key, got None"):
        jax.grad(lambda w: rnn(w, x, options=options)[0].sum())(make("rnn", options, "float32")[0])


# ---- errors


def test_messages() -> None:
    weights, x, (h, c) = make("lstm", PLAIN, "float32")
    f32 = "float32"

    def fails(kind: type[Exception], message: str, *arguments: Any, **options: Any) -> None:
        for call in (lstm, jax.jit(lstm, static_argnames=["options"])):
            with pytest.raises(kind) as caught:
                call(*arguments, **options)
            assert message in str(caught.value)

    fails(ValueError, f"lstm: x must be [T, B, I>0], got {f32} [7, 5]", weights, x[:, :, 0])
    empty = {**weights, "w_ih": weights["w_ih"][:, :0]}
    fails(ValueError, f"lstm: x must be [T, B, I>0], got {f32} [7, 5, 0]", empty, x[:, :, :0])
    fails(
        TypeError, "lstm: x must be float32 or float64 [T, B, I], got int32", weights, x.astype(int)
    )
    fails(TypeError, "got bfloat16 [7, 5, 3]", weights, x.astype(jnp.bfloat16))
    some = {name: w for name, w in weights.items() if name != "b"}
    fails(ValueError, "lstm: weights must be w_ih, w_hh, b, got ", some, x)
    fails(
        ValueError, f"lstm: weights['w_ih'] must be {f32} [44, 3], got {f32} [44, 2]",
        {**weights, "w_ih": weights["w_ih"][:, :2]}, x,
    )  # fmt: skip
    fails(
        TypeError, f"lstm: weights['b'] must be {f32} [44], got float16 [44]",
        {**weights, "b": weights["b"].astype(jnp.float16)}, x,
    )  # fmt: skip
    fails(ValueError, "lstm: state must be h and c, got 1 arrays", weights, x, (h,))
    fails(
        ValueError,
        f"lstm: state c must be {f32} [5, 11], got {f32} [4, 11]",
        weights,
        x,
        (h, c[1:]),
    )
    fails(ValueError, f"lstm: mask_h must be {f32} [5, 11]", weights, x, mask_h=h[:, 1:])
    fails(ValueError, "lstm: lengths must be [B=5], got [4]", weights, x, lengths=jnp.zeros(4, int))
    fails(TypeError, "lstm: lengths must be integers [B=5]", weights, x, lengths=jnp.zeros(5))
    fails(TypeError, "lstm: key must be a key of two words, got uint32 [4]", weights, x,
          key=jnp.zeros(4, jnp.uint32))  # fmt: skip
    fails(
        ValueError, "lstm: options.weight_drop must be 0 (multiply w_hh by a mask), got 0.5",
        weights, x, options=RecurrentOptions(weight_drop=0.5),
    )  # fmt: skip
    fails(
        ValueError, "LSTM: reset_before is not defined for this cell, only for GRU", weights, x,
        options=RecurrentOptions(reset_before=True),
    )  # fmt: skip
    with pytest.raises(TypeError, match="lstm: weights must be arrays by name, got list"):
        lstm(list(weights.values()), x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gru: options must be RecurrentOptions or None, got dict"):
        gru(weights, x, options={})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rnn: nonlinearity must be tanh or relu, got 'gelu'"):
        rnn(weights, x, nonlinearity="gelu")
    with pytest.raises(ValueError, match="initial_weights: cell must be lstm, gru or rnn, got 'x'"):
        initial_weights("x", jax.random.key(0), 1, 1)


def test_lengths_out_of_range(way: str) -> None:
    weights, x, _ = make("lstm", PLAIN, "float32")
    for wrong in ([1, 2, 3, 4, 8], [1, 2, 3, 4, -1]):
        with pytest.raises(ValueError, match=r"lstm: lengths must be in \[0, T=7\], got (8|-1)"):
            lstm(weights, x, lengths=wrong)
        run = jax.jit(lambda n: lstm(weights, x, lengths=n)[0])
        with pytest.raises(Exception, match=r"lengths(\[\d\])? must be in \[0, T=7\]"):
            run(jnp.asarray(wrong)).block_until_ready()
    assert run(jnp.asarray(LENGTHS)).shape == (T, B, H)


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)  # which is when JAX has int64
def test_wide_lengths_out_of_range(dtype: str, way: str) -> None:
    weights, x, _ = make("lstm", PLAIN, dtype)
    run = jax.jit(lambda n: lstm(weights, x, lengths=n)[0])
    for kind in ("int64", "uint64"):
        assert np.array_equal(run(np.array(LENGTHS, kind)), lstm(weights, x, lengths=LENGTHS)[0])
        with pytest.raises(Exception, match=r"lengths(\[\d\])? must be in \[0, T=7\]"):
            run(np.array([1, 2, 3, 4, 2**32 + 3], kind)).block_until_ready()
    with pytest.raises(Exception, match=r"lengths(\[\d\])? must be in \[0, T=7\]"):
        run(np.array([1, 2, 3, 4, -(2**32) + 3])).block_until_ready()


def test_documentation() -> None:
    for module in ("jax.recurrent", "jax.calls", "xla"):
        found = doctest.testmod(importlib.import_module(f"pynlm.{module}"))
        assert found.attempted and not found.failed
    assert set(pynlm.jax.__all__) <= set(dir(pynlm.jax))
