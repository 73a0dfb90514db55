"""Simple recurrent network (tanh or relu) over a whole sequence: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import Array, check, check_lengths, describe

from ._backend import function
from .variant import Variant, check_goes_with, check_norm, check_variant


def rnn_forward(
    *,
    y: Array,
    h_last: Array,
    h_in: Array | None = None,
    norm: Array | None = None,
    rstd: Array | None = None,
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    b: Array,
    ln_gates: Array | None = None,
    mask_h: Array | None = None,
    nonlinearity: str,
    lengths: Array | None = None,
    variant: Variant | None = None,
    backend: str | None = None,
) -> None:
    """Run h_t = f(W_ih x_t + W_hh h_{t-1} + b) over T steps of B rows, f = tanh or relu.

    Parameters
    ----------
    y : [T, B, H], output
        h_t of every step, which is also all that `rnn_backward` needs; 0 beyond a row's length.
    h_last : [B, H], output
        State after each row's own last step; h0 where the length is 0.
    h_in : [T, B, H], output, with `mask_h` only
        y * mask_h, saved for `rnn_backward`; 0 beyond a row's length.
    norm : [2, T, B, H], rstd : [2, T, B], output
        With `ln_gates`: saved for `rnn_backward`, both or neither: what layer norm made of W_ih x_t
        and W_hh h_{t-1}, before its gains, and each row's 1 / sqrt(var + 1e-5). Unspecified beyond
        a row's length.
    x : [T, B, I]
        Input. Ignored beyond a row's length, where it may be NaN.
    h0 : [B, H]
        Initial state.
    w_ih : [H, I], w_hh : [H, H], b : [H]
        Weights in torch.nn.RNN's layout, with one bias (the sum of torch's two).
    nonlinearity : "tanh" or "relu"
    ln_gates : [2, H] or None
        Layer norm, N(v) = (v - mean(v)) / sqrt(var(v) + 1e-5) over a row: ln_gates[0] * N(W_ih x_t)
        and ln_gates[1] * N(W_hh h_{t-1}) in place of the products.
    mask_h : [B, H] or None
        Variational recurrent dropout: h_{t-1} enters W_hh as h_{t-1} * mask_h.
    lengths : int32 [B] or None
        Steps that each row takes part in, non-increasing, 0 to T. None: all T.
    variant : Variant or None
        Zoneout. None: the plain cell.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array or has another dtype.
    ValueError
        Shape, layout or range; an unknown nonlinearity.

    Notes
    -----
    Source: Elman, "Finding structure in time", 1990.

    Examples
    --------
    >>> import numpy as np
    >>> h, y, w = np.zeros((1, 2)), np.empty((3, 1, 2)), np.ones((2, 2))
    >>> rnn_forward(y=y, h_last=h.copy(), x=np.ones((3, 1, 2)), h0=h, w_ih=w, w_hh=w,
    ...             b=np.zeros(2), nonlinearity="relu")
    >>> y[:, 0, 0]
    array([ 2.,  6., 14.])
    """
    f = "rnn_forward"
    d: dict[str, Any] = {}
    check(x, "T B I", d, func=f, name="x")
    check(h0, "B H", d, func=f, name="h0")
    check(w_ih, "H I", d, func=f, name="w_ih")
    check(w_hh, "H H", d, func=f, name="w_hh")
    check(b, "H", d, func=f, name="b")
    check(y, "T B H", d, func=f, name="y", out=True)
    check(h_last, "B H", d, func=f, name="h_last", out=True)
    _check_nonlinearity(nonlinearity, f)
    check_lengths(lengths, d, func=f)
    check_variant(variant, mask_h, h_in, d, func=f, writes=True)
    saves = norm is not None
    check_norm(1, d, func=f, ln_gates=ln_gates, norm=norm, rstd=rstd, saves=saves)
    function(f, backend, d)(
        y=y,
        h_last=h_last,
        h_in=h_in,
        norm=norm,
        rstd=rstd,
        x=x,
        h0=h0,
        w_ih=w_ih,
        w_hh=w_hh,
        b=b,
        ln_gates=ln_gates,
        mask_h=mask_h,
        nonlinearity=nonlinearity,
        lengths=lengths,
        variant=variant,
    )


def rnn_backward(
    *,
    dx: Array | None = None,
    dh0: Array,
    dw_ih: Array,
    dw_hh: Array,
    db: Array,
    dln_gates: Array | None = None,
    dpre: Array,
    h_in: Array | None = None,
    norm: Array | None = None,
    rstd: Array | None = None,
    y: Array,
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    ln_gates: Array | None = None,
    mask_h: Array | None = None,
    dy: Array,
    dh_last: Array | None = None,
    nonlinearity: str,
    lengths: Array | None = None,
    variant: Variant | None = None,
    backend: str | None = None,
) -> None:
    """Gradients of `rnn_forward` from those of y and h_last.

    Walking back from dh = dh_last at each row's own last step::

        da = (dh + dy_t) * (1 - h_t**2  for tanh,  h_t > 0  for relu)
        dx_t = da W_ih;  dh = da W_hh
        dW_ih = sum_t da^T x_t;  dW_hh = sum_t da^T h_{t-1};  db = sum_t sum_B da

    Parameters
    ----------
    dx : [T, B, I] or None, output
        0 beyond a row's length. None: not computed.
    dh0 : [B, H], output
    dw_ih : [H, I], dw_hh : [H, H], db : [H], output
        Sums over time and batch, overwritten.
    dln_gates : [2, H], output, with `ln_gates` only
    dpre : [T, B, H], output
        da, the gradient of the pre-activations; 0 beyond a row's length.
    norm : [2, T, B, H], consumed; rstd : [2, T, B]
        As `rnn_forward` saved them. On return norm holds the gradients of W_ih x_t and W_hh
        h_{t-1}.
    y : [T, B, H]
        As `rnn_forward` left it.
    h_in, x, h0, w_ih, w_hh, ln_gates, nonlinearity, mask_h, lengths, variant
        The arguments of `rnn_forward`.
    dy : [T, B, H]
        Ignored beyond a row's length.
    dh_last : [B, H] or None
        None: 0.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError, ValueError
        As `rnn_forward`.

    Notes
    -----
    Source: the chain rule on `rnn_forward`. The slope of relu at 0 is 0, as in torch.

    Examples
    --------
    >>> import numpy as np
    >>> h, w, x = np.zeros((1, 1)), np.ones((1, 1)), np.ones((2, 1, 1))
    >>> y = np.array([[[1.0]], [[2.0]]])
    >>> dw_ih, dw_hh, dpre = np.empty((1, 1)), np.empty((1, 1)), np.empty((2, 1, 1))
    >>> rnn_backward(dh0=h.copy(), dw_ih=dw_ih, dw_hh=dw_hh, db=np.empty(1), dpre=dpre, y=y, x=x,
    ...              h0=h, w_ih=w, w_hh=w, dy=np.ones((2, 1, 1)), nonlinearity="relu")
    >>> dpre[:, 0, 0], dw_hh
    (array([2., 1.]), array([[1.]]))
    """
    f = "rnn_backward"
    d: dict[str, Any] = {}
    check(x, "T B I", d, func=f, name="x")
    check(h0, "B H", d, func=f, name="h0")
    check(w_ih, "H I", d, func=f, name="w_ih")
    check(w_hh, "H H", d, func=f, name="w_hh")
    check(y, "T B H", d, func=f, name="y")
    check(dy, "T B H", d, func=f, name="dy")
    if dh_last is not None:
        check(dh_last, "B H", d, func=f, name="dh_last")
    if dx is not None:
        check(dx, "T B I", d, func=f, name="dx", out=True)
    check(dh0, "B H", d, func=f, name="dh0", out=True)
    check(dw_ih, "H I", d, func=f, name="dw_ih", out=True)
    check(dw_hh, "H H", d, func=f, name="dw_hh", out=True)
    check(db, "H", d, func=f, name="db", out=True)
    check(dpre, "T B H", d, func=f, name="dpre", out=True)
    _check_nonlinearity(nonlinearity, f)
    check_lengths(lengths, d, func=f)
    check_variant(variant, mask_h, h_in, d, func=f, writes=False)
    check_norm(1, d, func=f, ln_gates=ln_gates, norm=norm, rstd=rstd, saves=True)
    if check_goes_with(f, ln_gates, "ln_gates", dln_gates=dln_gates):
        check(dln_gates, "2 H", d, func=f, name="dln_gates", out=True)
    if variant is not None and variant.zoneout_h > 0 and not variant.sample:
        raise ValueError(f"{f}: variant.sample must be True: y does not hold the activation else")
    function(f, backend, d)(
        dx=dx,
        dh0=dh0,
        dw_ih=dw_ih,
        dw_hh=dw_hh,
        db=db,
        dln_gates=dln_gates,
        dpre=dpre,
        h_in=h_in,
        norm=norm,
        rstd=rstd,
        y=y,
        x=x,
        h0=h0,
        w_ih=w_ih,
        w_hh=w_hh,
        ln_gates=ln_gates,
        mask_h=mask_h,
        dy=dy,
        dh_last=dh_last,
        nonlinearity=nonlinearity,
        lengths=lengths,
        variant=variant,
    )


def _check_nonlinearity(nonlinearity: object, func: str) -> None:
    if nonlinearity != "tanh" and nonlinearity != "relu":
        kind = ValueError if isinstance(nonlinearity, str) else TypeError
        got = describe(nonlinearity)
        raise kind(f'{func}: nonlinearity must be "tanh" or "relu", got {got}')
