"""Exact softmax over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from pynlm.arrays import check_number
from pynlm.heads.fused import FusedHead, Gradients
from pynlm.kernels.xent import (
    xent_entropy,
    xent_forward,
    xent_gradients,
    xent_log_prob,
    xent_sample,
    xent_top_k,
)
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray
from pynlm.layers.parameters import Parameter, Spec

Array = npt.NDArray[Any]


class Full(FusedHead):
    """Softmax cross-entropy of `h weight^T + bias`: exact, N x V logits are never stored.

    In training the gradients are computed along with the loss, in one pass over the logits: the
    weight's go straight into its unset gradient and count once backprop is called. Per-token
    weights are therefore given at the forward; `backprop(scale)` with a number other than 1 costs
    another pass over the weight's gradient, with numbers [N] the whole computation again.

    Parameters
    ----------
    parameters
        Holds `{prefix}.weight` [V, H] (unless tied) and, if there is a bias, `{prefix}.bias` [V].
    tied
        An embedding's table [V, H] used as the weight.
    prefix
        "head" by default.
    label_smoothing
        Share e, 0 to 1, of the training loss that is the mean over all tokens' losses (Szegedy et
        al., arXiv:1512.00567, §7): (1 - e) nll + e mean_v(-log p_v).
    z_loss
        Coefficient of (log Z)^2 in the training loss, Z the sum of the exponential logits (PaLM,
        Chowdhery et al., arXiv:2204.02311, §5, has 1e-4).
    temperature
        Divides the logits, in training and in all that the head says; the attribute may be set
        between calls.
    gradient_filter
        Above 0, gradients are approximate: words less probable than this after all tokens of a
        block of 128 get none and give none (Wijmans et al., arXiv:2411.09009, §4.3; see
        `kernels.xent_gradients`). Losses stay exact. It is no rounding (`python -m
        bench.filter`): of 81k words, at perplexity 4284, 2^-12 makes the kernel 2.8 times as fast
        and dh up to 43 % wrong (norm of the difference), at perplexity 204 1.6 times and 9 %. Of
        10k words it gains less, and 2^-16 makes it slower.

    Attributes
    ----------
    exact_in_training
        True: the nll is exact whatever the training loss.

    Raises
    ------
    TypeError, ValueError
        An option that is no number or out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from pynlm.layers import Parameters
    >>> head = Full(Parameters(Full.specs("head", vocab_size=11, size=3)))
    >>> h = np.ones((5, 3), np.float32)
    >>> nll, backprop = head(h, [1, 2, 3, 4, 10], Context(train=True))
    >>> backprop(1 / 5).shape, bool(abs(nll - np.log(11)).max() < 1e-6)
    ((5, 3), True)
    >>> log_prob, ids = head.top_k(h, 3)
    >>> ids[0].tolist(), head.sample(h, Context(train=False, seed=1)).tolist()
    ([0, 1, 2], [9, 1, 7, 8, 2])
    """

    exact_in_training = True
    fixed_launches: bool = True

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        tied: Parameter | None = None,
        prefix: str = "head",
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        temperature: float = 1.0,
        gradient_filter: float = 0.0,
    ) -> None:
        self.weight = parameters[f"{prefix}.weight"] if tied is None else tied
        self.bias = parameters.get(f"{prefix}.bias")
        func = type(self).__name__
        self.name = f"{func} {prefix}"
        self.pool, self.dtype = self.weight.pool, self.weight.data.dtype
        self.vocab_size = len(self.weight.data)
        check_number(label_smoothing, func=func, name="label_smoothing", low=0.0, high=1.0)
        check_number(z_loss, func=func, name="z_loss", low=0.0)
        check_number(temperature, func=func, name="temperature", low=0.0, low_open=True)
        check_number(gradient_filter, func=func, name="gradient_filter", low=0.0, high=1.0)
        self.label_smoothing, self.z_loss, self.temperature = label_smoothing, z_loss, temperature
        self.gradient_filter = gradient_filter

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

    @property
    def _penalised(self) -> bool:
        return bool(self.label_smoothing or self.z_loss)

    def _forward(
        self, nll: Array, loss: Array | None, h: Array, ids: IntArray, ctx: Context
    ) -> None:
        xent_forward(
            nll=nll, loss=loss, targets=self._there(ids), **self._map(h, ctx), **self._penalties()
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
        dh = self.pool.like(h)
        dw = self.weight.claim()
        db = None if self.bias is None else self.bias.claim()
        xent_gradients(
            nll=nll, loss=loss, dh=dh, dw=dw.array, db=None if db is None else db.array,
            targets=self._there(ids), weights=weights, gradient_filter=self.gradient_filter,
            **self._map(h, ctx), **self._penalties(),
        )  # fmt: skip
        return Gradients(dh, [dw] if db is None else [dw, db])

    def _map(self, h: Array, ctx: Context, w: Array | None = None) -> dict[str, Any]:
        """What makes the logits; of `w` if given, else of the weights for products."""
        b = None if self.bias is None else self.bias.data
        parts = {"h": h, "w": self.weight.for_product(len(h)) if w is None else w, "b": b}
        return {**parts, "temperature": self.temperature, "backend": ctx.backend}

    def _penalties(self) -> dict[str, Any]:
        return {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}

    def _log_prob(self, log_prob: Array, h: Array, ctx: Context) -> None:
        xent_log_prob(log_prob=log_prob, **self._map(h, ctx))

    def _top_k(self, log_prob: Array, ids: IntArray, h: Array, ctx: Context) -> None:
        xent_top_k(log_prob=log_prob, ids=ids, **self._map(h, ctx))

    def _sample(self, ids: IntArray, h: Array, rng: Context, key: dict[str, Any]) -> None:
        xent_sample(ids=ids, **key, **self._map(h, rng))

    def _entropy(self, entropy: Array, h: Array, ctx: Context) -> None:
        xent_entropy(entropy=entropy, **self._map(h, ctx))
