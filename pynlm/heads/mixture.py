"""Mixture of softmaxes over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import INT32, check, check_ids, check_integer, to_host
from pynlm.heads.full import Full
from pynlm.heads.fused import FusedHead, Gradients
from pynlm.kernels.linear import linear_backward, linear_forward
from pynlm.kernels.xent import xent_log_prob, xent_sample
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray, take
from pynlm.layers.parameters import Parameter, Spec

Array = npt.NDArray[Any]

MOST_EXPERTS = 1000
_ROWS = 128  # of the experts at a time, where all log-probabilities are needed


class Mixture(FusedHead):
    """Mixture of K softmaxes that share their weight: exact, N x K x V logits are never stored.

    With e_k = tanh(latent_k h + b_k) and pi = softmax(prior h)::

        p(v | h) = sum_k pi_k softmax(weight e_k + bias)_v

    The log-probabilities have no low rank, as those of one softmax have. K experts cost what K rows
    cost the exact softmax, and a third more in training: the gradient of -log p with respect to the
    logits of expert k is its share of the target's probability, gamma_k, times that of its own
    softmax, and the shares are known only after a pass of losses. In memory it adds 2 K [N, H].

    Parameters
    ----------
    parameters
        Holds `{prefix}.latent.weight` [K * H, H] and `.bias` [K * H], `{prefix}.prior.weight`
        [K, H], `{prefix}.weight` [V, H] (unless tied) and, if there is a bias, `{prefix}.bias` [V].
    tied
        An embedding's table [V, H] used as the weight.
    prefix
        "head" by default.
    temperature
        Divides the experts' logits (not the prior's), in training and in all that the head says;
        the attribute may be set between calls.

    Attributes
    ----------
    experts
        K.
    softmax
        The `Full` that all experts share.

    Raises
    ------
    TypeError, ValueError
        A temperature that is no number above 0.

    Notes
    -----
    Source: Yang et al., "Breaking the softmax bottleneck", arXiv:1711.03953, §2.4; its code's prior
    has no bias, too.

    Examples
    --------
    >>> from pynlm.layers import Parameters
    >>> head = Mixture(Parameters(Mixture.specs("head", vocab_size=11, size=3, experts=2)))
    >>> h = np.ones((5, 3), np.float32)
    >>> nll, backprop = head(h, [1, 2, 3, 4, 10], Context(train=True))
    >>> backprop(1 / 5).shape, bool(abs(nll - np.log(11)).max() < 1e-6)
    ((5, 3), True)
    >>> log_prob, ids = head.top_k(h, 3)
    >>> ids[0].tolist(), head.sample(h, Context(train=False, seed=1)).tolist()
    ([0, 1, 2], [9, 1, 7, 8, 2])
    """

    fixed_launches = True

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        tied: Parameter | None = None,
        prefix: str = "head",
        *,
        temperature: float = 1.0,
    ) -> None:
        self.latent = parameters[f"{prefix}.latent.weight"]
        self.latent_bias = parameters[f"{prefix}.latent.bias"]
        self.prior = parameters[f"{prefix}.prior.weight"]
        self.softmax = Full(parameters, tied, prefix, temperature=temperature)
        self.name = self.softmax.name = f"Mixture {prefix}"
        self.pool, self.dtype = self.softmax.pool, self.softmax.dtype
        self.vocab_size, self.experts = self.softmax.vocab_size, len(self.prior.data)

    @staticmethod
    def specs(
        prefix: str,
        vocab_size: int,
        size: int,
        experts: int,
        group: str = "head",
        bias: bool = True,
        tied: bool = False,
    ) -> list[Spec]:
        """The parameters that the head needs, for `Parameters`.

        Raises
        ------
        TypeError, ValueError
            `experts` is no integer from 1 to 1000.
        """
        check_integer(experts, func="Mixture", name="experts", low=1, high=MOST_EXPERTS)
        return [
            Spec(f"{prefix}.latent.weight", (experts * size, size), group),
            Spec(f"{prefix}.latent.bias", (experts * size,), group),
            Spec(f"{prefix}.prior.weight", (experts, size), group),
            *Full.specs(prefix, vocab_size, size, group, bias, tied),
        ]

    @property
    def temperature(self) -> float:
        """See the class."""
        return self.softmax.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.softmax.temperature = value

    # ---- training

    def _forward(
        self, nll: Array, loss: Array | None, h: Array, ids: IntArray, ctx: Context
    ) -> None:
        self._joint(nll, h, ids, ctx)

    def draw(self, ids: IntArray, seed: int, step: int) -> dict[str, Array]:
        """Targets of the experts' rows; see `Head.draw`."""
        return {"targets": np.repeat(ids, self.experts)}

    def _repeated(self, ids: IntArray, ctx: Context) -> IntArray:
        """Targets [N * K], for a graph where kernels read them."""
        drawn = self.draw(ids, ctx.seed, 0) if ctx.drawn is None else ctx.drawn
        repeated: IntArray = drawn["targets"]
        return repeated

    def _joint(self, nll: Array, h: Array, ids: IntArray, ctx: Context) -> tuple[Array, Array]:
        """Fill nll; the experts' inputs [N * K, H] and log(pi_k p_k(target)) [N, K]."""
        e = self._experts(h, ctx)
        # Here, because the kernel would name positions among N * K.
        check(ids, "N", {"N": len(h)}, func=self.name, name="targets", dtype=INT32)
        check_ids(ids, self.vocab_size, func=self.name, name="targets")
        each = self.pool.lease((len(e),), self.dtype)
        self.softmax._forward(each, None, e, self._repeated(ids, ctx), ctx)
        joint = self._log_prior(h, ctx) - each.reshape(-1, self.experts)
        np.negative(_log_sum(joint), out=nll)
        return e, joint

    def _gradients(
        self,
        nll: Array,
        loss: Array | None,
        h: Array,
        ids: IntArray,
        ctx: Context,
        weights: Array | None,
    ) -> Gradients:
        e, joint = self._joint(nll, h, ids, ctx)
        shares = np.exp(joint + nll[:, None])
        prior = np.exp(self._log_prior(h, ctx))
        if weights is not None:
            shares *= weights[:, None]
            prior *= weights[:, None]
        each = self.pool.lease((len(e),), self.dtype)
        made = self.softmax._gradients(
            each, None, e, self._repeated(ids, ctx), ctx, shares.reshape(-1)
        )
        # Through the tanh, in place: e is not needed any more.
        np.multiply(e, e, out=e)
        np.subtract(1, e, out=e)
        np.multiply(made.dh, e, out=made.dh)
        dh, more = self.pool.like(h), self.pool.like(h)
        latent, bias, prior_claim = (
            self.latent.claim(),
            self.latent_bias.claim(),
            self.prior.claim(),
        )
        de = made.dh.reshape(len(h), len(self.latent.data))
        linear_backward(
            dx=dh, dw=latent.array, db=bias.array, dy=de, x=h, w=self.latent.data,
            backend=ctx.backend,
        )  # fmt: skip
        linear_backward(
            dx=more, dw=prior_claim.array, dy=prior - shares, x=h, w=self.prior.data,
            backend=ctx.backend,
        )  # fmt: skip
        np.add(dh, more, out=dh)
        return Gradients(dh, [*made.claims, latent, bias, prior_claim])

    def _experts(self, h: Array, ctx: Context) -> Array:
        """The softmaxes' inputs e [N * K, H], expert after expert of each row."""
        sizes = {"dtype": self.dtype, "H": self.latent.data.shape[1]}
        check(h, "N H", sizes, func=self.name, name="h")
        e = self.pool.lease((len(h), len(self.latent.data)), self.dtype)
        w = self.latent.for_product(len(h))
        linear_forward(y=e, x=h, w=w, b=self.latent_bias.data, backend=ctx.backend)
        np.tanh(e, out=e)
        return e.reshape(-1, h.shape[1])

    def _log_prior(self, h: Array, ctx: Context) -> Array:
        """log pi [N, K]."""
        log_prior = self.pool.empty((len(h), self.experts), self.dtype)
        w = self.prior.for_product(len(h))
        xent_log_prob(log_prob=log_prior, h=h, w=w, backend=ctx.backend)
        return log_prior

    # ---- predictions

    def _log_prob(self, log_prob: Array, h: Array, ctx: Context) -> None:
        for rows, block in self._blocks(h, ctx):
            log_prob[rows] = block

    def _top_k(self, log_prob: Array, ids: IntArray, h: Array, ctx: Context) -> None:
        k = ids.shape[1]
        with self._on_host(log_prob, ids) as (log_prob, ids):
            for rows, block in self._blocks(h, ctx):
                block = to_host(block)
                least = np.partition(block, self.vocab_size - k, axis=1)[:, self.vocab_size - k]
                for n, (row, bound) in enumerate(zip(block, least, strict=True), start=rows.start):
                    # Not fewer than k: all that are as probable as the last of them.
                    some = np.flatnonzero(~(row < bound))
                    ids[n] = some[np.argsort(-row[some], kind="stable")[:k]]
                    log_prob[n] = row[ids[n]]

    def _sample(self, ids: IntArray, h: Array, rng: Context, key: dict[str, Any]) -> None:
        e = self._experts(h, rng)
        chosen: IntArray = self.pool.empty((len(h),), np.int32)
        # Layer 1 keeps the experts' random numbers apart from the tokens'.
        w = self.prior.for_product(len(h))
        xent_sample(ids=chosen, h=h, w=w, layer=1, backend=rng.backend, **key)
        rows = np.arange(len(h)) * self.experts + self._drawn(chosen)
        drawn = self.softmax.sample(take(e, rows, self.pool), rng)
        self.pool.load(ids, drawn)

    def _entropy(self, entropy: Array, h: Array, ctx: Context) -> None:
        for rows, block in self._blocks(h, ctx):
            entropy[rows] = -(np.exp(block) * block).sum(axis=1, dtype=np.float64)

    def _blocks(self, h: Array, ctx: Context) -> Iterator[tuple[slice, Array]]:
        """Some rows, and their log-probabilities [rows, V]."""
        size = max(_ROWS // self.experts, 1)
        for first in range(0, len(h), size):
            some = h[first : first + size]
            each = self.softmax.log_prob(self._experts(some, ctx), ctx)
            each = each.reshape(len(some), self.experts, self.vocab_size)
            each += self._log_prior(some, ctx)[:, :, None]
            yield slice(first, first + len(some)), _log_sum(each)


def _log_sum(x: Array) -> Array:
    """log sum exp over axis 1, the experts'."""
    top = x.max(axis=1, keepdims=True)
    total: Array = np.log(np.exp(x - top).sum(axis=1)) + top[:, 0]
    return total
