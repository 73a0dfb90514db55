"""Training losses over sampled tokens: contract and dispatch."""

from __future__ import annotations

from typing import Any

import numpy as np

from pynlm.arrays import INT32, Array, check, check_ids, check_number, on_device

from ._backend import function

OBJECTIVES = ("softmax", "logistic")


def candidates_forward(
    *,
    loss: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    samples: Array,
    counts: Array | None = None,
    log_expected: Array | None = None,
    target_log_expected: Array | None = None,
    objective: str = "softmax",
    remove_hits: bool = True,
    temperature: float = 1.0,
    backend: str | None = None,
) -> None:
    """Each target's loss against K sampled tokens that all rows share: no likelihood.

    With s = samples, y = targets, m = counts::

        x[n, k] = (h[n] W[s_k]^T + b[s_k]) / temperature - log_expected[k]
        t[n] = (h[n] W[y_n]^T + b[y_n]) / temperature - target_log_expected[n]
        softmax:  loss[n] = log(exp t[n] + sum_k m_k exp x[n, k]) - t[n]
        logistic: loss[n] = log(1 + exp -t[n]) + sum_k m_k log(1 + exp x[n, k])

    Parameters
    ----------
    loss : [N], output
        In nats.
    h : [N, H]
    w : [V, H], b : [V] or None
    targets : int32 [N]
        0 to V - 1.
    samples : int32 [K]
        0 to V - 1, distinct and rising, at least one.
    counts : [K] or None
        How many times each was drawn. None: once.
    log_expected : [K] or None
        Natural logarithm of how many times each was expected to be drawn. None: 0.
    target_log_expected : [N] or None
        The same of the targets.
    objective : "softmax" or "logistic"
        The former with expected counts is importance sampling (sampled softmax); the latter is
        noise-contrastive estimation with them, negative sampling without.
    remove_hits : bool
        Leave a sample out where it is the target itself.
    temperature : float
        Above 0.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array, has another dtype, or is no number.
    ValueError
        Shape, layout or range; samples that do not rise; an unknown objective.
    IndexError
        A target or sample outside [0, V).

    Notes
    -----
    Source: sampled softmax: Bengio & Senecal, AISTATS 2003; Jean et al., arXiv:1412.2007, §3;
    noise-contrastive estimation: Gutmann & Hyvarinen, AISTATS 2010; Mnih & Teh, arXiv:1206.6426,
    §3; negative sampling: Mikolov et al., arXiv:1310.4546, eq. 4.

    Examples
    --------
    >>> import numpy as np
    >>> loss, samples = np.empty(1), np.array([0, 2], np.int32)
    >>> candidates_forward(loss=loss, h=np.ones((1, 2)), w=np.zeros((4, 2)),
    ...                    targets=np.array([1], np.int32), samples=samples)
    >>> loss.round(4)  # log 3: the target and two samples, equally likely
    array([1.0986])
    """
    f = "candidates_forward"
    d = _check_inputs(f, h, w, b, targets, samples, counts, log_expected, target_log_expected)
    _check_options(f, objective, remove_hits, temperature)
    check(loss, "N", d, func=f, name="loss", out=True)
    function(f, backend, d)(
        loss=loss, h=h, w=w, b=b, targets=targets, samples=samples, counts=counts,
        log_expected=log_expected, target_log_expected=target_log_expected, objective=objective,
        remove_hits=remove_hits, temperature=temperature,
    )  # fmt: skip


