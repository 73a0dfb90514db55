"""Trees: shortest codes, balance, bins, clusters, what is no tree."""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pynlm.heads.trees import Tree, balanced, frequency_classes, from_clusters, huffman, make_tree

ZIPF = 100_000 // np.arange(1, 504)


def depths(tree: Tree) -> np.ndarray:
    return np.array([len(tree.path(v)) for v in range(tree.vocab_size)])


def arities(tree: Tree) -> np.ndarray:
    return np.diff(tree.first)


def least_cost(counts: Any, arity: int) -> int:
    """Sum of counts times depths of an optimal code, by the textbook's one heap."""
    heap = list(map(int, counts))
    if arity > 2:
        heap += [0] * (-(len(heap) - 1) % (arity - 1))
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        joined = sum(heapq.heappop(heap) for _ in range(arity))
        total += joined
        heapq.heappush(heap, joined)
    return total


@pytest.mark.parametrize("arity", [2, 3, 4, 7, 16])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 503])
def test_huffman_codes_are_the_shortest(arity: int, size: int) -> None:
    for counts in (ZIPF[:size], np.ones(size, int), np.zeros(size, int), 2 ** np.arange(size % 50)):
        if not len(counts):
            continue
        tree = huffman(counts, arity)
        assert tree.vocab_size == len(counts)
        assert (counts * depths(tree)).sum() == least_cost(counts, arity)
        assert (arities(tree)[:-1] == arity).all() and (arities(tree) >= 2).all()


def test_huffman_does_not_depend_on_the_order_of_equal_counts() -> None:
    """Deeper tokens are never more frequent, nor of equal counts those of smaller ids."""
    counts = np.repeat([40, 10, 10, 3, 1], 7)
    depth = depths(huffman(counts))
    assert (np.diff(depth) >= 0).all()


def test_frequent_words_have_short_paths() -> None:
    """The expected length is within one of the entropy."""
    p = ZIPF / ZIPF.sum()
    entropy = -(p * np.log2(p)).sum()
    assert entropy <= (p * huffman(ZIPF).cost).sum() < entropy + 1


@pytest.mark.parametrize("arity", [2, 3, 10, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 11, 101, 503])
def test_balanced(arity: int, size: int) -> None:
    tree = balanced(size, arity)
    depth = depths(tree)
    least = 0
    while arity**least < size:
        least += 1
    assert depth.max(initial=0) == least and depth.min() >= least - 1
    assert (arities(tree) <= arity).all()


def test_balanced_keeps_neighbours_together() -> None:
    """Leaves from left to right are the ids in order."""
    tree = balanced(37, 3)
    leaves, stack = [], [37]
    while stack:
        entry = stack.pop()
        if entry < 37:
            leaves.append(entry)
        else:
            m = entry - 37
            stack += tree.children[tree.first[m] : tree.first[m + 1]].tolist()[::-1]
    assert leaves == list(range(37))


def test_classes_are_bins_of_equal_root_counts() -> None:
    tree = frequency_classes(ZIPF, 10)
    assert set(depths(tree).tolist()) <= {1, 2}
    root = tree.parent[: tree.vocab_size, 0]
    mass = np.sqrt(ZIPF.astype(float))
    shares = np.array([mass[root == m].sum() for m in np.unique(root)]) / mass.sum()
    assert len(shares) == 10 and shares.max() < 0.16 and shares.min() > 0.05
    # ids fall in frequency, so bins are ranges of ids
    assert (np.diff(tree.parent[:503, 0]) >= 0).all()


@pytest.mark.parametrize("counts", [[5], [0, 0, 0], [9, 0, 0, 0], [3, 1], list(range(20))])
def test_all_numbers_of_classes(counts: list[int]) -> None:
    for classes in range(1, len(counts) + 1):
        tree = frequency_classes(counts, classes)
        assert tree.vocab_size == len(counts)
        if len(counts) > 1:
            assert arities(tree)[0] == (classes if classes > 1 else len(counts))


