"""Trees over a vocabulary, for the hierarchical softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import isqrt

import numpy as np
import numpy.typing as npt

from pynlm.arrays import check_integer, describe
from pynlm.layers.convert import as_counts

IntArray = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]
MOST = 2**30  # entries are int32
TREES = ("huffman", "balanced", "classes", "clusters")


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree whose leaves are the tokens 0 to V - 1, as `pynlm.kernels.hsoftmax_forward` takes it.

    Entry v is a token, entry V + m node m; node 0 is the root, and every node has a smaller number
    than the nodes among its children.

    Parameters
    ----------
    first
        int32 [M + 1]: node m's children are `children[first[m]:first[m + 1]]`, two or more.
    children
        int32 [V + M - 1], entries; each entry but the root's once.

    Raises
    ------
    ValueError
        The arrays are no such tree.

    Examples
    --------
    >>> tree = Tree(np.array([0, 2, 4]), np.array([1, 4, 0, 2]))
    >>> tree.vocab_size, tree.parent.tolist(), tree.path(2)
    (3, [[1, 0], [0, 0], [1, 1], [-1, -1], [0, 1]], [(0, 1), (1, 1)])
    """

    first: IntArray
    children: IntArray

    def __post_init__(self) -> None:
        for name in ("first", "children"):
            array = np.array(getattr(self, name), np.int32)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        first, children, nodes = self.first, self.children, len(self.first) - 1
        arity = np.diff(first)
        good = nodes >= 0 and first[0] == 0 and int(first[-1]) == len(children)
        if not good or (arity < 2).any():
            m = int(np.argmin(arity)) if nodes > 0 else 0
            raise ValueError(
                "Tree: first must begin with 0, rise by 2 or more, and end with "
                f"C={len(children)}, got {first[:1].tolist()} to {first[-1:].tolist()} and "
                f"first[{m}:{m + 2}]={first[m : m + 2].tolist()}"
            )
        rest = np.delete(np.arange(self.vocab_size + nodes), self.vocab_size if nodes else 0)
        if not np.array_equal(np.sort(children), rest):
            lost = np.setdiff1d(rest, children)[0]
            raise ValueError(
                f"Tree: children must be all of {self.vocab_size} tokens and {nodes} nodes but the "
                f"root, once each, got none that is {lost}"
            )
        above = self.parent[self.vocab_size + 1 :, 0]
        wrong = np.flatnonzero(above >= np.arange(1, nodes)) + 1
        if len(wrong):
            raise ValueError(
                "Tree: a node's children must have larger numbers than itself, got node "
                f"{wrong[0]} below node {above[wrong[0] - 1]}"
            )
        self.parent.flags.writeable = False

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.children) - len(self.first) + 2

    @cached_property
    def parent(self) -> IntArray:
        """int32 [V + M, 2]: each entry's parent, and which of its children it is; the root: -1."""
        nodes = len(self.first) - 1
        owner = np.repeat(np.arange(nodes, dtype=np.int32), np.diff(self.first))
        parent = np.full((self.vocab_size + nodes, 2), -1, np.int32)
        parent[self.children, 0] = owner
        parent[self.children, 1] = np.arange(len(self.children)) - self.first[owner]
        return parent

    @cached_property
    def cost(self) -> Counts:
        """int64 [V]: rows of all nodes on each token's path."""
        rows = np.diff(self.first).astype(np.int64) - 1
        above, steps = self.parent[:, 0].copy(), self.vocab_size
        cost = np.where(above >= 0, rows[above], 0) if len(rows) else np.zeros(steps, np.int64)
        # Each round doubles the length of path that has been added up.
        above = np.where(above >= 0, above + steps, -1)
        while (above >= 0).any():
            cost = cost + np.where(above >= 0, cost[above], 0)
            above = np.where(above >= 0, above[above], -1)
        return cost[:steps]

    def path(self, token: int) -> list[tuple[int, int]]:
        """(node, child taken) from the root to a token."""
        steps, (m, child) = [], self.parent[token].tolist()
        while m >= 0:
            steps.append((m, child))
            m, child = self.parent[self.vocab_size + m].tolist()
        return steps[::-1]


