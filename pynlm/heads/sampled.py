"""Heads that learn from sampled tokens and say what the exact softmax of their weights says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import check_ids, check_number, describe, to_host
from pynlm.heads.full import Full
from pynlm.heads.fused import Gradients, RowsClaim, claim_rows
from pynlm.heads.samplers import TokenSampler
from pynlm.kernels.candidates import candidates_forward, candidates_gradients
from pynlm.kernels.queued import candidates_gradients_dense
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray, as_floats, as_ids
from pynlm.layers.parameters import Group, Parameter, Spec

Array = npt.NDArray[Any]


class SampledHead(Full):
    """What the sampled heads share.

    In training a batch's tokens share K sampled tokens, a function of the context's seed and step
    alone; the cost is K / V of the exact head's, and the weight's gradient a set of rows. Losses
    are estimates, no likelihoods. Outside training all is as `Full` has it: exact, over all tokens.

    Parameters
    ----------
    parameters, tied, prefix, temperature
        See `Full`.
    samples
        K, how many tokens are drawn a step; at most V if `unique`.
    sampler
        "log-uniform", "unigram" or "uniform"; see `TokenSampler`.
    alpha
        Power of the counts, for "unigram".
    unique
        Draw distinct tokens.
    remove_hits
        Leave a sample out where it is the target itself; None: as each class says.
    counts
        The tokens' counts [V] in training text, for "unigram".

    Attributes
    ----------
    exact_in_training
        False.

    Raises
    ------
    TypeError, ValueError
        An option of a wrong kind or out of its range; counts that are missing or do not match V.
    """

    exact_in_training = False
    _objective = "softmax"
    _corrected = True
    _remove_hits: bool | None = None

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        tied: Parameter | None = None,
        prefix: str = "head",
        *,
        samples: int = 1024,
        sampler: str = "log-uniform",
        alpha: float = 0.75,
        unique: bool = True,
        remove_hits: bool | None = None,
        temperature: float = 1.0,
        counts: object = None,
    ) -> None:
        super().__init__(parameters, tied, prefix, temperature=temperature)
        func = type(self).__name__
        if not isinstance(remove_hits, (bool, type(None))):
            raise TypeError(
                f"{func}: remove_hits must be True, False or None, got {describe(remove_hits)}"
            )
        self.fixed_launches = unique  # else the number of distinct samples differs
        own = unique if self._remove_hits is None else self._remove_hits
        self.remove_hits = own if remove_hits is None else remove_hits
        self.sampler = TokenSampler(
            sampler, vocab_size=self.vocab_size, size=samples, unique=unique,
            counts=counts, alpha=alpha, func=func,
        )  # fmt: skip

    @staticmethod
    def specs(
        prefix: str,
        vocab_size: int,
        size: int,
        group: str = "head",
        bias: bool = True,
        tied: bool = False,
    ) -> list[Spec]:
        """The parameters that the head needs, for `Parameters`; a tied table had best be sparse."""
        specs = Full.specs(prefix, vocab_size, size, group, bias, tied)
        # A sparse table comes last, so that the dense weights before it are one stretch.
        return sorted((s._replace(sparse=len(s.shape) == 2) for s in specs), key=_is_sparse)

    def _forward(
        self, nll: Array, loss: Array | None, h: Array, ids: IntArray, ctx: Context
    ) -> None:
        if ctx.train:
            candidates_forward(loss=nll, **self._inputs(h, ids, ctx))
        else:
            super()._forward(nll, loss, h, ids, ctx)

    def _gradients(
        self,
        nll: Array,
        loss: Array | None,
        h: Array,
        ids: IntArray,
        ctx: Context,
        weights: Array | None,
    ) -> Gradients:
        given = self._inputs(h, ids, ctx)
        if self.pool.device is not None:
            return self._gradients_dense(nll, h, {**given, "weights": weights})
        room = len(h) + len(given["samples"])
        rows: IntArray = self.pool.lease((room,), np.int32)
        drows = self.pool.lease((room, self.weight.data.shape[1]), self.dtype)
        db, dh = self.pool.lease((room,), self.dtype), self.pool.like(h)
        n = candidates_gradients(
            loss=nll, dh=dh, rows=rows, drows=drows, db=db, weights=weights, **given
        )
        claims: list[Any] = [RowsClaim(self.weight, rows[:n], drows[:n])]
        if self.bias is not None:
            claims.append(claim_rows(self.bias, rows[:n], db[:n]))
        self._claim_constants(claims, db[:n])
        return Gradients(dh, claims)

    def _gradients_dense(self, nll: Array, h: Array, given: dict[str, Any]) -> Gradients:
        """`_gradients` on a GPU, where nobody waits for the number of rows."""
        del given["backend"]
        size = (len(self.weight.data),)
        dh, dw = self.pool.like(h), self.weight.claim()
        own = None if self.bias is None else self.bias.claim()
        db = self.pool.lease(size, self.dtype) if own is None else own.array
        candidates_gradients_dense(loss=nll, dh=dh, dw=dw.array, db=db, **given)
        claims: list[Any] = [dw] if own is None else [dw, own]
        self._claim_constants(claims, db)
        return Gradients(dh, claims)

    def _claim_constants(self, claims: list[Any], db: Array) -> None:
        """Add the claims of what is subtracted from all logits, whose gradients add up to -`db`."""

    def draw(self, ids: IntArray, seed: int, step: int) -> dict[str, Array]:
        """The samples of a step, and what is subtracted from logits; see `Head.draw`."""
        drawn = self.sampler.draw(seed=seed, step=step)
        found: dict[str, Array] = {"samples": drawn.ids}
        if drawn.counts is not None:
            found["counts"] = drawn.counts.astype(self.dtype)
        if self._corrected:
            for name, tokens in (("log_expected", drawn.ids), ("target_log_expected", ids)):
                expected = np.log(self.sampler.expected(tokens, drawn.tries))
                found[name] = (expected + self._constant).astype(self.dtype)
        return found

    @property
    def _constant(self) -> float:
        """What besides is subtracted from all logits, as far as the host knows it."""
        return 0.0

    def _inputs(self, h: Array, ids: IntArray, ctx: Context) -> dict[str, Any]:
        """All that both kernels read but the weights of the losses."""
        check_ids(ids, self.vocab_size, func=self.name, name="targets")
        drawn = ctx.drawn
        if drawn is None:
            found = self.draw(ids, ctx.seed, ctx.step)
            drawn = {name: self.pool.bring(x) for name, x in found.items()}
        # Rows are gathered from the weight as it stands.
        own = self._map(h, ctx, self.weight.data)
        options = {"objective": self._objective, "remove_hits": self.remove_hits}
        return {**own, "targets": self.pool.bring(ids), **drawn, **options}


class Sampled(SampledHead):
    """Softmax over the target and the samples: importance sampling, "sampled softmax".

    The logits are corrected by the logarithms of the expected counts, so that the gradient
    approaches the exact one as K grows; with every token as a unique sample it is the exact one.
    For that, hits are removed where samples are unique, and kept where they are not (there the
    target's own part in the normaliser is that of its hits), unless said otherwise. The loss is
    usually too low to be a likelihood. Parameters: see `SampledHead`.

    Notes
    -----
    Source: Bengio & Senecal, AISTATS 2003; Jean et al., arXiv:1412.2007, §3; as
    `tf.nn.sampled_softmax_loss`.

    Examples
    --------
    >>> from pynlm.layers import Parameters
    >>> head = Sampled(Parameters(Sampled.specs("head", vocab_size=11, size=3)), samples=4)
    >>> h = np.ones((5, 3), np.float32)
    >>> loss, backprop = head(h, [1, 2, 3, 4, 10], Context(train=True, seed=1))
    >>> backprop(1 / 5).shape, head.weight.state
    ((5, 3), 'rows')
    >>> nll, _ = head(h, [1, 2, 3, 4, 10], Context(train=False))
    >>> bool(abs(nll - np.log(11)).max() < 1e-6)
    True
    """


class NCE(SampledHead):
    """Noise-contrastive estimation: tell the target from the samples, one by one.

    The loss is that of logistic regression between text and noise, in which the logits are taken
    for log-probabilities plus a constant `log_z`. Training makes them so, and the exact softmax
    then finds log Z near that constant (`nll_and_log_z`). Other parameters: see `SampledHead`; hits
    are kept unless said otherwise, because noise may be any token.

    Parameters
    ----------
    log_z
        The constant: a number, "learned" (a parameter `{prefix}.log_z` [1] without weight decay),
        or None: log V, with which logits of zero begin as the uniform distribution.

    Notes
    -----
    Source: Gutmann & Hyvarinen, AISTATS 2010; Mnih & Teh, arXiv:1206.6426, §3.

    Examples
    --------
    >>> from pynlm.layers import Parameters
    >>> head = NCE(Parameters(NCE.specs("head", vocab_size=11, size=3)), samples=4)
    >>> nll, log_z = head.nll_and_log_z(np.ones((2, 3), np.float32), [1, 2], Context(train=False))
    >>> bool(abs(log_z).max() < 1e-6)  # logits of zero: 11 probabilities of 1 / 11
    True
    """

    _objective = "logistic"
    _remove_hits = False

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        tied: Parameter | None = None,
        prefix: str = "head",
        *,
        log_z: float | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(parameters, tied, prefix, **options)
        check_log_z(log_z, "NCE")
        self._learned = parameters[f"{prefix}.log_z"] if log_z == "learned" else None
        self._fixed = np.log(self.vocab_size) if log_z is None else log_z

    @staticmethod
    def specs(
        prefix: str,
        vocab_size: int,
        size: int,
        group: str = "head",
        bias: bool = True,
        tied: bool = False,
        learned: bool = False,
    ) -> list[Spec]:
        """The parameters that the head needs, for `Parameters`."""
        # Decay would pull the constant to 0, a normaliser of 1.
        own = Group(f"{group}.log_z", decay=False)
        constant = [Spec(f"{prefix}.log_z", (1,), own)] if learned else []
        return [*constant, *SampledHead.specs(prefix, vocab_size, size, group, bias, tied)]

    @property
    def log_z(self) -> float:
        """The constant that logits exceed log-probabilities by, as it stands."""
        return float(self._fixed if self._learned is None else to_host(self._learned.data)[0])

    @property
    def _constant(self) -> float:
        # A learnt one on the device is not waited for.
        return 0.0 if self._learned is not None and self.pool.device is not None else self.log_z

    def _inputs(self, h: Array, ids: IntArray, ctx: Context) -> dict[str, Any]:
        given = super()._inputs(h, ids, ctx)
        if self._learned is not None and self.pool.device is not None:
            for name in ("log_expected", "target_log_expected"):
                given[name] = given[name] + self._learned.data
        return given

    def _claim_constants(self, claims: list[Any], db: Array) -> None:
        if self._learned is not None:
            claim = self._learned.claim()
            # The kernel's logits are divided by the temperature, the constant is not.
            claim.array[0] = -self.temperature * db.sum(dtype=np.float64)
            claims.append(claim)

    def nll_and_log_z(self, h: Array, targets: object, ctx: Context) -> tuple[Array, Array]:
        """Exact nll [N] in nats of each target, and log Z [N] less the constant.

        The latter is log sum_v exp(z[n, v] - log_z), 0 where the head normalises itself.

        Raises
        ------
        TypeError, ValueError, IndexError
            As the call.
        """
        h = as_floats(h, self.dtype)
        ids = as_ids(targets, func=self.name, name="targets")
        nll = self.pool.empty((len(h),), self.dtype)
        Full._forward(self, nll, None, h, ids, ctx)  # in training, too
        words = self.pool.bring(ids)
        z = self.pool.xp.einsum("nh,nh->n", h, self.weight.data[words], dtype=np.float64)
        if self.bias is not None:
            z += self.bias.data[words]
        return nll, nll + z / self.temperature - self.log_z


class NegativeSampling(SampledHead):
    """word2vec's objective: tell the target from the samples, without any correction.

    Where noise is q, logits approach log p - log q and a constant: good vectors, but no
    log-probabilities, and training does not approach the distribution of the text. The exact
    softmax of the weights is there to rank and to draw tokens; a perplexity is refused. Parameters:
    see `SampledHead`.

    Hits are removed unless said otherwise, as word2vec does.

    Notes
    -----
    Source: Mikolov et al., arXiv:1310.4546, eq. 4; what it learns: Levy & Goldberg, NIPS 2014.

    Examples
    --------
    >>> from pynlm.layers import Parameters
    >>> parameters = Parameters(NegativeSampling.specs("head", vocab_size=11, size=3))
    >>> head = NegativeSampling(parameters, samples=5, remove_hits=False)
    >>> loss, _ = head(np.ones((1, 3), np.float32), [1], Context(train=True))
    >>> bool(abs(loss[0] - 6 * np.log(2)) < 1e-6)
    True
    """

    learns_likelihood = False
    _objective = "logistic"
    _remove_hits = True
    _corrected = False


def check_log_z(log_z: object, func: str) -> None:
    """Raise unless it is a number, "learned" or None."""
    if log_z is None or log_z == "learned":
        return
    if isinstance(log_z, str):
        raise ValueError(f"{func}: log_z must be a number or 'learned', got {log_z!r}")
    check_number(log_z, func=func, name="log_z")  # type: ignore[arg-type]


def _is_sparse(spec: Spec) -> bool:
    return spec.sparse
