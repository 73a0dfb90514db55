"""Hierarchical softmax: closed forms, distribution, NaN, what is no tree, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pynlm import kernels
from pynlm.heads.trees import balanced, from_clusters, huffman
from pynlm.testing import DTYPES, arguments, assert_close, check_samples, find_case
from pynlm.testing.tolerances import CLOSED_FORM, Tolerance, kernel_tolerance

FUNCTIONS = [f"hsoftmax_{x}" for x in ("forward", "gradients", "log_prob", "top_k", "sample")]
BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_words(backend: str) -> None:
    """nll = log(1 + exp(-+z)), dz = p - [chosen]."""
    tree = huffman([2, 1])
    out: dict[str, Any] = {"nll": np.empty(2), "dh": np.empty((2, 1))}
    out |= {"rows": np.empty(1, np.int32), "drows": np.empty((1, 1)), "db": np.empty(1)}
    count = kernels.hsoftmax_gradients(
        **out,
        h=np.array([[1.0], [-2.0]]),
        w=np.array([[3.0]]),
        b=np.array([0.5]),
        first=tree.first,
        parent=tree.parent,
        targets=np.array([0, 1], np.int32),
        backend=backend,
    )
    assert (count, out["rows"].tolist()) == (1, [0])
    dz = [1 / (1 + math.exp(-3.5)), -1 / (1 + math.exp(-5.5))]
    nll = [math.log1p(math.exp(3.5)), math.log1p(math.exp(5.5))]
    assert_close(out["nll"], nll, CLOSED_FORM, what="nll", backend=backend)
    assert_close(out["dh"][:, 0], np.multiply(dz, 3), CLOSED_FORM, what="dh", backend=backend)
    assert_close(out["drows"], [[dz[0] - 2 * dz[1]]], CLOSED_FORM, what="dw", backend=backend)
    assert_close(out["db"], [sum(dz)], CLOSED_FORM, what="db", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_node_is_the_exact_softmax(backend: str) -> None:
    """All tokens below the root: the softmax whose first logit is 0."""
    case = find_case("hsoftmax", "flat-plain")
    given = arguments("hsoftmax_log_prob", case, "float64")
    kernels.hsoftmax_log_prob(**given, backend=backend)
    w, b = (np.insert(given[name], 0, 0.0, axis=0) for name in ("w", "b"))
    expected = np.empty_like(given["log_prob"])
    kernels.xent_log_prob(log_prob=expected, h=given["h"], w=w, b=b)
    tolerance = kernel_tolerance("hsoftmax", "float64")
    assert_close(given["log_prob"], expected, tolerance, what="log_prob", terms=case.terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_certain_and_impossible_targets(backend: str, dtype: str) -> None:
    """Logits of 1e4: losses 0 and 1e4 exactly; a small probability keeps all its digits."""
    tree = balanced(3)
    b = np.array([1e4, -20.0], dtype)  # token 0 or {1, 2}, then 1 or 2
    given = {"h": np.zeros((4, 1), dtype), "w": np.zeros((2, 1), dtype), "b": b}
    targets = np.array([0, 1, 2, 1], np.int32)
    out: dict[str, Any] = {"nll": np.empty(4, dtype), "dh": np.empty((4, 1), dtype)}
    out |= {"rows": np.empty(2, np.int32), "drows": np.empty((2, 1), dtype)}
    kernels.hsoftmax_gradients(
        **out, db=np.empty(2, dtype), **given, first=tree.first, parent=tree.parent,
        targets=targets, backend=backend,
    )  # fmt: skip
    tiny = math.log1p(math.exp(-20))
    tolerance = kernel_tolerance("hsoftmax", dtype)
    small = Tolerance(tolerance.relative)  # no part that hides the smallest
    assert_close(out["nll"], [1e4, tiny, 20 + tiny, tiny], small, what="nll", backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_follow_the_distribution(dtype: str) -> None:
    """Chi-square of 100 000 draws, cells of expected 5 and more."""
    rows, V = 100_000, 300
    tree = from_clusters(np.random.default_rng(2).integers(0, 6, (V, 2)))
    w = np.random.default_rng(1).normal(size=(V - 1, 1)).astype(dtype)
    h, ids = np.ones((rows, 1), dtype), np.empty(rows, np.int32)
    below = {"first": tree.first, "children": tree.children}
    kernels.hsoftmax_sample(ids=ids, h=h, w=w, **below, seed=11, step=0)
    log_prob = np.empty((1, V), dtype)
    kernels.hsoftmax_log_prob(log_prob=log_prob, h=h[:1], w=w, **below)
    check_samples(ids, np.exp(log_prob[0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_distribution_no_sample(backend: str) -> None:
    tree = balanced(3)
    ids, h = np.empty(3, np.int32), np.array([[1.0], [np.nan], [2.0]])
    below = {"first": tree.first, "children": tree.children}
    with np.errstate(invalid="ignore"):
        kernels.hsoftmax_sample(
            ids=ids, h=h, w=np.ones((2, 1)), **below, seed=1, step=1, backend=backend
        )
    assert ids[1] == -1 and (ids[[0, 2]] >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_probabilities_come_in_order(backend: str) -> None:
    tree = from_clusters([1, 0, 0, 1])
    log_prob, ids = np.empty((2, 3)), np.empty((2, 3), np.int32)
    kernels.hsoftmax_top_k(
        log_prob=log_prob, ids=ids, h=np.ones((2, 1)), w=np.zeros((3, 1)), first=tree.first,
        children=tree.children, backend=backend,
    )  # fmt: skip
    assert ids.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_comes_last(backend: str) -> None:
    """A node without a distribution does not hide the tokens beside it."""
    tree, w = balanced(8), np.zeros((7, 1))
    w[1:3, 0] = np.nan, 1.0  # tokens 0 to 3, and 6, 7 before 4, 5
    log_prob, ids = np.empty((1, 8)), np.empty((1, 8), np.int32)
    kernels.hsoftmax_top_k(
        log_prob=log_prob, ids=ids, h=np.ones((1, 1)), w=w, first=tree.first,
        children=tree.children, backend=backend,
    )  # fmt: skip
    assert ids[0].tolist() == [6, 7, 4, 5, 0, 1, 2, 3]
    assert np.isnan(log_prob[0]).tolist() == [False] * 4 + [True] * 4


def test_room_for_the_rows() -> None:
    given = arguments("hsoftmax_gradients", find_case("hsoftmax", "primes"), "float32")
    count = kernels.hsoftmax_gradients(**given)
    short = {name: given[name][: count - 1].copy() for name in ("rows", "drows", "db")}
    with pytest.raises(ValueError, match=f"room for the {count} rows .*got {count - 1}"):
        kernels.hsoftmax_gradients(**(given | short))


@pytest.mark.parametrize("tree", ["huffman", "classes", "clusters"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_no_tree(function: str, tree: str) -> None:
    """Wrong numbers anywhere in it: an error or a result, and nothing outside the arrays."""
    rng, refused = np.random.default_rng(4), 0
    for _ in range(300):
        given = arguments(function, find_case("hsoftmax", f"{tree}-plain"), "float64")
        name = str(rng.choice([n for n in ("first", "children", "parent") if n in given]))
        spoilt = given[name].copy()
        spoilt.reshape(-1)[rng.integers(spoilt.size)] = rng.choice(
            [-1, 0, 1, 100, 101, 150, 199, 10_000_000, 2**31 - 1, -(2**31)]
        )
        try:
            getattr(kernels, function)(**(given | {name: spoilt}))
        except ValueError as error:
            assert str(error).startswith(f"{function}: ")
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("name", ["first", "children", "parent"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_tree_is_no_option(function: str, name: str) -> None:
    given = arguments(function, find_case("hsoftmax", "primes"), "float32")
    if name in given:
        with pytest.raises(TypeError, match=f"^{function}: {name} must be .*NoneType"):
            getattr(kernels, function)(**(given | {name: None}))


@pytest.mark.parametrize(
    ("first", "children", "message"),
    [
        ([0, 2, 3], [0, 4, 1, 2], "first must run from 0 to V"),
        ([1, 2, 4], [0, 4, 1, 2], "first must run from 0 to V"),
        ([0, 2, 4], [0, 1, 1, 2], "must be a tree of all tokens"),  # node 1 is nowhere
    ],
)
@pytest.mark.parametrize("function", ["hsoftmax_log_prob", "hsoftmax_top_k"])
def test_a_tree_without_some_tokens(
    function: str, first: list[int], children: list[int], message: str
) -> None:
    out: dict[str, Any] = {"log_prob": np.empty((1, 3))}
    if function == "hsoftmax_top_k":
        out["ids"] = np.empty((1, 3), np.int32)
    tree = {"first": np.array(first, np.int32), "children": np.array(children, np.int32)}
    with pytest.raises(ValueError, match=f"^{function}: .*{message}"):
        getattr(kernels, function)(**out, h=np.ones((1, 1)), w=np.ones((2, 1)), **tree)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arity", [3, 40])
def test_near_certainty_keeps_its_digits(arity: int, dtype: str) -> None:
    """One child of 20 above the others: what is left to them is neither 0 nor rounded."""
    tree, rest = balanced(arity, arity), (arity - 1) * math.exp(-20)
    given = {"h": np.ones((1, 1), dtype), "w": np.zeros((arity - 1, 1), dtype)}
    given["b"] = np.where(np.arange(arity - 1) == 0, 20, 0).astype(dtype)
    out: dict[str, Any] = {"nll": np.empty(1, dtype), "dh": np.empty((1, 1), dtype)}
    out |= {"rows": np.empty(arity - 1, np.int32), "drows": np.empty((arity - 1, 1), dtype)}
    kernels.hsoftmax_gradients(
        **out, **given, first=tree.first, parent=tree.parent, targets=np.array([1], np.int32)
    )
    small = Tolerance(kernel_tolerance("hsoftmax", dtype).relative)
    assert_close(out["nll"], [math.log1p(rest)], small, what="nll")
    assert_close(out["drows"][0], [-rest / (1 + rest)], small, what="drows")
