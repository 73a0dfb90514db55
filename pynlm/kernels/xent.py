"""Exact softmax cross-entropy of a linear map: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import INT32, UINT32_MAX, Array, check, check_ids, check_integer, check_number

from ._backend import function


def xent_forward(
    *,
    nll: Array,
    loss: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    backend: str | None = None,
) -> None:
    """The negative log-likelihood of each target and, if asked for, the loss that is trained on.

    With z = (h W^T + b) / temperature, log Z[n] = log sum_v exp(z[n, v]), e = label_smoothing::

        nll[n] = log Z[n] - z[n, targets[n]]
        loss[n] = (1 - e) nll[n] + e mean_v(log Z[n] - z[n, v]) + z_loss (log Z[n])^2

    Parameters
    ----------
    nll : [N], output
        Negative log-probability of each target, in nats: neither smoothed nor with z-loss.
    loss : [N] or None, output
    h : [N, H]
    w : [V, H], b : [V] or None
    targets : int32 [N]
        0 to V - 1.
    label_smoothing : float
        0 to 1.
    z_loss : float
        Coefficient, at least 0.
    temperature : float
        Above 0.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array, has another dtype, or is no number.
    ValueError
        Shape, layout or range.
    IndexError
        A target outside [0, V).

    Notes
    -----
    Source: the definition; label smoothing: Szegedy et al., arXiv:1512.00567, §7 (as
    `torch.nn.functional.cross_entropy`); z-loss: Chowdhery et al., arXiv:2204.02311, §5. The cpu
    backend forms the logits in tiles and never holds N x V of them.

    Examples
    --------
    >>> import numpy as np
    >>> nll, targets = np.empty(1), np.array([1], np.int32)
    >>> xent_forward(nll=nll, h=np.ones((1, 2)), w=np.zeros((4, 2)), targets=targets)
    >>> nll.round(4)  # log 4
    array([1.3863])
    """
    f = "xent_forward"
    d = _check_map(h, w, b, f, temperature)
    _check_losses(nll, loss, targets, d, f, label_smoothing, z_loss)
    function(f, backend, d)(
        nll=nll, loss=loss, h=h, w=w, b=b, targets=targets,
        label_smoothing=label_smoothing, z_loss=z_loss, temperature=temperature,
    )  # fmt: skip


def xent_gradients(
    *,
    nll: Array,
    loss: Array | None = None,
    dh: Array,
    dw: Array,
    db: Array | None = None,
    h: Array,
    w: Array,
    b: Array | None = None,
    targets: Array,
    weights: Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    gradient_filter: float = 0.0,
    backend: str | None = None,
) -> None:
    """The losses of `xent_forward` and the gradients of sum_n weights[n] * loss[n], in one pass.

    With z, log Z and e as there and p = softmax(z)::

        dz[n, v] = weights[n] ((1 + 2 z_loss log Z[n]) p[n, v] - (1 - e) [v = targets[n]] - e / V)
        dh = dz W / temperature;  dw = dz^T h / temperature;  db = sum_n dz[n] / temperature

    Parameters
    ----------
    nll : [N], output
        Negative log-probability of each target, in nats: not weighted, not smoothed, no z-loss.
    loss : [N] or None, output
        Not weighted.
    dh : [N, H], dw : [V, H], output
    db : [V] or None, output
    h : [N, H]
    w : [V, H], b : [V] or None
    targets : int32 [N]
        0 to V - 1.
    weights : [N] or None
        Any finite numbers (1/N for a mean, 0 for padding). None: 1.
    label_smoothing, z_loss, temperature : float
        As `xent_forward`.
    gradient_filter : float
        0 to 1. Above 0 the gradients are approximate: rows go in ceil(N / 128) blocks of equal
        size (but the last), and a word that has p < gradient_filter after all rows of a block and
        is the target of none has dz = 0 there. The losses stay exact.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xent_forward`.

    Notes
    -----
    Source: the chain rule on `xent_forward`; the filter: Wijmans et al., arXiv:2411.09009, §4.3.

    Examples
    --------
    >>> import numpy as np
    >>> nll, dh, dw, db = np.empty(1), np.empty((1, 2)), np.empty((4, 2)), np.empty(4)
    >>> xent_gradients(nll=nll, dh=dh, dw=dw, db=db, h=np.ones((1, 2)), w=np.zeros((4, 2)),
    ...                b=np.zeros(4), targets=np.array([1], np.int32))
    >>> db
    array([ 0.25, -0.75,  0.25,  0.25])
    """
    f = "xent_gradients"
    d = _check_map(h, w, b, f, temperature)
    if weights is not None:
        check(weights, "N", d, func=f, name="weights")
    check(dh, "N H", d, func=f, name="dh", out=True)
    check(dw, "V H", d, func=f, name="dw", out=True)
    if db is not None:
        check(db, "V", d, func=f, name="db", out=True)
    _check_losses(nll, loss, targets, d, f, label_smoothing, z_loss)
    check_number(gradient_filter, func=f, name="gradient_filter", low=0.0, high=1.0)
    function(f, backend, d)(
        nll=nll, loss=loss, dh=dh, dw=dw, db=db, h=h, w=w, b=b, targets=targets, weights=weights,
        label_smoothing=label_smoothing, z_loss=z_loss, temperature=temperature,
        gradient_filter=gradient_filter,
    )  # fmt: skip


def xent_log_prob(
    *,
    log_prob: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    temperature: float = 1.0,
    backend: str | None = None,
) -> None:
    """log_prob[n, v] = z[n, v] - log sum_u exp(z[n, u]) with z = (h W^T + b) / temperature.

    Parameters
    ----------
    log_prob : [N, V], output
        Natural logarithms of the probabilities.
    h : [N, H]
    w : [V, H], b : [V] or None
    temperature : float
        Above 0.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array, has another dtype, or is no number.
    ValueError
        Shape, layout or range.

    Notes
    -----
    Source: the definition.

    Examples
    --------
    >>> import numpy as np
    >>> log_prob = np.empty((1, 2))
    >>> xent_log_prob(log_prob=log_prob, h=np.ones((1, 1)), w=np.array([[0.0], [np.log(3)]]))
    >>> np.exp(log_prob).round(6)
    array([[0.25, 0.75]])
    """
    f = "xent_log_prob"
    d = _check_map(h, w, b, f, temperature)
    check(log_prob, "N V", d, func=f, name="log_prob", out=True)
    function(f, backend, d)(log_prob=log_prob, h=h, w=w, b=b, temperature=temperature)


def xent_top_k(
    *,
    log_prob: Array,
    ids: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    temperature: float = 1.0,
    backend: str | None = None,
) -> None:
    """The K most probable tokens of each row, falling; of equal logits the smaller id comes first.

    Parameters
    ----------
    log_prob : [N, K], output
        Natural logarithms of the probabilities; K is 1 to V.
    ids : int32 [N, K], output
    h, w, b, temperature, backend
        As `xent_log_prob`, whose whole table is never made.

    Raises
    ------
    TypeError, ValueError
        As `xent_log_prob`; ValueError for K > V, too.

    Notes
    -----
    Source: the definition. A row with a NaN or +inf logit has NaN as all of its log_prob, and ids
    without meaning.

    Examples
    --------
    >>> import numpy as np
    >>> log_prob, ids = np.empty((1, 2)), np.empty((1, 2), np.int32)
    >>> w = np.log([[0.2], [0.5], [0.3]])
    >>> xent_top_k(log_prob=log_prob, ids=ids, h=np.ones((1, 1)), w=w)
    >>> ids, np.exp(log_prob).round(6)
    (array([[1, 2]], dtype=int32), array([[0.5, 0.3]]))
    """
    f = "xent_top_k"
    d = _check_map(h, w, b, f, temperature)
    check(log_prob, "N K", d, func=f, name="log_prob", out=True)
    check(ids, "N K", d, func=f, name="ids", dtype=INT32, out=True)
    check_integer(d["K"], func=f, name="K", low=1, high=d["V"])
    function(f, backend, d)(log_prob=log_prob, ids=ids, h=h, w=w, b=b, temperature=temperature)


def xent_sample(
    *,
    ids: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    rows: Array | None = None,
    seed: int,
    step: int,
    time: int = 0,
    layer: int = 0,
    temperature: float = 1.0,
    backend: str | None = None,
) -> None:
    """One token of each row, drawn from softmax((h W^T + b) / temperature).

    Row n's token is the first v with p[n, 0] + ... + p[n, v] > u, where u in [0, 1) has 53 bits of
    Philox 4x32-10 and depends on (seed, step, time, layer, rows[n]) alone.

    Parameters
    ----------
    ids : int32 [N], output
        -1 where a logit is NaN or +inf: there is no distribution.
    h : [N, H]
    w : [V, H], b : [V] or None
    rows : int32 [N] or None
        Rows of the batch that these are, at least 0; None: 0 to N - 1.
    seed, step, time : int
        0 to 2**32 - 1; the key and the counter's time, see `pynlm.reference.philox`.
    layer : int
        0 to 65535; another number for another draw of the same row.
    temperature : float
        Above 0.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError, ValueError
        As `xent_log_prob`.

    Notes
    -----
    Source: inversion of the distribution function (Devroye, "Non-Uniform Random Variate
    Generation", 1986, §III.2). Backends round p differently, so where u falls on the very edge
    between two tokens they may take either.

    Examples
    --------
    >>> import numpy as np
    >>> ids, w = np.empty(4, np.int32), np.log([[0.2], [0.8]])
    >>> xent_sample(ids=ids, h=np.ones((4, 1)), w=w, seed=1, step=0)
    >>> ids
    array([1, 0, 1, 1], dtype=int32)
    """
    f = "xent_sample"
    d = _check_map(h, w, b, f, temperature)
    check(ids, "N", d, func=f, name="ids", dtype=INT32, out=True)
    if rows is not None:
        check(rows, "N", d, func=f, name="rows", dtype=INT32)
        check_ids(rows, 2**31, func=f, name="rows", symbol="rows")
    for name, value in (("seed", seed), ("step", step), ("time", time)):
        check_integer(value, func=f, name=name, low=0, high=UINT32_MAX)
    check_integer(layer, func=f, name="layer", low=0, high=65535)
    function(f, backend, d)(
        ids=ids, h=h, w=w, b=b, rows=rows, seed=seed, step=step, time=time, layer=layer,
        temperature=temperature,
    )  # fmt: skip


def xent_entropy(
    *,
    entropy: Array,
    h: Array,
    w: Array,
    b: Array | None = None,
    temperature: float = 1.0,
    backend: str | None = None,
) -> None:
    """entropy[n] = -sum_v p[n, v] log p[n, v] with p = softmax((h W^T + b) / temperature).

    Parameters
    ----------
    entropy : [N], output
        In nats, 0 to log V.
    h, w, b, temperature, backend
        As `xent_log_prob`, whose table is never made.

    Raises
    ------
    TypeError, ValueError
        As `xent_log_prob`.

    Notes
    -----
    Source: Shannon 1948, §6, computed as log S - sum_v exp(t) t / S with t = z - max z and
    S = sum_v exp(t), in which nothing cancels.

    Examples
    --------
    >>> import numpy as np
    >>> entropy = np.empty(1)
    >>> xent_entropy(entropy=entropy, h=np.ones((1, 2)), w=np.zeros((4, 2)))
    >>> entropy.round(4)  # log 4
    array([1.3863])
    """
    f = "xent_entropy"
    d = _check_map(h, w, b, f, temperature)
    check(entropy, "N", d, func=f, name="entropy", out=True)
    function(f, backend, d)(entropy=entropy, h=h, w=w, b=b, temperature=temperature)


def _check_map(h: Array, w: Array, b: Array | None, f: str, temperature: float) -> dict[str, Any]:
    d: dict[str, Any] = {}
    check(h, "N H", d, func=f, name="h")
    check(w, "V H", d, func=f, name="w")
    if b is not None:
        check(b, "V", d, func=f, name="b")
    check_number(temperature, func=f, name="temperature", low=0.0, low_open=True)
    return d


def _check_losses(
    nll: Array,
    loss: Array | None,
    targets: Array,
    d: dict[str, Any],
    f: str,
    label_smoothing: float,
    z_loss: float,
) -> None:
    check(targets, "N", d, func=f, name="targets", dtype=INT32)
    check(nll, "N", d, func=f, name="nll", out=True)
    if loss is not None:
        check(loss, "N", d, func=f, name="loss", out=True)
    check_number(label_smoothing, func=f, name="label_smoothing", low=0.0, high=1.0)
    check_number(z_loss, func=f, name="z_loss", low=0.0)
    check_ids(targets, d["V"], func=f, name="targets")
