"""Softmax down a tree over the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import check_ids
from pynlm.heads.fused import FusedHead, Gradients, RowsClaim, claim_rows
from pynlm.heads.trees import Tree
from pynlm.kernels.hsoftmax import (
    hsoftmax_forward,
    hsoftmax_gradients,
    hsoftmax_log_prob,
    hsoftmax_sample,
    hsoftmax_top_k,
)
from pynlm.kernels.queued import hsoftmax_gradients_dense
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray
from pynlm.layers.parameters import Parameter, Spec

Array = npt.NDArray[Any]

ENTROPY_BYTES = 1 << 22  # log-probabilities that `entropy` holds at a time


class Hierarchical(FusedHead):
    """The product of the probabilities of the children chosen on the way to a token: exact.

    A token costs the rows of the nodes on its path instead of V: about 13 of them in a Huffman tree
    of 267 000 words. Probabilities add up to 1 whatever the tree, so perplexities compare with
    those of other heads; but the tree is part of the model, and words that it keeps apart are
    harder to learn together.

    The weight's gradient is a set of rows, those of the nodes met. As in `Full`, gradients are
    computed along with the loss, and again for upstream gradients [N].

    Parameters
    ----------
    parameters
        Holds `{prefix}.weight` [V - 1, H] and, if there is a bias, `{prefix}.bias` [V - 1]: a node
        of k children has k - 1 rows, and its first child the logit 0.
    tree
        See `pynlm.heads.trees`.
    prefix
        "head" by default.

    Raises
    ------
    ValueError
        A tree of another number of tokens.

    Notes
    -----
    Source: Morin & Bengio, AISTATS 2005; classes: Goodman, arXiv:cs/0108006.

    Examples
    --------
    >>> from pynlm.heads.trees import huffman
    >>> from pynlm.layers import Parameters
    >>> parameters = Parameters(Hierarchical.specs("head", vocab_size=4, size=3))
    >>> head = Hierarchical(parameters, huffman([8, 4, 2, 1]))
    >>> h = np.ones((2, 3), np.float32)
    >>> nll, backprop = head(h, [0, 3], Context(train=True))
    >>> np.exp(-nll).round(3).tolist(), backprop().shape, head.weight.rows[0].tolist()
    ([0.5, 0.125], (2, 3), [0, 1, 2])
    >>> head.top_k(h, 2)[1][0].tolist()
    [0, 1]
    """

    fixed_launches = True

    def __init__(
        self, parameters: Mapping[str, Parameter], tree: Tree, prefix: str = "head"
    ) -> None:
        self.weight = parameters[f"{prefix}.weight"]
        self.bias = parameters.get(f"{prefix}.bias")
        self.name = f"Hierarchical {prefix}"
        self.pool, self.dtype = self.weight.pool, self.weight.data.dtype
        self.vocab_size = len(self.weight.data) + 1
        if tree.vocab_size != self.vocab_size:
            raise ValueError(
                f"{self.name}: tree must have V={self.vocab_size} tokens for a weight of "
                f"{self.vocab_size - 1} rows, got {tree.vocab_size}"
            )
        self.tree, self._prefix = tree, prefix
        self._links: dict[str, Array] = {}

    @staticmethod
    def specs(
        prefix: str, vocab_size: int, size: int, group: str = "head", bias: bool = True
    ) -> list[Spec]:
        """The parameters that the head needs, for `Parameters`."""
        # The sparse table comes last, so that the dense weights before it are one stretch.
        b = [Spec(f"{prefix}.bias", (vocab_size - 1,), group)] if bias else []
        return [*b, Spec(f"{prefix}.weight", (vocab_size - 1, size), group, sparse=True)]

    def constants(self) -> dict[str, Array]:
        """The tree's arrays; `stored_tree` reads them."""
        names = tree_names(self._prefix)
        return dict(zip(names, (self.tree.first, self.tree.children), strict=True))

    def _forward(
        self, nll: Array, loss: Array | None, h: Array, ids: IntArray, ctx: Context
    ) -> None:
        hsoftmax_forward(
            nll=nll, targets=self._there(ids), **self._tree("first", "parent"), **self._map(h, ctx)
        )

    def _gradients(
        self,
        nll: Array,
        loss: Array | None,
        h: Array,
        ids: IntArray,
        ctx: Context,
        weights: Array | None,
    ) -> Gradients:
        if self.pool.device is not None:
            return self._gradients_dense(nll, h, ids, ctx, weights)
        check_ids(ids, self.vocab_size, func=self.name, name="targets")
        size = self.weight.data.shape[1]
        room = min(self.vocab_size - 1, int(self.tree.cost[ids].sum()))
        rows: IntArray = self.pool.lease((room,), np.int32)
        drows = self.pool.lease((room, size), self.dtype)
        db = None if self.bias is None else self.pool.lease((room,), self.dtype)
        dh = self.pool.like(h)
        count = hsoftmax_gradients(
            nll=nll, dh=dh, rows=rows, drows=drows, db=db, targets=self._there(ids),
            weights=weights, **self._tree("first", "parent"), **self._map(h, ctx),
        )  # fmt: skip
        dw = RowsClaim(self.weight, rows[:count], drows[:count])
        if self.bias is None or db is None:
            return Gradients(dh, [dw])
        return Gradients(dh, [dw, claim_rows(self.bias, rows[:count], db[:count])])

    def _gradients_dense(
        self, nll: Array, h: Array, ids: IntArray, ctx: Context, weights: Array | None
    ) -> Gradients:
        """`_gradients` on a GPU, where nobody waits for the number of rows."""
        given = {**self._tree("first", "parent"), **self._map(h, ctx)}
        del given["backend"]
        dh, dw = self.pool.like(h), self.weight.claim()
        db = None if self.bias is None else self.bias.claim()
        hsoftmax_gradients_dense(
            nll=nll, dh=dh, dw=dw.array, db=None if db is None else db.array,
            targets=self._there(ids), weights=weights, **given,
        )  # fmt: skip
        return Gradients(dh, [dw] if db is None else [dw, db])

    def _map(self, h: Array, ctx: Context) -> dict[str, Any]:
        b = None if self.bias is None else self.bias.data
        return {"h": h, "w": self.weight.data, "b": b, "backend": ctx.backend}

    def _down(self, h: Array, ctx: Context) -> dict[str, Any]:
        """What a walk from the root down needs."""
        return {**self._tree("first", "children"), **self._map(h, ctx)}

    def _tree(self, *names: str) -> dict[str, Any]:
        """Arrays of the tree where the weights are."""
        for name in names:
            if name not in self._links:
                self._links[name] = self.pool.bring(getattr(self.tree, name))
        return {name: self._links[name] for name in names}

    def _log_prob(self, log_prob: Array, h: Array, ctx: Context) -> None:
        hsoftmax_log_prob(log_prob=log_prob, **self._down(h, ctx))

    def _top_k(self, log_prob: Array, ids: IntArray, h: Array, ctx: Context) -> None:
        hsoftmax_top_k(log_prob=log_prob, ids=ids, **self._down(h, ctx))

    def _sample(self, ids: IntArray, h: Array, rng: Context, key: dict[str, Any]) -> None:
        hsoftmax_sample(ids=ids, **key, **self._down(h, rng))

    def _entropy(self, entropy: Array, h: Array, ctx: Context) -> None:
        block = max(1, ENTROPY_BYTES // (self.vocab_size * self.dtype.itemsize))
        for n in range(0, len(h), block):
            log_prob = self.log_prob(h[n : n + block], ctx)
            p = np.exp(log_prob, out=self.pool.like(log_prob))
            entropy[n : n + block] = -np.multiply(p, log_prob, out=p).sum(axis=1, dtype=np.float64)


def tree_names(prefix: str) -> tuple[str, str]:
    """What the tree's `first` and `children` are called among a model's arrays."""
    return f"{prefix}.tree.first", f"{prefix}.tree.children"


def stored_tree(arrays: Mapping[str, Array], prefix: str = "head") -> Tree | None:
    """The tree among a saved model's arrays; None if there is none.

    Raises
    ------
    ValueError
        The arrays are no tree.
    """
    first, children = map(arrays.get, tree_names(prefix))
    return None if first is None or children is None else Tree(first, children)