def test_clusters_share_the_nodes_above_them() -> None:
    labels = np.array([[0, 1], [1, 0], [0, 1], [1, 1], [0, 0], [1, 0]])
    tree = from_clusters(labels)
    for v in range(6):
        for w in range(6):
            shared = len(set(tree.path(v)) & set(tree.path(w)))
            alike = int((labels[v] == labels[w]).cumprod().sum())
            # a level at which nothing divides has no node
            assert v == w or shared == alike
    assert (from_clusters([5, 5, 5]).children == [0, 1, 2]).all()


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_tree_is_consistent(size: int) -> None:
    counts = ZIPF[:size]
    for tree in (huffman(counts), huffman(counts, 5), balanced(size), frequency_classes(counts)):
        V, M = size, len(tree.first) - 1
        assert len(tree.children) == V + M - 1 if M else V == 1
        assert tree.parent.shape == (V + M, 2)
        rows = np.zeros(V, int)
        for v in range(V):
            path = tree.path(v)
            rows[v] = sum(int(tree.first[m + 1] - tree.first[m]) - 1 for m, _ in path)
            for (m, c), (below, _) in pairwise(path):
                assert tree.children[tree.first[m] + c] == V + below
            if path:
                assert tree.children[tree.first[path[-1][0]] + path[-1][1]] == v
        assert (tree.cost == rows).all()
        with pytest.raises(ValueError, match="read-only"):
            tree.children[...] = 0


def test_large_vocabularies() -> None:
    counts = np.sort(np.random.default_rng(0).zipf(1.3, 267_735) % 1_000_000)[::-1].copy()
    tree = huffman(counts)
    assert (counts * tree.cost).sum() == least_cost(counts, 2)
    assert balanced(len(counts)).cost.max() == 19  # 18 or 19 nodes of one row, and 2 ** 18 < V
    assert frequency_classes(counts).cost.min() >= 517  # the root's 518 classes


@pytest.mark.parametrize(
    ("first", "children"),
    [
        ([0, 2], [0, 2]),  # a token that is not there
        ([0, 2], [0, 0]),
        ([0, 2, 4], [0, 4, 1, 4]),  # a node below itself
        ([0, 2, 4], [0, 1, 2, 4]),  # the second node below nothing
        ([0, 1], [0]),
        ([0, 2, 3], [0, 1, 2]),
        ([1, 3], [0, 1]),
        ([0, 2], [0, 1, 2]),
        ([0, 2], [0, -1]),
        ([0, 2, 4, 6], [0, 6, 1, 2, 5, 3]),  # a child with a smaller number
    ],
)
def test_what_is_no_tree(first: list[int], children: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^Tree: .*, got "):
        Tree(np.array(first), np.array(children))


def test_what_is_wrong_with_a_tree() -> None:
    for first, children, message in (
        ([0, 2, 3], [0, 1, 2], r"end with C=3, got \[0\] to \[3\] and first\[1:3\]=\[2, 3\]"),
        ([0, 2, 4], [0, 4, 1, 4], "children must be all of 3 tokens and 2 nodes .* none that is 2"),
        ([0, 2, 4, 6], [0, 6, 1, 2, 5, 3], r"larger .* than itself, got node 1 below node 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Tree(np.array(first), np.array(children))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: huffman([1.0, 2.0]),
            TypeError,
            r"huffman: counts must be integers \[V\], .*, got",
        ),
        (lambda: huffman([]), TypeError, "huffman: counts must be integers"),
        (lambda: huffman(np.zeros(0, int)), ValueError, "huffman: counts must be"),
        (lambda: huffman([1, -1]), ValueError, r"huffman: counts must not be .*counts\[1\]=-1"),
        (lambda: huffman([[1, 2]]), ValueError, "huffman: counts must be"),
        (lambda: huffman([1, 2], 1), ValueError, r"huffman: arity must be in \[2, "),
        (lambda: balanced(0), ValueError, "balanced: vocab_size must be in"),
        (lambda: balanced(5, 1), ValueError, "balanced: arity must be in"),
        (lambda: frequency_classes([1, 2], 3), ValueError, r"frequency_classes: classes must be"),
        (lambda: from_clusters([0.5]), TypeError, r"from_clusters: labels .*, got float64 \[1\]"),
        (lambda: from_clusters(np.zeros((2, 2, 2), int)), ValueError, "from_clusters: labels must"),
        (lambda: make_tree("oak", 3), ValueError, "make_tree: kind must be one of huffman,"),
        (lambda: make_tree("classes", 3), ValueError, r"make_tree: .* needs counts \[V=3\]"),
        (lambda: make_tree("clusters", 3), ValueError, r"make_tree: .* needs labels \[V=3\]"),
        (
            lambda: make_tree("clusters", 3, labels=[1, 2]),
            ValueError,
            r"make_tree: labels must be of V=3 tokens, got \[2\]",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()