def make_tree(
    kind: str,
    vocab_size: int,
    *,
    counts: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    arity: int = 2,
    classes: int | None = None,
) -> Tree:
    """A tree by name.

    Parameters
    ----------
    kind
        "huffman" and "classes" need `counts` (`huffman`, `frequency_classes`), "clusters" needs
        `labels` (`from_clusters`), "balanced" nothing (`balanced`).
    vocab_size
        V, which the others must fit.

    Raises
    ------
    TypeError, ValueError
        An unknown kind, what it needs is missing or does not fit V, or as the functions named.

    Examples
    --------
    >>> make_tree("huffman", 3, counts=[5, 2, 1]).path(0)
    [(0, 0)]
    """
    func = "make_tree"
    if kind not in TREES:
        raise ValueError(f"{func}: kind must be one of {', '.join(TREES)}, got {kind!r}")
    if kind == "balanced":
        return balanced(vocab_size, arity)
    name, given = ("labels", labels) if kind == "clusters" else ("counts", counts)
    if given is None:
        raise ValueError(f"{func}: tree {kind!r} needs {name} [V={vocab_size}]")
    if np.ndim(given) < 1 or np.shape(given)[0] != vocab_size:
        raise ValueError(
            f"{func}: {name} must be of V={vocab_size} tokens, got {list(np.shape(given))}"
        )
    if kind == "clusters":
        return from_clusters(given)
    return huffman(given, arity) if kind == "huffman" else frequency_classes(given, classes)


def huffman(counts: npt.ArrayLike, arity: int = 2) -> Tree:
    """The tree of least expected depth under the counts (Huffman 1952).

    Of equal counts the tokens of larger ids are joined first, and tokens before nodes, so that the
    tree is the same everywhere and no deeper than need be.

    Parameters
    ----------
    counts
        Integers [V], none negative.
    arity
        Children of a node, at least 2; only the last node may have fewer.

    Raises
    ------
    TypeError, ValueError
        Counts that are no such integers; arity below 2.

    Notes
    -----
    Source: Huffman, "A method for the construction of minimum-redundancy codes" (1952); as a
    language model's tree: Mikolov et al., arXiv:1310.4546, §2.1.

    Examples
    --------
    >>> [len(huffman([50, 20, 10, 10, 10]).path(v)) for v in range(5)]
    [1, 3, 3, 3, 3]
    """
    numbers = as_counts(counts, func="huffman")
    check_integer(arity, func="huffman", name="arity", low=2, high=MOST)
    size = len(numbers)
    # Two queues of rising weight: tokens, and nodes in the order in which they are made.
    order = np.lexsort((-np.arange(size), numbers)).tolist()
    weight = numbers[order].tolist()
    made: list[int] = []  # weights of the nodes
    below: list[list[int]] = []  # their children: tokens, or ~number of a node
    leaf = node = 0
    take = (size - 2) % (arity - 1) + 2
    while size - leaf + len(made) - node > 1:
        total, entries = 0, []
        for _ in range(take):
            if node == len(made) or (leaf < size and weight[leaf] <= made[node]):
                entries.append(order[leaf])
                total += weight[leaf]
                leaf += 1
            else:
                entries.append(~node)
                total += made[node]
                node += 1
        made.append(total)
        below.append(entries[::-1])
        take = arity
    # Made last is the root; a node is made after its children.
    last = size + len(made) - 1
    return _tree([[e if e >= 0 else last - ~e for e in entries] for entries in below[::-1]])


def balanced(vocab_size: int, arity: int = 2) -> Tree:
    """A tree of neighbouring ids, halved (or cut in `arity` parts) down to single tokens.

    Raises
    ------
    TypeError, ValueError
        A size below 1 or an arity below 2.

    Examples
    --------
    >>> [len(balanced(100, arity=10).path(v)) for v in (0, 99)]
    [2, 2]
    """
    check_integer(vocab_size, func="balanced", name="vocab_size", low=1, high=MOST)
    check_integer(arity, func="balanced", name="arity", low=2, high=MOST)
    return _split(vocab_size, [(0, vocab_size)], lambda begin, end: _parts(begin, end, arity))


