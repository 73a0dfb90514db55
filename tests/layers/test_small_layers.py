"""Embedding, dropout and linear layers, conversions, context, initial numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pynlm.layers import Context, Dropout, Embedding, Linear, Parameters
from pynlm.layers.convert import RowOrder, as_ids
from pynlm.layers.initialisers import Stream
from pynlm.testing import assert_close
from pynlm.testing.tolerances import CLOSED_FORM, finite_difference_tolerance, kernel_tolerance

RNG = np.random.default_rng(0)
PINNED = [-0.1998219687760875, -0.21317607748451506, 0.03402618125304069]


def embedding(sparse: bool) -> Embedding:
    p = Parameters(Embedding.specs("e", 7, 3, sparse=sparse), np.float64)
    p["e.weight"].data[...] = RNG.standard_normal((7, 3))
    return Embedding(p, "e")


@pytest.mark.parametrize("sparse", [True, False])
def test_embedding(sparse: bool, train: Context, score: Context) -> None:
    layer = embedding(sparse)
    ids = np.array([[1, 6, 1], [0, 1, 6]])
    dy = RNG.standard_normal((2, 3, 3))
    want = np.zeros((7, 3))
    np.add.at(want, ids, dy)
    for times in (1, 2):
        y, backprop = layer(ids, train)
        np.testing.assert_array_equal(y, layer.weight.data[ids])
        assert backprop is not None
        backprop(dy)
        assert layer.weight.state == ("rows" if sparse else "dense")
        if sparse:
            rows, drows = layer.weight.rows
            assert rows.tolist() == [0, 1, 6]
            assert_close(drows, times * want[rows], CLOSED_FORM, what="layer")
        else:
            assert_close(layer.weight.grad, times * want, CLOSED_FORM, what="layer")
    assert layer(ids, score)[1] is None


def test_embedding_buffers_come_back(train: Context) -> None:
    layer = embedding(True)
    pool = layer.weight.pool
    ids = np.zeros((4, 5), np.int32)
    made = 0
    for step in range(20):
        layer.weight.zero_grad()
        y, backprop = layer(ids, train)
        assert backprop is not None
        if step % 2:
            backprop(y)
        del y, backprop
        if step == 3:
            made = pool.allocations
    assert pool.allocations == made


def test_embedding_errors(train: Context) -> None:
    layer = embedding(True)
    for ids in ([[1, 7]], [[-1, 0]], [[2**40]]):
        with pytest.raises(IndexError):
            layer(ids, train)
    with pytest.raises(TypeError, match="Embedding e: ids must be integers, got float64"):
        layer([[0.5]], train)
    _, backprop = layer([[1, 2]], train)
    assert backprop is not None
    with pytest.raises(ValueError, match=r"dy must be \[1, 2, 3\], got \[2, 3\]"):
        backprop(np.ones((2, 3)))
    with pytest.raises(RuntimeError, match="once"):
        backprop(np.ones((1, 2, 3)))


def test_ids_are_converted() -> None:
    assert as_ids([], func="f", name="ids").dtype == np.int32
    for x in ([[1, 2]], np.array([[1, 2]]), np.array([[1, 2]], np.uint8), np.array([[1, 2]]).T.T):
        ids = as_ids(x, func="f", name="ids")
        assert ids.dtype == np.int32 and ids.flags.c_contiguous and ids.tolist() == [[1, 2]]
    for value in (2**31, -(2**31) - 1):
        with pytest.raises(IndexError, match=f"f: ids must fit in int32, got {value}"):
            as_ids(np.array([0, value]), func="f", name="ids")


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_is_its_own_backward(locked: bool, dtype: Any, train: Context) -> None:
    layer = Dropout(0.3, site=3, layer=1, locked=locked)
    x = np.ones((6, 5, 40), dtype)
    y, backprop = layer(x, train)
    assert y.dtype == dtype and (x == 1).all()
    assert_close(np.unique(y), [0, 1 / 0.7], kernel_tolerance("dropout", dtype), what="values")
    assert abs((y == 0).mean() - 0.3) < 0.05
    assert (y[0] == y[1]).all() == locked
    assert backprop is not None
    dy = np.full_like(x, 2)
    np.testing.assert_array_equal(backprop(dy), 2 * y)
    assert (dy == 2).all()
    with pytest.raises(RuntimeError, match="once"):
        backprop(dy)


def test_dropout_in_place(train: Context) -> None:
    layer = Dropout(0.3, site=3)
    x = np.ones((6, 5, 4))
    want = layer(x, train)[0]
    y, backprop = layer(x, train, inplace=True)
    assert y is x and backprop is not None
    np.testing.assert_array_equal(y, want)
    dy = np.ones_like(x)
    assert backprop(dy, inplace=True) is dy
    np.testing.assert_array_equal(dy, want)


def test_dropout_masks_follow_the_context_and_the_place(train: Context) -> None:
    x = np.ones((4, 3, 50))

    def mask(ctx: Context = train, **place: int) -> bytes:
        return Dropout(0.5, **{"site": 3, **place})(x, ctx)[0].tobytes()

    masks = [
        mask(),
        mask(replace(train, seed=4)),
        mask(replace(train, step=6)),
        mask(replace(train, time0=4)),
        mask(site=4),
        mask(layer=1),
    ]
    assert len(set(masks)) == len(masks) and mask() == masks[0]
    late = Dropout(0.5, site=3)(x[1:], replace(train, time0=1))[0]
    np.testing.assert_array_equal(late, Dropout(0.5, site=3)(x, train)[0][1:])


def test_dropout_of_sorted_rows_uses_the_masks_of_the_original_rows(train: Context) -> None:
    layer = Dropout(0.5, site=3)
    x = RNG.standard_normal((4, 3, 50))
    want = layer(x, train)[0]
    order = RowOrder(np.array([1, 4, 2], np.int32))
    y, backprop = layer(order.sort(x, layer.pool), train, order=order)
    np.testing.assert_array_equal(order.restore(y, layer.pool), want)
    assert backprop is not None
    np.testing.assert_array_equal(backprop(order.sort(x, layer.pool)), y)


def test_dropout_without_effect_gives_its_input(train: Context, score: Context) -> None:
    x = np.ones((2, 3, 4))
    for layer, ctx in ((Dropout(0.0, site=2), train), (Dropout(0.9, site=2), score)):
        y, backprop = layer(x, ctx)
        assert y is x and (backprop is None) == (not ctx.train)
        if backprop is not None:
            assert backprop(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_dropout_error(p: float) -> None:
    with pytest.raises(ValueError, match=r"Dropout: p must be in \[0, 1\), got"):
        Dropout(p, site=2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7), (0, 7)])
def test_linear(
    bias: bool,
    shape: tuple[int, ...],
    numeric_gradient: Callable[..., np.ndarray],
    train: Context,
    score: Context,
) -> None:
    p = Parameters(Linear.specs("p", 7, 5, bias=bias), np.float64)
    p.data[:] = RNG.standard_normal(p.data.size)
    layer = Linear(p, "p")
    x, dy = RNG.standard_normal(shape), RNG.standard_normal((*shape[:-1], 5))
    y, backprop = layer(x, train)
    assert y.shape == dy.shape and backprop is not None and layer(x, score)[1] is None

    def loss() -> float:
        return float((layer(x, score)[0] * dy).sum())

    dx = backprop(dy)
    for got, a in ((dx, x), *((q.densify(), q.data) for q in p.values())):
        assert_close(
            got, numeric_gradient(loss, a), finite_difference_tolerance("layer"), what="gradient"
        )
    with pytest.raises(RuntimeError, match="once"):
        backprop(dy)


def test_linear_errors(train: Context) -> None:
    layer = Linear(Parameters(Linear.specs("p", 7, 5)), "p")
    with pytest.raises(ValueError, match=r"Linear p: x must be \[..., I=7\], got \[2, 6\]"):
        layer(np.ones((2, 6), np.float32), train)
    _, backprop = layer(np.ones((2, 7), np.float32), train)
    assert backprop is not None
    with pytest.raises(ValueError, match=r"Linear p: dy must be \[2, 5\], got \[2, 7\]"):
        backprop(np.ones((2, 7), np.float32))


@pytest.mark.parametrize("name", ["seed", "step", "time0"])
def test_context_errors(name: str) -> None:
    for value in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"Context: {name} must be in \[0, 2\^32\), got"):
            Context(True, **{name: value})


def test_streams_depend_on_seed_and_name_only() -> None:
    def draw(seed: int, name: str, dtype: Any = np.float64) -> np.ndarray:
        w = np.empty((300, 1000), dtype)
        Stream(seed, name).uniform(w, 0.5)
        return w

    w = draw(1, "a")
    np.testing.assert_array_equal(w, draw(1, "a"))
    np.testing.assert_array_equal(w.astype(np.float32), draw(1, "a", np.float32))
    assert (w != draw(2, "a")).any() and (w != draw(1, "b")).any()
    assert abs(w).max() <= 0.5
    assert abs(w.mean()) < 0.002 and abs(w.std() - 1 / np.sqrt(12)) < 0.002
    # The stream is part of what "same seed, same model" promises: it never changes.
    assert w[0, :3].tolist() == PINNED


def test_normal_and_orthogonal_numbers() -> None:
    w = np.empty((301, 1001))
    Stream(1, "a").normal(w, 2.0)
    assert abs(w.mean()) < 0.02 and abs(w.std() - 2) < 0.02
    assert abs((abs(w) < 2).mean() - 0.6827) < 0.005
    for shape in ((5, 5), (3, 7), (7, 3)):
        q = np.empty(shape)
        Stream(1, "a").orthogonal(q)
        small = q @ q.T if shape[0] <= shape[1] else q.T @ q
        assert_close(small, np.eye(min(shape)), CLOSED_FORM, what="product")
    with pytest.raises(ValueError, match=r"initialise: seed must be in \[0, 2\^32\), got -1"):
        Stream(-1, "a")
