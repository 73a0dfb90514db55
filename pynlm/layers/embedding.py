"""Embedding layer: rows of a table, with a row-sparse gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import check_ids
from pynlm.kernels.embedding import embedding_backward, embedding_forward
from pynlm.kernels.queued import embedding_backward_dense
from pynlm.layers.backprop import Once
from pynlm.layers.context import Context
from pynlm.layers.convert import as_floats, as_ids
from pynlm.layers.parameters import Parameter, Spec

Array = npt.NDArray[Any]


class Embedding:
    """`y, backprop = layer(ids, ctx)`: row `ids[...]` of `weight` [V, D] for each id.

    Parameters
    ----------
    parameters
        Holds `{prefix}.weight`.
    prefix
        For example "embedding".

    Examples
    --------
    >>> from pynlm.layers import Parameters
    >>> layer = Embedding(Parameters(Embedding.specs("embedding", 10, 4)), "embedding")
    >>> y, backprop = layer([[1, 7, 1]], Context(train=True))
    >>> backprop(np.ones_like(y))
    >>> layer.weight.rows[0].tolist()
    [1, 7]
    """

    def __init__(self, parameters: Mapping[str, Parameter], prefix: str) -> None:
        self.weight = parameters[f"{prefix}.weight"]
        self.name = f"Embedding {prefix}"

    @staticmethod
    def specs(
        prefix: str, vocab_size: int, size: int, group: str = "embedding", sparse: bool = True
    ) -> list[Spec]:
        """The parameter that the layer needs; `sparse=False` for a table tied to a head."""
        return [Spec(f"{prefix}.weight", (vocab_size, size), group, sparse)]

    def __call__(self, ids: object, ctx: Context) -> tuple[Array, EmbeddingBackprop | None]:
        """Gather rows.

        Parameters
        ----------
        ids
            Integers of any shape, in [0, V); not to be changed until backprop.

        Returns
        -------
        y, backprop
            y [..., D]; `backprop(dy)` -> None adds rows to the table's gradient, None unless
            `ctx.train`.

        Raises
        ------
        IndexError
            An id outside [0, V).
        """
        numbers = as_ids(ids, func=self.name, name="ids")
        w, pool = self.weight.data, self.weight.pool
        flat = numbers.reshape(-1)
        if pool.device is not None:
            # Here, because kernels on a GPU do not look at ids.
            check_ids(flat, len(w), func=self.name, name="ids")
            flat = pool.bring(flat)
        y = pool.lease((*numbers.shape, w.shape[1]), w.dtype)
        embedding_forward(y=y.reshape(flat.size, w.shape[1]), ids=flat, w=w, backend=ctx.backend)
        if not ctx.train:
            return y, None
        return y, EmbeddingBackprop(self.name, self.weight, flat, y.shape, ctx)


class EmbeddingBackprop(Once):
    """`backprop(dy)`: adds to the table's gradient; may be called once."""

    __slots__ = ()

    def __call__(self, dy: Array) -> None:
        """Sum `dy` [..., D] over equal ids and add the sums to the table's gradient."""
        weight, ids, shape, ctx = self._take()
        dy = as_floats(dy, weight.data.dtype)
        if dy.shape != shape:
            raise ValueError(f"{self._name}: dy must be {list(shape)}, got {list(dy.shape)}")
        dy = dy.reshape(ids.size, shape[-1])
        if weight.pool.device is not None:
            with weight.target() as dw:
                embedding_backward_dense(dw=dw, ids=ids, dy=dy)
            return
        rows = weight.pool.lease(ids.shape, np.int32)
        drows = weight.pool.like(dy)
        n = embedding_backward(rows=rows, drows=drows, ids=ids, dy=dy, backend=ctx.backend)
        weight.add_rows(rows[:n], drows[:n])
