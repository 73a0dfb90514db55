"""What a model asks of its output layer, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pynlm.arrays import check_ids, check_integer, describe, ndim_of, on_device, to_host
from pynlm.layers.backprop import Once
from pynlm.layers.context import SCORING, Context
from pynlm.layers.convert import IntArray, as_exact_floats, as_floats, as_ids, take
from pynlm.layers.pool import Pool

Array = npt.NDArray[Any]

REDUCTIONS = ("none", "sum", "mean")


class HeadBackprop(Protocol):
    """`dh = backprop(scale=1.0)`; may be called once."""

    def __call__(self, scale: float | Array = 1.0) -> Array:
        """Gradient [N, H] of sum_n scale * weights[n] * loss[n]; adds to the parameters'.

        `scale` is one number or an upstream gradient for each token, [N]. The latter cannot be
        applied to gradients that were summed in the forward pass: it computes them again.
        """
        ...


class Head(Protocol):
    """Next-token distribution of hidden states: what it costs to learn it, and what it says.

    `nll, backprop = head(h, targets, ctx, weights=None)` is all that training needs; the rest is
    for other losses, for scoring and for generation. Every distribution here adds up to 1. Targets
    are NumPy arrays; results are where `h` is, but for the tokens of `sample`.

    Attributes
    ----------
    exact_in_training
        Whether the first result of a call in training is the exact nll. Else it is the head's own
        estimate, which is no likelihood and must not be called a perplexity (sampled heads).
    learns_likelihood
        Whether training approaches the distribution of the text. Else (negative sampling) the head
        has no perplexity worth the name, and evaluation refuses it.
    fixed_launches
        Whether a training step on a GPU is the same launches for all targets, so that it can be a
        CUDA graph: else Python decides by the targets how many there are, and how large.
    """

    exact_in_training: bool
    learns_likelihood: bool
    fixed_launches: bool

    def __call__(
        self, h: Array, targets: object, ctx: Context, weights: object = None
    ) -> tuple[Array, HeadBackprop | None]:
        """nll [N] in nats, unweighted; backprop of the training loss, None unless `ctx.train`.

        The nll is neither smoothed nor penalised, whatever the training loss is, and outside
        training always exact. `ctx` also says where a head's random choices stand.
        """
        ...

    def loss(
        self,
        h: Array,
        targets: object,
        ctx: Context,
        weights: object = None,
        *,
        ignore_index: int | None = -100,
        reduction: str = "mean",
    ) -> tuple[float | Array, HeadBackprop | None]:
        """The training loss itself, reduced; see `BaseHead.loss`."""
        ...

    def log_prob(self, h: Array, ctx: Context = SCORING) -> Array:
        """Log-probabilities [N, V] in nats; each row's exponentials add up to 1."""
        ...

    def top_k(self, h: Array, k: int, ctx: Context = SCORING) -> tuple[Array, IntArray]:
        """Log-probabilities [N, k] in nats, falling, and ids [N, k] of the most probable tokens."""
        ...

    def sample(self, h: Array, rng: Context) -> IntArray:
        """One token id for each row, int32 [N]; `rng`'s seed, step and time0 say which."""
        ...

    def entropy(self, h: Array, ctx: Context = SCORING) -> Array:
        """Entropies [N] in nats; NotImplementedError where there is no exact way to them."""
        ...

    def constants(self) -> dict[str, Array]:
        """Arrays by name that belong to the model without being learnt: a tree, for example."""
        ...

    def draw(self, ids: IntArray, seed: int, step: int) -> dict[str, Array]:
        """NumPy arrays by name that a training step on targets `ids` [N] takes from the host.

        With `fixed_launches` they always have the same shapes; a context may bring them
        (`Context.drawn`).
        """
        ...


