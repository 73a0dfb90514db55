"""Exact softmax over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.kernels.xent import xent_forward, xent_gradients, xent_log_prob
from pynlm.layers.backprop import Once
from pynlm.layers.context import SCORING, Context
from pynlm.layers.convert import as_floats, as_ids
from pynlm.layers.parameters import Claim, Parameter, Spec

Array = npt.NDArray[Any]


class Full:
    """Softmax cross-entropy of `h weight^T + bias`: exact, N x V logits are never stored.

    In training the gradients are computed along with the loss, in one pass over the logits: the
    weight's go straight into its unset gradient and count once backprop is called. Per-token
    weights are therefore given at the forward; `backprop(scale)` with a scale other than 1 costs
    another pass over the weight's gradient.

    Parameters
    ----------
    parameters
        Holds `{prefix}.weight` [V, H] (unless tied) and, if there is a bias, `{prefix}.bias` [V].
    tied
        An embedding's table [V, H] used as the weight.
    prefix
        "head" by default.

    Examples
    --------
    >>> from pynlm.layers import Parameters
    >>> head = Full(Parameters(Full.specs("head", vocab_size=11, size=3)))
    >>> nll, backprop = head(np.ones((5, 3), np.float32), [1, 2, 3, 4, 10], Context(train=True))
    >>> backprop(1 / 5).shape, bool(abs(nll - np.log(11)).max() < 1e-6)
    ((5, 3), True)
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        tied: Parameter | None = None,
        prefix: str = "head",
    ) -> None:
        self.weight = parameters[f"{prefix}.weight"] if tied is None else tied
        self.bias = parameters.get(f"{prefix}.bias")
        self.name = f"Full {prefix}"
        self.pool = self.weight.pool

    @staticmethod
    def specs(
        prefix: str,
        vocab_size: int,
        size: int,
        group: str = "head",
        bias: bool = True,
        tied: bool = False,
    ) -> list[Spec]:
        """The parameters that the head needs, for `Parameters`."""
        specs = [] if tied else [Spec(f"{prefix}.weight", (vocab_size, size), group)]
        return [*specs, Spec(f"{prefix}.bias", (vocab_size,), group)] if bias else specs

    def __call__(
        self, h: Array, targets: object, ctx: Context, weights: object = None
    ) -> tuple[Array, FullBackprop | None]:
        """Loss of each target.

        Parameters
        ----------
        h
            [N, H].
        targets
            Integers [N] in [0, V).
        weights
            [N], or one number for all; None means 1.

        Returns
        -------
        nll, backprop
            nll [N] in nats, not weighted; `dh = backprop(scale=1.0)`, the gradient of
            scale * sum_n weights[n] * nll[n], None unless `ctx.train`.

        Raises
        ------
        TypeError, ValueError
            Wrong kinds or shapes.
        IndexError
            A target outside [0, V).
        """
        w, b = self.weight.data, None if self.bias is None else self.bias.data
        h = as_floats(h, w.dtype)
        ids = as_ids(targets, func=self.name, name="targets")
        nll = np.empty(len(h), w.dtype)
        if not ctx.train:
            w = self.weight.for_product(len(h))
            xent_forward(nll=nll, h=h, w=w, b=b, targets=ids, backend=ctx.backend)
            return nll, None
        if weights is not None:
            weights = self._weights(weights, len(h))
        dh = self.pool.like(h)
        dw = self.weight.claim()
        db = None if self.bias is None else self.bias.claim()
        xent_gradients(
            nll=nll, dh=dh, dw=dw.array, db=None if db is None else db.array,
            h=h, w=w, b=b, targets=ids, weights=weights, backend=ctx.backend,
        )  # fmt: skip
        return nll, FullBackprop(self.name, dh, dw, db)

    def _weights(self, weights: object, n: int) -> Array:
        if isinstance(weights, np.ndarray) and weights.ndim:
            return as_floats(weights, self.weight.data.dtype)
        given = np.asarray(weights, self.weight.data.dtype)
        if given.ndim:
            return given
        full = self.pool.lease((n,), self.weight.data.dtype)
        full.fill(given)
        return full

    def log_prob(self, h: Array, ctx: Context = SCORING) -> Array:
        """Log-probabilities [N, V] in nats of all tokens after hidden states `h` [N, H]."""
        w, b = self.weight.data, None if self.bias is None else self.bias.data
        h = as_floats(h, w.dtype)
        log_prob = self.pool.lease((len(h), len(w)), w.dtype)
        w = self.weight.for_product(len(h))
        xent_log_prob(log_prob=log_prob, h=h, w=w, b=b, backend=ctx.backend)
        return log_prob


class FullBackprop(Once):
    """`dh = backprop(scale=1.0)`: commits the head's gradients; may be called once."""

    __slots__ = ()

    def __call__(self, scale: float = 1.0) -> Array:
        """Gradient [N, H] of scale * sum_n weights[n] * nll[n]."""
        dh: Array
        dw: Claim
        db: Claim | None
        dh, dw, db = self._take()
        if scale != 1.0:
            np.multiply(dh, scale, out=dh)
        dw.commit(scale)
        if db is not None:
            db.commit(scale)
        return dh
