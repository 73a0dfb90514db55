"""Adaptive input embeddings: rare words have narrower rows, each cluster a projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import check_ids
from pynlm.layers.backprop import Once
from pynlm.layers.clusters import check_cutoffs, cluster_widths, places_by_cluster
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray, as_floats, as_ids, take
from pynlm.layers.embedding import Embedding
from pynlm.layers.linear import Linear
from pynlm.layers.parameters import Parameter, Spec

Array = npt.NDArray[Any]


class AdaptiveEmbedding:
    """`y, backprop = layer(ids, ctx)`: a narrow row for each id, projected to one width.

    Ids must fall in frequency. Cluster i (from 0) holds the ids from `cutoffs[i - 1]` to
    `cutoffs[i]` (the first: from 0; the last: to V), and its table has d_i = D // div_value^i
    columns::

        y = table_i[id - cutoffs[i - 1]] projection_i^T

    Ids are sorted by cluster once. A cluster without ids costs nothing, and its gradients stay
    unset, which counts as zero. The parameters are those of fairseq's `AdaptiveInput`, whose
    `embeddings.{i}.0.weight` and `.1.weight` are ours without the "s".

    Parameters
    ----------
    parameters
        Holds `{prefix}.{i}.0.weight` [n_i, d_i], the tables (unless tied), and
        `{prefix}.{i}.1.weight` [D, d_i], the projections.
    prefix
        For example "embedding".
    cutoffs
        As given to `specs`.
    tied
        Tables of others to use, one a cluster, such as an adaptive head's (`Adaptive.tables`); they
        may have rows beyond the cluster's, which stay untouched.

    Raises
    ------
    TypeError, ValueError
        Cutoffs that do not increase or do not fit the tables; a table and a projection that do not
        fit each other.

    Notes
    -----
    Source: Baevski & Auli, "Adaptive input representations for neural language modeling",
    arXiv:1809.10853, §3.

    Examples
    --------
    >>> from pynlm.layers import Parameters
    >>> parameters = Parameters(AdaptiveEmbedding.specs("embedding", 11, 8, (3, 6), div_value=2.0))
    >>> layer = AdaptiveEmbedding(parameters, "embedding", (3, 6))
    >>> y, backprop = layer([[1, 7, 1]], Context(train=True))
    >>> backprop(np.ones_like(y))
    >>> y.shape, [p.state for p in parameters.values()]
    ((1, 3, 8), ['rows', 'unset', 'rows', 'dense', 'unset', 'dense'])
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        prefix: str,
        cutoffs: Sequence[int] | IntArray,
        tied: Sequence[Parameter] | None = None,
    ) -> None:
        self.name = f"AdaptiveEmbedding {prefix}"
        self.cutoffs = check_cutoffs(cutoffs, 2**31, func=self.name)
        self.tables, self.projections = [], []
        for i in range(len(self.cutoffs) + 1):
            table, projection = f"{prefix}.{i}.0", f"{prefix}.{i}.1"
            own = parameters if tied is None else {f"{table}.weight": tied[i]}
            self.tables.append(Embedding(own, table))
            self.projections.append(Linear(parameters, projection))
            self._check(i, tied is not None)
        self.vocab_size = max(self.cutoffs, default=0) + len(self.tables[-1].weight.data)

    def _check(self, i: int, tied: bool) -> None:
        """Raise ValueError unless table i has its cluster's rows and its projection's width."""
        rows, width = self.tables[i].weight.data.shape
        if width != self.projections[i].weight.data.shape[1]:
            raise ValueError(
                f"{self.name}: table {i} must have the width of its projection, "
                f"{self.projections[i].weight.data.shape[1]}, got {width}"
            )
        first, *end = (0, *self.cutoffs)[i : i + 2]
        if end and rows != end[0] - first and not (tied and rows > end[0] - first):
            raise ValueError(
                f"{self.name}: table {i} must have a row for each id from {first} to "
                f"{end[0] - 1}, {end[0] - first}, got {rows}"
            )

    @staticmethod
    def specs(
        prefix: str,
        vocab_size: int,
        size: int,
        cutoffs: Sequence[int] | IntArray,
        div_value: float = 4.0,
        group: str = "embedding",
        tied: bool = False,
    ) -> list[Spec]:
        """The parameters that the layer needs, for `Parameters`.

        Parameters
        ----------
        size
            D, the width of the first table and of all outputs.
        cutoffs
            Strictly increasing, each in [1, V - 1].
        div_value
            At least 1; each table is so many times narrower than the one before it.
        tied
            Without tables, for a layer that uses a head's.

        Raises
        ------
        TypeError, ValueError
            Other cutoffs; a `div_value` that leaves a cluster no dimension.
        """
        cutoffs = check_cutoffs(cutoffs, vocab_size, func="AdaptiveEmbedding")
        widths = [size, *cluster_widths(size, len(cutoffs), div_value, func="AdaptiveEmbedding")]
        edges = (0, *cutoffs, vocab_size)
        tables = [
            Spec(f"{prefix}.{i}.0.weight", (edges[i + 1] - edges[i], width), group, True)
            for i, width in enumerate(widths)
        ]
        projections = [
            Spec(f"{prefix}.{i}.1.weight", (size, width), group) for i, width in enumerate(widths)
        ]
        return projections if tied else tables + projections

    def __call__(self, ids: object, ctx: Context) -> tuple[Array, AdaptiveEmbeddingBackprop | None]:
        """Gather rows and project them.

        Parameters
        ----------
        ids
            Integers of any shape, in [0, V); not to be changed until backprop.

        Returns
        -------
        y, backprop
            y [..., D]; `backprop(dy)` -> None adds to the gradients of tables and projections, None
            unless `ctx.train`.

        Raises
        ------
        IndexError
            An id outside [0, V).
        """
        numbers = as_ids(ids, func=self.name, name="ids")
        flat = numbers.reshape(-1)
        check_ids(flat, self.vocab_size, func=self.name, name="ids")
        weight = self.projections[0].weight
        size, pool = len(weight.data), weight.pool
        y = pool.lease((flat.size, size), weight.data.dtype)
        parts = []
        firsts, places = (0, *self.cutoffs), places_by_cluster(flat, self.cutoffs)
        layers = zip(firsts, places, self.tables, self.projections, strict=True)
        for first, rows, table, projection in layers:
            if len(rows):
                some = take(flat, rows, pool)
                some -= np.int32(first)
                x, gather = table(some, ctx)
                there = pool.bring(rows)
                y[there], project = projection(x, ctx)
                parts.append((there, gather, project))
        y = y.reshape(*numbers.shape, size)
        if not ctx.train:
            return y, None
        return y, AdaptiveEmbeddingBackprop(self.name, y.shape, y.dtype, pool, parts)


class AdaptiveEmbeddingBackprop(Once):
    """`backprop(dy)`: adds to all gradients; may be called once."""

    __slots__ = ()

    def __call__(self, dy: Array) -> None:
        """Send `dy` [..., D] back to the projections and the tables' rows."""
        shape, dtype, pool, parts = self._take()
        dy = as_floats(dy, dtype)
        if dy.shape != shape:
            raise ValueError(f"{self._name}: dy must be {list(shape)}, got {list(dy.shape)}")
        dy = dy.reshape(-1, shape[-1])
        for rows, gather, project in parts:
            gather(project(take(dy, rows, pool)))
