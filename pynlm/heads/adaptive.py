"""Adaptive softmax: frequent tokens in one small softmax, the others in clusters behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pynlm.arrays import INT32, check, check_ids, to_host
from pynlm.heads.fused import FusedHead, Gradients
from pynlm.kernels.linear import linear_backward, linear_forward
from pynlm.kernels.xent import (
    xent_entropy,
    xent_forward,
    xent_gradients,
    xent_log_prob,
    xent_sample,
    xent_top_k,
)
from pynlm.layers.clusters import check_cutoffs, cluster_widths, places_by_cluster
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray, take
from pynlm.layers.parameters import Claim, Parameter, Spec

Array = npt.NDArray[Any]


class Tail(NamedTuple):
    """A cluster: the ids from `first` on, as many as `weight` has rows."""

    first: int
    projection: Parameter
    weight: Parameter


class Adaptive(FusedHead):
    """Adaptive softmax: a rare token's probability is its cluster's times that of a softmax in it.

    Ids must fall in frequency. The head's softmax is over the `cutoffs[0]` most frequent tokens
    (the shortlist) and one entry for each of J further clusters; cluster i (from 0) holds the ids
    from `cutoffs[i]` to `cutoffs[i + 1]` (the last: to V) and sees hidden states through a
    projection to d_i = H // div_value^(i+1) dimensions::

        p(v) = p_head(v)                                 v < cutoffs[0]
        p(v) = p_head(cluster i) p_i(v)                  else
        p_head = softmax(h W_head^T + b),  p_i = softmax((h P_i^T) W_i^T)

    Tokens are sorted by cluster once; each cluster is one call of the fused exact kernel on its own
    tokens. A cluster without tokens costs nothing, and its gradient stays unset, which counts as
    zero. Names, shapes and numbers are those of `torch.nn.AdaptiveLogSoftmaxWithLoss`: its state
    dict, with the prefix before each name, is this head's.

    Parameters
    ----------
    parameters
        Holds `{prefix}.head.weight` [cutoffs[0] + J, H], `{prefix}.head.bias` (if any),
        `{prefix}.tail.{i}.0.weight` [d_i, H] and `{prefix}.tail.{i}.1.weight`
        [cutoffs[i + 1] - cutoffs[i], d_i]. The shapes say all.
    prefix
        "head" by default.

    Attributes
    ----------
    cutoffs
        As given to `specs`.
    exact_in_training
        True: the nll is exact.

    Raises
    ------
    ValueError
        A cluster's weights without those of a cluster before it.

    Notes
    -----
    Source: Grave et al., "Efficient softmax approximation for GPUs", arXiv:1609.04309, §4.3.

    Examples
    --------
    >>> from pynlm.layers import Parameters
    >>> head = Adaptive(Parameters(Adaptive.specs("head", 11, 8, cutoffs=(3, 6), div_value=2.0)))
    >>> h = np.ones((5, 8), np.float32)
    >>> nll, backprop = head(h, [0, 2, 3, 5, 10], Context(train=True))
    >>> np.exp(-nll).round(4)  # 1/5, in clusters of 3 and 5 tokens 1/15 and 1/25
    array([0.2   , 0.2   , 0.0667, 0.0667, 0.04  ], dtype=float32)
    >>> backprop(1 / 5).shape
    (5, 8)
    """

    exact_in_training = True

    def __init__(self, parameters: Mapping[str, Parameter], prefix: str = "head") -> None:
        self.weight = parameters[f"{prefix}.head.weight"]
        self.bias = parameters.get(f"{prefix}.head.bias")
        pairs: list[tuple[Parameter, Parameter]] = []
        while f"{prefix}.tail.{len(pairs)}.1.weight" in parameters:
            place = f"{prefix}.tail.{len(pairs)}"
            pairs.append((parameters[f"{place}.0.weight"], parameters[f"{place}.1.weight"]))
        own = tuple(f"{prefix}.tail.{i}." for i in range(len(pairs)))
        for name in parameters:
            if name.startswith(f"{prefix}.tail.") and not name.startswith(own):
                raise ValueError(f"Adaptive: {name} belongs to no cluster, there are {len(pairs)}")
        self.shortlist = len(self.weight.data) - len(pairs)
        tails, first = [], self.shortlist
        for projection, weight in pairs:
            tails.append(Tail(first, projection, weight))
            first += len(weight.data)
        self.tails, self.vocab_size = tuple(tails), first
        self.cutoffs = tuple(tail.first for tail in tails)
        self.name = f"Adaptive {prefix}"
        self.pool, self.dtype = self.weight.pool, self.weight.data.dtype

    @property
    def tables(self) -> list[Parameter]:
        """The weights of shortlist and clusters, which an adaptive input may share."""
        return [self.weight, *(tail.weight for tail in self.tails)]

    @staticmethod
    def specs(
        prefix: str,
        vocab_size: int,
        size: int,
        cutoffs: Sequence[int] | IntArray,
        div_value: float = 4.0,
        group: str = "head",
        bias: bool = False,
    ) -> list[Spec]:
        """The parameters that the head needs, for `Parameters`.

        Parameters
        ----------
        cutoffs
            Strictly increasing, each in [1, V - 1]; none: one exact softmax.
        div_value
            At least 1; each cluster has so many times fewer dimensions than the one before it.
        bias
            Whether the head's softmax has one; clusters have none.

        Raises
        ------
        TypeError, ValueError
            Other cutoffs; a `div_value` that leaves a cluster no dimension.
        """
        cutoffs = check_cutoffs(cutoffs, vocab_size, func="Adaptive")
        rows = (cutoffs[0] if cutoffs else vocab_size) + len(cutoffs)
        specs = [Spec(f"{prefix}.head.weight", (rows, size), group)]
        if bias:
            specs.append(Spec(f"{prefix}.head.bias", (rows,), group))
        ends = (*cutoffs, vocab_size)[1:]
        widths = cluster_widths(size, len(cutoffs), div_value, func="Adaptive")
        for i, (first, end, width) in enumerate(zip(cutoffs, ends, widths, strict=True)):
            specs.append(Spec(f"{prefix}.tail.{i}.0.weight", (width, size), group))
            specs.append(Spec(f"{prefix}.tail.{i}.1.weight", (end - first, width), group))
        return specs

    def _forward(
        self, nll: Array, loss: Array | None, h: Array, ids: IntArray, ctx: Context
    ) -> None:
        targets, clusters = self._by_cluster(ids, len(h))
        xent_forward(nll=nll, targets=targets, **self._map(h, ctx))
        for tail, rows, goals in self._in_tails(ids, clusters):
            some = self.pool.lease(rows.shape, self.dtype)
            x = take(h, rows, self.pool)
            xent_forward(nll=some, targets=goals, **self._tail_map(x, tail, ctx))
            nll[rows] += some

    def _gradients(
        self,
        nll: Array,
        loss: Array | None,
        h: Array,
        ids: IntArray,
        ctx: Context,
        weights: Array | None,
    ) -> Gradients:
        targets, clusters = self._by_cluster(ids, len(h))
        dh, dw = self.pool.like(h), self.weight.claim()
        db = None if self.bias is None else self.bias.claim()
        bias = None if self.bias is None else self.bias.data
        xent_gradients(
            nll=nll, dh=dh, dw=dw.array, db=None if db is None else db.array,
            h=h, w=self.weight.data, b=bias, targets=targets, weights=weights, backend=ctx.backend,
        )  # fmt: skip
        claims: list[Claim] = [dw] if db is None else [dw, db]
        for tail, rows, goals in self._in_tails(ids, clusters):
            some = self.pool.lease(rows.shape, self.dtype)
            x = take(h, rows, self.pool)
            y = self._project(x, tail, ctx)
            dy, dw, dp = self.pool.like(y), tail.weight.claim(), tail.projection.claim()
            xent_gradients(
                nll=some, dh=dy, dw=dw.array, h=y, w=tail.weight.data, targets=goals,
                weights=None if weights is None else take(weights, rows, self.pool),
                backend=ctx.backend,
            )  # fmt: skip
            dx = self.pool.like(x)
            linear_backward(
                dx=dx, dw=dp.array, dy=dy, x=x, w=tail.projection.data, backend=ctx.backend
            )
            nll[rows] += some
            dx += take(dh, rows, self.pool)
            dh[rows] = dx
            claims += [dw, dp]
        return Gradients(dh, claims)

    def _log_prob(self, log_prob: Array, h: Array, ctx: Context) -> None:
        head = self._head_log_prob(h, ctx)
        log_prob[:, : self.shortlist] = head[:, : self.shortlist]
        for i, tail in enumerate(self.tails, self.shortlist):
            size = len(tail.weight.data)
            some = self.pool.lease((len(h), size), self.dtype)
            xent_log_prob(log_prob=some, **self._tail_map(h, tail, ctx))
            np.add(some, head[:, i : i + 1], out=log_prob[:, tail.first : tail.first + size])

    def _top_k(self, log_prob: Array, ids: IntArray, h: Array, ctx: Context) -> None:
        # No token is more probable than its cluster, so clusters are opened from the most probable
        # one on, and only while they are as probable as the k-th best token so far.
        k = ids.shape[1]
        # A cluster that is not among so many entries is less probable than k tokens.
        count = min(k + len(self.tails), len(self.weight.data))
        entries = self.pool.lease((len(h), count), self.dtype)
        found: IntArray = self.pool.lease((len(h), count), np.int32)
        xent_top_k(log_prob=entries, ids=found, **self._map(h, ctx))
        entries, found = to_host(entries), to_host(found)
        with self._on_host(log_prob, ids) as (log_prob, ids):
            self._open_clusters(log_prob, ids, entries, found, h, ctx)

    def _open_clusters(
        self,
        log_prob: Array,
        ids: IntArray,
        entries: Array,
        found: IntArray,
        h: Array,
        ctx: Context,
    ) -> None:
        """Fill log_prob and ids, given the head's best entries; NumPy arrays but for h."""
        k = ids.shape[1]
        clusters = np.full((len(h), len(self.tails)), -np.inf, self.dtype)
        row, column = np.nonzero(found >= self.shortlist)
        clusters[row, found[row, column] - self.shortlist] = entries[row, column]
        # What is no token loses against all that are, and there are k of them.
        entries[row, column], found[row, column] = -np.inf, self.vocab_size
        log_prob.fill(-np.inf)
        ids.fill(self.vocab_size)
        broken: Array = np.logical_or.reduce(np.isnan(entries), axis=1)
        everywhere = np.arange(len(h))
        _merge(log_prob, ids, everywhere, entries, found)
        order = np.argsort(-clusters, axis=1, kind="stable")
        for rank in range(len(self.tails)):
            chosen = order[:, rank]
            wanted = clusters[everywhere, chosen] >= log_prob[:, -1]
            for i, tail in enumerate(self.tails):
                rows = np.flatnonzero(wanted & (chosen == i))
                if len(rows):
                    shape = len(rows), min(k, len(tail.weight.data))
                    some = self.pool.lease(shape, self.dtype)
                    words: IntArray = self.pool.lease(shape, np.int32)
                    x = take(h, rows, self.pool)
                    xent_top_k(log_prob=some, ids=words, **self._tail_map(x, tail, ctx))
                    some, words = to_host(some), to_host(words)
                    broken[rows] |= np.isnan(some).any(axis=1)
                    some += clusters[rows, i, None]
                    words += tail.first
                    _merge(log_prob, ids, rows, some, words)
        log_prob[broken], ids[broken] = np.nan, np.arange(k)

    def _sample(self, ids: IntArray, h: Array, rng: Context, key: dict[str, Any]) -> None:
        # An entry of the head is drawn, and if that is a cluster, a token in it.
        xent_sample(ids=ids, **key, **self._map(h, rng))
        drawn = to_host(ids) if self.pool.device else ids.copy()
        for i, tail in enumerate(self.tails, self.shortlist):
            rows = np.flatnonzero(drawn == i)
            if len(rows):
                some: IntArray = self.pool.empty((len(rows),), np.int32)
                parts = self._tail_map(take(h, rows, self.pool), tail, rng)
                given = self.pool.bring(rows.astype(np.int32))
                xent_sample(ids=some, rows=given, layer=1, **key, **parts)
                some += tail.first * (some >= 0).astype(np.int32)
                ids[self.pool.bring(rows)] = some

    def _entropy(self, entropy: Array, h: Array, ctx: Context) -> None:
        # The head's entropy, and each cluster's times its probability: all clusters are computed.
        some = self.pool.empty(entropy.shape, self.dtype)
        xent_entropy(entropy=entropy, **self._map(h, ctx))
        head = self._head_log_prob(h, ctx)
        for i, tail in enumerate(self.tails, self.shortlist):
            xent_entropy(entropy=some, **self._tail_map(h, tail, ctx))
            entropy += np.exp(head[:, i]) * some

    def _head_log_prob(self, h: Array, ctx: Context) -> Array:
        """Log-probabilities [N, shortlist + J] of shortlist and clusters."""
        log_prob = self.pool.lease((len(h), len(self.weight.data)), self.dtype)
        xent_log_prob(log_prob=log_prob, **self._map(h, ctx))
        return log_prob

    def _by_cluster(self, ids: IntArray, n: int) -> tuple[IntArray, list[npt.NDArray[np.intp]]]:
        """Targets of the head's softmax, and the rows of each cluster, rising."""
        check(ids, "N", {"N": n}, func=self.name, name="targets", dtype=INT32)
        check_ids(ids, self.vocab_size, func=self.name, name="targets")
        _, *clusters = places_by_cluster(ids, self.cutoffs)
        targets = ids.copy()
        for i, rows in enumerate(clusters, self.shortlist):
            targets[rows] = i
        return self.pool.bring(targets), clusters

    def _in_tails(
        self, ids: IntArray, clusters: list[npt.NDArray[np.intp]]
    ) -> Iterator[tuple[Tail, Array, IntArray]]:
        """Each cluster that has tokens, where these stand, and their numbers in it."""
        for tail, rows in zip(self.tails, clusters, strict=True):
            if len(rows):
                goals = take(ids, rows, self.pool)
                goals -= tail.first
                yield tail, self.pool.bring(rows), self.pool.bring(goals)

    def _map(self, h: Array, ctx: Context) -> dict[str, Any]:
        """What makes the head's logits."""
        b = None if self.bias is None else self.bias.data
        return {"h": h, "w": self.weight.for_product(len(h)), "b": b, "backend": ctx.backend}

    def _tail_map(self, x: Array, tail: Tail, ctx: Context) -> dict[str, Any]:
        """What makes the logits of a cluster."""
        w = tail.weight.for_product(len(x))
        return {"h": self._project(x, tail, ctx), "w": w, "backend": ctx.backend}

    def _project(self, x: Array, tail: Tail, ctx: Context) -> Array:
        y = self.pool.lease((len(x), len(tail.projection.data)), self.dtype)
        linear_forward(y=y, x=x, w=tail.projection.for_product(len(x)), backend=ctx.backend)
        return y


def _merge(
    log_prob: Array,
    ids: IntArray,
    rows: npt.NDArray[np.intp],
    more_log_prob: Array,
    more_ids: IntArray,
) -> None:
    """Keep in `rows` the best of what is there and of what comes in, by falling probability."""
    both = np.concatenate([log_prob[rows], more_log_prob], axis=1)
    words = np.concatenate([ids[rows], more_ids], axis=1)
    best = np.lexsort((words, -both), axis=1)[:, : log_prob.shape[1]]
    log_prob[rows] = np.take_along_axis(both, best, axis=1)
    ids[rows] = np.take_along_axis(words, best, axis=1)
