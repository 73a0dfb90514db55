"""Heads of a model as ONNX nodes: log-probabilities of all tokens."""

from __future__ import annotations

import numpy as np

from pynlm.arrays import Array
from pynlm.heads import Adaptive, Full, Head, Hierarchical, Mixture
from pynlm.onnx.graph import Graph, whole


def add_log_prob(g: Graph, head: Head, h: str) -> str:
    """Nodes that compute `head.log_prob(h)`.

    Parameters
    ----------
    g
        Where they go.
    h
        Name of the hidden states [N, H].

    Returns
    -------
    str
        Name of the log-probabilities [N, V] in nats.

    Raises
    ------
    TypeError
        A head that is none of `pynlm.heads`.
    """
    if isinstance(head, Full):
        return _full(g, head, h)
    if isinstance(head, Adaptive):
        return _adaptive(g, head, h)
    if isinstance(head, Mixture):
        return _mixture(g, head, h)
    if isinstance(head, Hierarchical):
        return _hierarchical(g, head, h)
    raise TypeError(f"add_log_prob: head must be one of pynlm.heads, got {type(head).__name__}")


def _logits(g: Graph, head: Full | Adaptive | Hierarchical, h: str) -> str:
    bias = [] if head.bias is None else [head.bias]
    return g("Gemm", h, head.weight, *bias, transB=1)


def _full(g: Graph, head: Full, h: str) -> str:
    logits = _logits(g, head, h)
    if head.temperature != 1:  # no factor of Gemm, which is a float32 in any case
        logits = g("Div", logits, g.number(head.temperature))
    return g("LogSoftmax", logits, axis=1)


def _adaptive(g: Graph, head: Adaptive, h: str) -> str:
    first = g("LogSoftmax", _logits(g, head, h), axis=1)
    sizes = [head.shortlist, *(1 for _ in head.tails)]
    short, *clusters = g.several("Split", len(sizes), first, whole(*sizes), axis=1)
    parts = [short]
    for tail, cluster in zip(head.tails, clusters, strict=True):
        narrow = g("Gemm", h, tail.projection, transB=1)
        own = g("LogSoftmax", g("Gemm", narrow, tail.weight, transB=1), axis=1)
        parts.append(g("Add", own, cluster))
    return g("Concat", *parts, axis=1)


def _mixture(g: Graph, head: Mixture, h: str) -> str:
    size = head.prior.data.shape[1]
    experts = g("Tanh", g("Gemm", h, head.latent, head.latent_bias, transB=1))
    each = _full(g, head.softmax, g("Reshape", experts, whole(-1, size)))
    each = g("Reshape", each, whole(-1, head.experts, head.vocab_size))
    prior = g("LogSoftmax", g("Gemm", h, head.prior, transB=1), axis=1)
    joint = g("Add", each, g("Unsqueeze", prior, whole(2)))
    return g("ReduceLogSumExp", joint, axes=[1], keepdims=0)


def _hierarchical(g: Graph, head: Hierarchical, h: str) -> str:
    """Each node's log-softmax, then sums down the tree, one level of all paths after another."""
    tree, vocabulary = head.tree, head.vocab_size
    first, children = tree.first.astype(np.int64), tree.children.astype(np.int64)
    arity = np.diff(first)
    # Column V - 1: the logit 0 of a first child; column V: of children that are not there.
    ends = whole(0, 0, 0, 1)
    z = g("Pad", _logits(g, head, h), ends, g.number(0))
    z = g("Pad", z, ends, g.number(-np.inf))
    # Nodes in a few groups, by arity rounded up to a power of two. A node of k children has the
    # rows first - m to first - m + k - 2.
    width = 1 << np.ceil(np.log2(arity)).astype(np.int64)
    edge = np.empty(len(children), np.int64)  # column of each child among all edges
    groups, start = [], 0
    for k in np.unique(width).tolist():
        nodes = np.flatnonzero(width == k)
        child = np.arange(k)
        rows = (first[nodes] - nodes - 1)[:, None] + child
        rows[:, 0] = vocabulary - 1
        there = child < arity[nodes, None]
        rows[~there] = vocabulary
        log_p = g("LogSoftmax", g("Gather", z, rows, axis=1), axis=2)
        groups.append(g("Reshape", log_p, whole(-1, rows.size)))
        columns = start + np.arange(rows.size).reshape(rows.shape)
        edge[(first[nodes, None] + child)[there]] = columns[there]
        start += rows.size
    edges = g("Concat", *groups, axis=1)
    # Entries of a level, as children of the nodes of the level above it.
    levels, order = [], []
    places = np.arange(arity[0])  # in `children`, of the entries of this level
    level = g("Gather", edges, edge[places], axis=1)
    while len(places):
        levels.append(level)
        order.append(children[places])
        above = np.flatnonzero(children[places] >= vocabulary)
        nodes = children[places][above] - vocabulary
        places = np.concatenate([np.arange(first[m], first[m + 1]) for m in nodes] or [nodes])
        if len(places):
            parents = g("Gather", level, np.repeat(above, arity[nodes]), axis=1)
            level = g("Add", parents, g("Gather", edges, edge[places], axis=1))
    return g("Gather", g("Concat", *levels, axis=1), _places(order, vocabulary), axis=1)


def _places(order: list[Array], vocabulary: int) -> Array:
    """Where each token stands among the entries."""
    entries = np.concatenate(order)
    found = np.flatnonzero(entries < vocabulary)
    places = np.empty(vocabulary, np.int64)
    places[entries[found]] = found
    return places