class BaseHead:
    """What users call, over what a subclass fills in.

    Here stand reduction, weights and ignored targets over `_losses`, and the distribution over
    `_log_prob`, `_top_k`, `_sample` and `_entropy`. A subclass sets `name`, `pool`, `dtype`,
    `vocab_size`.
    """

    learns_likelihood = True
    fixed_launches = False

    name: str
    pool: Pool
    dtype: np.dtype[Any]
    vocab_size: int

    def constants(self) -> dict[str, Array]:
        """None; see `Head.constants`."""
        return {}

    def draw(self, ids: IntArray, seed: int, step: int) -> dict[str, Array]:
        """None; see `Head.draw`."""
        return {}

    def _losses(
        self, h: Array, ids: IntArray, ctx: Context, weights: Array | None, *, gradients: bool
    ) -> tuple[Array, HeadBackprop | None]:
        """Training loss [N] of each token, unweighted, and its backprop if `ctx.train`.

        `gradients=False`: they are wanted for upstream gradients not known yet.
        """
        raise NotImplementedError

    def loss(
        self,
        h: Array,
        targets: object,
        ctx: Context,
        weights: object = None,
        *,
        ignore_index: int | None = -100,
        reduction: str = "mean",
    ) -> tuple[float | Array, HeadBackprop | None]:
        """The loss that training minimises, reduced as `torch.nn.functional.cross_entropy` does.

        Parameters
        ----------
        h
            [N, H].
        targets
            Integers [N], each in [0, V) or `ignore_index`.
        ctx
            `train` decides whether a backprop is returned.
        weights
            [N], or one number for all; None means 1. (torch's `weight` is one number a class; for
            it give `weight[targets]`.)
        ignore_index
            Tokens with this target cost nothing and have loss and gradient 0; None ignores none.
        reduction
            "none": weights[n] * loss[n], [N]. "sum": their sum. "mean": their sum divided by the
            sum of the weights of the tokens that are not ignored; 0, with gradients of 0, where
            that sum is 0 (all are ignored).

        Returns
        -------
        loss, backprop
            A float, or [N]; and `dh = backprop(scale=1.0)`, None unless `ctx.train`. With "none"
            gradients are computed in backprop, given an upstream gradient [N] or one number.

        Raises
        ------
        TypeError, ValueError
            Wrong kinds, shapes or reduction.
        IndexError
            A target outside [0, V) that is not `ignore_index`.
        """
        func = f"{self.name} loss"
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"{func}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
            )
        h, ids = as_floats(h, self.dtype), as_ids(targets, func=func, name="targets")
        if h.ndim != 2 or ids.shape != (len(h),):
            raise ValueError(
                f"{func}: h must be [N, H] and targets [N], "
                f"got {list(h.shape)} and {list(ids.shape)}"
            )
        n, factors = len(h), self._weights(weights, len(h), func)
        kept = None
        ignored = ids == ignore_index
        if ignored.any():
            # The kernels never see ignored tokens; so their names for positions would be wrong.
            check_ids(
                np.where(ignored, np.int32(0), ids), self.vocab_size, func=func, name="targets"
            )
            kept = np.flatnonzero(~ignored)
            h, ids = take(h, kept, self.pool), take(ids, kept, self.pool)
            factors = None if factors is None else take(factors, kept, self.pool)
        if reduction == "mean":
            total = float(len(ids) if factors is None else factors.sum(dtype=np.float64))
            share = 1.0 / total if total else 0.0
            factors = self._weights(share, len(ids)) if factors is None else factors * share
        values, backprop = self._losses(h, ids, ctx, factors, gradients=reduction != "none")
        if factors is not None:
            values = values * factors
        if backprop is not None and kept is not None:
            backprop = _Scattered(self, backprop, kept, n)
        if reduction != "none":
            return float(values.sum(dtype=np.float64)), backprop
        if kept is not None:
            padded = self.pool.zeros((n,), self.dtype)
            padded[self.pool.bring(kept)] = values
            values = padded
        return values, backprop

    def log_prob(self, h: Array, ctx: Context = SCORING) -> Array:
        """Log-probabilities [N, V] in nats of all tokens after hidden states `h` [N, H]."""
        h = as_floats(h, self.dtype)
        log_prob = self.pool.lease((len(h), self.vocab_size), self.dtype)
        self._log_prob(log_prob, h, ctx)
        return log_prob

    def top_k(self, h: Array, k: int, ctx: Context = SCORING) -> tuple[Array, IntArray]:
        """The k most probable tokens after hidden states `h` [N, H], exactly.

        Returns
        -------
        log_prob, ids
            [N, k] in nats, falling, and int32 [N, k]; of equal ones the smaller id comes first.

        Raises
        ------
        TypeError, ValueError
            `k` is no integer in [1, V]; a wrong kind or shape of `h`.
        """
        check_integer(k, func=f"{self.name} top_k", name="k", low=1, high=self.vocab_size)
        h = as_floats(h, self.dtype)
        log_prob = self.pool.lease((len(h), k), self.dtype)
        ids: IntArray = self.pool.lease((len(h), k), np.int32)
        self._top_k(log_prob, ids, h, ctx)
        return log_prob, ids

    def sample(self, h: Array, rng: Context) -> IntArray:
        """One token for each of the hidden states `h` [N, H], drawn from its distribution.

        Parameters
        ----------
        rng
            Row n's random numbers depend on (seed, step, time0, n) alone: the same context draws
            the same tokens, another step others.

        Returns
        -------
        int32 [N], NumPy's: the next ids that a model reads.

        Raises
        ------
        TypeError, ValueError
            A wrong kind or shape of `h`; a row whose logits are NaN or infinite.
        """
        h = as_floats(h, self.dtype)
        ids: IntArray = self.pool.empty((len(h),), np.int32)
        self._sample(ids, h, rng, {"seed": rng.seed, "step": rng.step, "time": rng.time0})
        return self._drawn(ids)

    def entropy(self, h: Array, ctx: Context = SCORING) -> Array:
        """Entropy [N] in nats of the distribution after each of the hidden states `h` [N, H]."""
        h = as_floats(h, self.dtype)
        entropy = self.pool.empty((len(h),), self.dtype)
        self._entropy(entropy, h, ctx)
        return entropy

    def _log_prob(self, log_prob: Array, h: Array, ctx: Context) -> None:
        """Fill log_prob [N, V]."""
        raise NotImplementedError

    def _top_k(self, log_prob: Array, ids: IntArray, h: Array, ctx: Context) -> None:
        """Fill log_prob and ids [N, k]."""
        raise NotImplementedError

    def _sample(self, ids: IntArray, h: Array, rng: Context, key: dict[str, Any]) -> None:
        """Fill ids [N], negative where a row gives no distribution.

        `key` is the kernels' arguments that say which random numbers are meant.
        """
        raise NotImplementedError

    def _entropy(self, entropy: Array, h: Array, ctx: Context) -> None:
        """Fill entropy [N]."""
        raise NotImplementedError

    def _weights(
        self, weights: object, n: int, func: str = "", name: str = "weights"
    ) -> Array | None:
        """Weights as the kernels take them: [N], or None for 1."""
        func = func or self.name
        if weights is None:
            return None
        if is_one_there(weights):
            every = self.pool.lease((n,), self.dtype)
            every[...] = weights
            return every
        if getattr(weights, "ndim", 0):
            given = as_exact_floats(weights, self.dtype, func=func, name=name)
        else:
            given = np.asarray(weights, self.dtype)
        if given.ndim:
            given = _per_token(given, n, func, name)
            return given if on_device(given) else self.pool.bring(given)
        full = self.pool.lease((n,), self.dtype)
        full.fill(given[()])
        return full

    @contextmanager
    def _on_host(self, *arrays: Array) -> Iterator[tuple[Array, ...]]:
        """NumPy arrays to fill in the place of these, whose contents they become at the end."""
        if self.pool.device is None:
            yield arrays
            return
        own = tuple(np.empty(x.shape, x.dtype) for x in arrays)
        yield own
        for x, filled in zip(arrays, own, strict=True):
            self.pool.load(x, filled)

    def _there(self, ids: IntArray) -> IntArray:
        """Checked targets as the kernels take them, which on a GPU do not look at them."""
        if self.pool.device is None or on_device(ids):
            return ids
        check_ids(ids, self.vocab_size, func=self.name, name="targets")
        return self.pool.bring(ids)

    def _drawn(self, ids: IntArray) -> IntArray:
        """What a kernel drew, as a NumPy array; ValueError for a row of which it could not."""
        ids = to_host(ids)
        if (ids < 0).any():
            raise ValueError(
                f"{self.name} sample: h[{int(np.argmin(ids))}] gives no distribution: a logit is "
                "NaN or infinite"
            )
        return ids

    def _scaled(self, weights: Array | None, scale: float | Array, n: int) -> Array | None:
        """Weights times an upstream gradient, one number or [N]."""
        upstream = self._weights(scale, n, f"{self.name} backprop", "scale")
        return upstream if weights is None else weights * upstream


class _Scattered(Once):
    """The backprop of some of N tokens, as one of all."""

    __slots__ = ()

    def __init__(self, head: BaseHead, backprop: HeadBackprop, kept: Array, n: int) -> None:
        super().__init__(head.name, head, backprop, kept, n)

    def __call__(self, scale: float | Array = 1.0) -> Array:
        head: BaseHead
        backprop: HeadBackprop
        head, backprop, kept, n = self._take()
        if ndim_of(scale):
            func = f"{head.name} backprop"
            given = as_exact_floats(scale, head.dtype, func=func, name="scale")
            scale = take(_per_token(given, n, func, "scale"), kept, head.pool)
        some = backprop(scale)
        dh = head.pool.lease((n, some.shape[1]), some.dtype)
        dh.fill(0)
        dh[head.pool.bring(kept)] = some
        return dh


def is_one_there(weights: Any) -> bool:
    """Whether these weights are one number that stands on a GPU, as float64 [1]."""
    return on_device(weights) and weights.shape == (1,) and weights.dtype == np.float64


def _per_token(given: Array, n: int, func: str, name: str) -> Array:
    if given.shape != (n,):
        raise ValueError(f"{func}: {name} must be [N={n}] or a number, got {describe(given)}")
    return given