def candidates_gradients(
    *,
    loss: Array,
    dh: Array,
    rows: Array,
    drows: Array,
    db: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    weights: Array | None = None,
    samples: Array,
    counts: Array | None = None,
    log_expected: Array | None = None,
    target_log_expected: Array | None = None,
    objective: str = "softmax",
    remove_hits: bool = True,
    temperature: float = 1.0,
    backend: str | None = None,
) -> int:
    """The losses of `candidates_forward` and the gradients of sum_n weights[n] * loss[n].

    Those of `w` and `b` come as rows: of the samples and targets, all others being zero.

    Parameters
    ----------
    loss : [N], output
        Not weighted.
    dh : [N, H], output
    rows : int32 [N + K], output
        rows[:n] are the ids of samples and targets, distinct and increasing.
    drows : [N + K, H], output
        drows[:n] are the gradients of w[rows[:n]].
    db : [N + K] or None, output
        db[:n] are the gradients of b[rows[:n]]. What is beyond n is unspecified in all three.
    weights : [N] or None
        Any finite numbers. None: 1.
    h, w, b, targets, samples, counts, log_expected, target_log_expected
        As `candidates_forward`.
    objective, remove_hits, temperature, backend
        As `candidates_forward`.

    Returns
    -------
    int
        n, the number of rows; 0 if there are no tokens.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `candidates_forward`.

    Notes
    -----
    Source: the chain rule on `candidates_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> loss, dh, rows = np.empty(1), np.empty((1, 2)), np.empty(3, np.int32)
    >>> drows, db = np.empty((3, 2)), np.empty(3)
    >>> n = candidates_gradients(loss=loss, dh=dh, rows=rows, drows=drows, db=db,
    ...                          h=np.ones((1, 2)), w=np.zeros((4, 2)), b=np.zeros(4),
    ...                          targets=np.array([1], np.int32),
    ...                          samples=np.array([0, 2], np.int32))
    >>> rows[:n].tolist(), db[:n].round(4).tolist()
    ([0, 1, 2], [0.3333, -0.6667, 0.3333])
    """
    f = "candidates_gradients"
    d = _check_inputs(f, h, w, b, targets, samples, counts, log_expected, target_log_expected)
    _check_options(f, objective, remove_hits, temperature)
    if weights is not None:
        check(weights, "N", d, func=f, name="weights")
    check(loss, "N", d, func=f, name="loss", out=True)
    check(dh, "N H", d, func=f, name="dh", out=True)
    d["R"] = d["N"] + d["K"]
    check(rows, "R", d, func=f, name="rows", dtype=INT32, out=True)
    check(drows, "R H", d, func=f, name="drows", out=True)
    if db is not None:
        check(db, "R", d, func=f, name="db", out=True)
    return int(
        function(f, backend, d)(
            loss=loss, dh=dh, rows=rows, drows=drows, db=db, h=h, w=w, b=b, targets=targets,
            weights=weights, samples=samples, counts=counts, log_expected=log_expected,
            target_log_expected=target_log_expected, objective=objective, remove_hits=remove_hits,
            temperature=temperature,
        )
    )  # fmt: skip


def _check_inputs(
    f: str,
    h: Array,
    w: Array,
    b: Array | None,
    targets: Array,
    samples: Array,
    counts: Array | None,
    log_expected: Array | None,
    target_log_expected: Array | None,
) -> dict[str, Any]:
    d: dict[str, Any] = {}
    check(h, "N H", d, func=f, name="h")
    check(w, "V H", d, func=f, name="w")
    if b is not None:
        check(b, "V", d, func=f, name="b")
    check(targets, "N", d, func=f, name="targets", dtype=INT32)
    check(samples, "K", d, func=f, name="samples", dtype=INT32)
    if counts is not None:
        check(counts, "K", d, func=f, name="counts")
    if log_expected is not None:
        check(log_expected, "K", d, func=f, name="log_expected")
    if target_log_expected is not None:
        check(target_log_expected, "N", d, func=f, name="target_log_expected")
    check_ids(targets, d["V"], func=f, name="targets")
    check_ids(samples, d["V"], func=f, name="samples")
    falls = samples[:0] if on_device(samples) else np.flatnonzero(samples[1:] <= samples[:-1])
    if len(falls):
        k = int(falls[0])
        raise ValueError(
            f"{f}: samples must be rising and distinct, got {samples[k + 1]} after {samples[k]} "
            f"at {k + 1}"
        )
    return d


def _check_options(f: str, objective: str, remove_hits: bool, temperature: float) -> None:
    if objective not in OBJECTIVES:
        raise ValueError(
            f"{f}: objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}"
        )
    if not isinstance(remove_hits, bool):
        raise TypeError(f"{f}: remove_hits must be True or False, got {remove_hits!r}")
    check_number(temperature, func=f, name="temperature", low=0.0, low_open=True)