def frequency_classes(
    counts: npt.ArrayLike, classes: int | None = None, power: float = 0.5
) -> Tree:
    """Two levels: a class, then a token in it; classes are bins of tokens of like frequency.

    Parameters
    ----------
    counts
        Integers [V], none negative.
    classes
        How many bins, 1 to V; None: the square root of V.
    power
        Each bin has about the same sum of counts ** power: 1 makes few words the first bins, 0
        makes equal numbers of words. 0.5 had the best perplexities (Grave et al.,
        arXiv:1609.04309, §5).

    Raises
    ------
    TypeError, ValueError
        Counts that are no such integers; classes outside [1, V].

    Notes
    -----
    Source: classes: Goodman, arXiv:cs/0108006, §3; bins of frequency: Mikolov et al., "Extensions
    of recurrent neural network language model" (ICASSP 2011), §4.

    Examples
    --------
    >>> tree = frequency_classes([64, 16, 4, 4, 1, 1, 1, 1, 1, 1], classes=3)
    >>> np.diff(tree.first).tolist()
    [3, 2, 7]
    """
    numbers = as_counts(counts, func="frequency_classes")
    size = len(numbers)
    if classes is None:
        classes = isqrt(size)
    check_integer(classes, func="frequency_classes", name="classes", low=1, high=size)
    order = np.argsort(-numbers, kind="stable")
    mass = np.cumsum(numbers[order].astype(np.float64) ** power)
    if mass[-1] == 0:
        mass = np.arange(1.0, size + 1)
    middle = mass - np.diff(mass, prepend=0.0) / 2  # a token goes where most of it lies
    labels, begin = np.empty(size, np.int64), 0
    for label in range(classes):
        # Shares of what is left: one word that is more than a share costs none of the bins.
        before, left = mass[begin - 1] if begin else 0.0, classes - label
        end = int(np.searchsorted(middle, before + (mass[-1] - before) / left))
        end = min(max(end, begin + 1), size - left + 1) if left > 1 else size
        labels[order[begin:end]] = label
        begin = end
    return from_clusters(labels)


def from_clusters(labels: npt.ArrayLike) -> Tree:
    """The tree of given clusters: a cluster, then a cluster in it and so on, then a token.

    Parameters
    ----------
    labels
        Integers [V], each token's cluster, or [V, L]: its cluster at each level, the coarsest
        first. Equal labels mean a common cluster only within a common cluster of the level before.

    Raises
    ------
    TypeError, ValueError
        Labels that are no integers, or of another shape.

    Notes
    -----
    Source: Mnih & Hinton, "A scalable hierarchical distributed language model" (NIPS 2008).

    Examples
    --------
    >>> tree = from_clusters([7, 3, 7, 3, 5])
    >>> tree.path(2), tree.path(4)
    ([(0, 2), (2, 1)], [(0, 1)])
    """
    given = np.asarray(labels)
    if given.dtype.kind not in "iu" or not given.size:
        raise TypeError(
            f"from_clusters: labels must be integers [V] or [V, L], got {describe(given)}"
        )
    given = given.reshape(len(given), -1) if given.ndim == 1 else given
    if given.ndim != 2:
        raise ValueError(f"from_clusters: labels must be [V] or [V, L], got {list(given.shape)}")
    order = np.lexsort(given.T[::-1])
    ranked = given[order]
    # Level of the first label in which a token differs from the one before it.
    differs = ranked[1:] != ranked[:-1]
    depth = given.shape[1]
    level = np.where(differs.any(axis=1), differs.argmax(axis=1), depth)

    def cut(begin: int, end: int) -> list[int]:
        inner = level[begin : end - 1]
        return [begin, *(begin + 1 + np.flatnonzero(inner == inner.min())).tolist(), end]

    return _split(len(order), [(0, len(order))], cut, order.tolist())


def _parts(begin: int, end: int, arity: int) -> list[int]:
    parts = min(arity, end - begin)
    return [begin + (end - begin) * i // parts for i in range(parts + 1)]


def _split(
    size: int,
    ranges: list[tuple[int, int]],
    cut: Callable[[int, int], list[int]],
    order: Sequence[int] | None = None,
) -> Tree:
    """Ranges of places in `order` cut into ranges, level by level."""
    nodes: list[list[int]] = []
    made = 1
    for begin, end in ranges:  # grows
        if end - begin < 2:
            continue
        bounds, entries = cut(begin, end), []
        for low, high in pairwise(bounds):
            if high - low == 1:
                entries.append(low if order is None else order[low])
            else:
                entries.append(size + made)
                made += 1
                ranges.append((low, high))
        nodes.append(entries)
    return _tree(nodes)


def _tree(nodes: list[list[int]]) -> Tree:
    lengths = np.fromiter(map(len, nodes), np.int64, len(nodes))
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    children = np.fromiter((e for entries in nodes for e in entries), np.int64, int(first[-1]))
    return Tree(first, children)  # type: ignore[arg-type]
