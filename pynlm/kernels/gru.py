"""GRU over a whole sequence, reset after or before the product: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import Array, check, check_lengths, check_together

from ._backend import function
from .variant import Variant, check_goes_with, check_norm, check_variant


def gru_forward(
    *,
    y: Array,
    h_last: Array,
    gates: Array | None = None,
    hn: Array | None = None,
    h_in: Array | None = None,
    norm: Array | None = None,
    rstd: Array | None = None,
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    b: Array,
    b_hn: Array | None,
    ln_gates: Array | None = None,
    mask_h: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
    backend: str | None = None,
) -> None:
    """Run a GRU layer over T steps of B rows, with torch.nn.GRU's equations.

    With the rows of the weights in the order r, z, n::

        r = sigmoid(W_ir x_t + W_hr h + b_r);  z = sigmoid(W_iz x_t + W_hz h + b_z)
        hn = W_hn h + b_hn;  n = tanh(W_in x_t + b_n + r * hn)
        h_t = (1 - z) * n + z * h

    Without b_hn the reset comes before the product: n = tanh(W_in x_t + b_n + W_hn (r * h)).

    Parameters
    ----------
    y : [T, B, H], output
        h_t of every step; 0 beyond a row's length.
    h_last : [B, H], output
        State after each row's own last step; h0 where the length is 0.
    gates : [T, B, 3H], hn : [T, B, H], output, both or neither
        Saved for `gru_backward`: r, z, n after their nonlinearities, and hn (without b_hn: r * h).
        Unspecified beyond a row's length. None: forward only.
    norm : [2, T, B, 3H], rstd : [2, T, B], output
        With `ln_gates` where `gates` is saved: what layer norm made of W_ih x_t and W_hh h, before
        its gains, and each row's 1 / sqrt(var + 1e-5). Unspecified beyond a row's length.
    h_in : [T, B, H], output, with `mask_h` only
        y * mask_h, saved for `gru_backward`; 0 beyond a row's length.
    x : [T, B, I]
        Input. Ignored beyond a row's length, where it may be NaN.
    h0 : [B, H]
        Initial state.
    w_ih : [3H, I], w_hh : [3H, H]
        Weights in torch.nn.GRU's layout.
    b : [3H], b_hn : [H] or None
        b is torch's b_ih, plus b_hh for r and z; b_hn is the n part of torch's b_hh. None: reset
        before the product.
    ln_gates : [2, 3H] or None
        Layer norm, N(v) = (v - mean(v)) / sqrt(var(v) + 1e-5) over a row: ln_gates[0] * N(W_ih x_t)
        and ln_gates[1] * N(W_hh h) in place of W_ih x_t and W_hh h. Not without b_hn.
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
        Shape, layout or range, an array missing that goes with another, or layer norm with the
        reset before the product, for which it is not defined.

    Notes
    -----
    Source: Cho et al., arXiv:1406.1078v1, eq. 5-8; reset before: arXiv:1406.1078v3, eq. 8; layer
    norm: Ba, Kiros & Hinton, arXiv:1607.06450, with one bias.

    Examples
    --------
    >>> import numpy as np
    >>> h, y, w = np.zeros((1, 2)), np.empty((3, 1, 2)), np.ones((6, 2))
    >>> gru_forward(y=y, h_last=h.copy(), x=np.ones((3, 1, 2)), h0=h, w_ih=w, w_hh=w,
    ...             b=np.zeros(6), b_hn=np.zeros(2))
    >>> y[:, 0, 0].round(3)
    array([0.115, 0.199, 0.264])
    """
    f = "gru_forward"
    d: dict[str, Any] = {}
    check(x, "T B I", d, func=f, name="x")
    check(h0, "B H", d, func=f, name="h0")
    check(w_ih, "3H I", d, func=f, name="w_ih")
    check(w_hh, "3H H", d, func=f, name="w_hh")
    check(b, "3H", d, func=f, name="b")
    if b_hn is not None:
        check(b_hn, "H", d, func=f, name="b_hn")
    check(y, "T B H", d, func=f, name="y", out=True)
    check(h_last, "B H", d, func=f, name="h_last", out=True)
    saves = check_together(func=f, gates=gates, hn=hn)
    if saves:
        check(gates, "T B 3H", d, func=f, name="gates", out=True)
        check(hn, "T B H", d, func=f, name="hn", out=True)
    check_lengths(lengths, d, func=f)
    check_variant(variant, mask_h, h_in, d, func=f, writes=True)
    _check_norm(d, f, ln_gates, norm, rstd, saves=saves, reset_after=b_hn is not None)
    function(f, backend, d)(
        y=y,
        h_last=h_last,
        gates=gates,
        hn=hn,
        h_in=h_in,
        norm=norm,
        rstd=rstd,
        x=x,
        h0=h0,
        w_ih=w_ih,
        w_hh=w_hh,
        b=b,
        b_hn=b_hn,
        ln_gates=ln_gates,
        mask_h=mask_h,
        lengths=lengths,
        variant=variant,
    )


def gru_backward(
    *,
    dx: Array | None = None,
    dh0: Array,
    dw_ih: Array,
    dw_hh: Array,
    db: Array,
    db_hn: Array | None,
    dln_gates: Array | None = None,
    gates: Array,
    hn: Array,
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
    lengths: Array | None = None,
    variant: Variant | None = None,
    backend: str | None = None,
) -> None:
    """Gradients of `gru_forward` from those of y and h_last.

    Walking back from dh = dh_last at each row's own last step, h the state before the step::

        dh += dy_t;  dz = dh * (h - n) * z * (1 - z);  dn = dh * (1 - z) * (1 - n**2)
        dr = dn * hn * r * (1 - r);  dhn = dn * r
        dx_t = [dr, dz, dn] W_ih;  dh = dh * z + [dr, dz, dhn] W_hh
        dW_ih = sum_t [dr, dz, dn]^T x_t;  dW_hh = sum_t [dr, dz, dhn]^T h

    Parameters
    ----------
    dx : [T, B, I] or None, output
        0 beyond a row's length. None: not computed.
    dh0 : [B, H], output
    dw_ih : [3H, I], dw_hh : [3H, H], db : [3H], db_hn : [H], output
        Sums over time and batch, overwritten. db_hn None: reset before the product.
    dln_gates : [2, 3H], output, with `ln_gates` only
    gates : [T, B, 3H], hn : [T, B, H], consumed
        As `gru_forward` saved them. On return: dr, dz, dn, and dhn; 0 beyond a row's length.
        Without db_hn hn keeps its values, but for zeros beyond.
    norm : [2, T, B, 3H], consumed; rstd : [2, T, B]
        As `gru_forward` saved them. On return norm holds the gradients of W_ih x_t and W_hh h.
    y : [T, B, H]
        As `gru_forward` left it.
    h_in, x, h0, w_ih, w_hh, ln_gates, mask_h, lengths, variant
        The arguments of `gru_forward`.
    dy : [T, B, H]
        Ignored beyond a row's length.
    dh_last : [B, H] or None
        None: 0.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError, ValueError
        As `gru_forward`.

    Notes
    -----
    Source: the chain rule on `gru_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> h, x, w = np.zeros((1, 1)), np.ones((1, 1, 1)), np.ones((3, 1))
    >>> y, hn, gates = np.empty((1, 1, 1)), np.empty((1, 1, 1)), np.empty((1, 1, 3))
    >>> gru_forward(y=y, h_last=h.copy(), gates=gates, hn=hn, x=x, h0=h, w_ih=w, w_hh=w,
    ...             b=np.zeros(3), b_hn=np.zeros(1))
    >>> dw_ih, dw_hh = np.empty((3, 1)), np.empty((3, 1))
    >>> gru_backward(dh0=h.copy(), dw_ih=dw_ih, dw_hh=dw_hh, db=np.empty(3), db_hn=np.empty(1),
    ...              gates=gates, hn=hn, y=y, x=x, h0=h, w_ih=w, w_hh=w, dy=np.ones((1, 1, 1)))
    >>> dw_ih[:, 0].round(3)
    array([ 0.   , -0.15 ,  0.113])
    """
    f = "gru_backward"
    d: dict[str, Any] = {}
    check(x, "T B I", d, func=f, name="x")
    check(h0, "B H", d, func=f, name="h0")
    check(w_ih, "3H I", d, func=f, name="w_ih")
    check(w_hh, "3H H", d, func=f, name="w_hh")
    check(gates, "T B 3H", d, func=f, name="gates", out=True)
    check(hn, "T B H", d, func=f, name="hn", out=True)
    check(y, "T B H", d, func=f, name="y")
    check(dy, "T B H", d, func=f, name="dy")
    if dh_last is not None:
        check(dh_last, "B H", d, func=f, name="dh_last")
    if dx is not None:
        check(dx, "T B I", d, func=f, name="dx", out=True)
    check(dh0, "B H", d, func=f, name="dh0", out=True)
    check(dw_ih, "3H I", d, func=f, name="dw_ih", out=True)
    check(dw_hh, "3H H", d, func=f, name="dw_hh", out=True)
    check(db, "3H", d, func=f, name="db", out=True)
    if db_hn is not None:
        check(db_hn, "H", d, func=f, name="db_hn", out=True)
    check_lengths(lengths, d, func=f)
    check_variant(variant, mask_h, h_in, d, func=f, writes=False)
    _check_norm(d, f, ln_gates, norm, rstd, saves=True, reset_after=db_hn is not None)
    if check_goes_with(f, ln_gates, "ln_gates", dln_gates=dln_gates):
        check(dln_gates, "2 3H", d, func=f, name="dln_gates", out=True)
    function(f, backend, d)(
        dx=dx,
        dh0=dh0,
        dw_ih=dw_ih,
        dw_hh=dw_hh,
        db=db,
        db_hn=db_hn,
        dln_gates=dln_gates,
        gates=gates,
        hn=hn,
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
        lengths=lengths,
        variant=variant,
    )


def _check_norm(
    d: dict[str, Any],
    f: str,
    ln_gates: Array | None,
    norm: Array | None,
    rstd: Array | None,
    *,
    saves: bool,
    reset_after: bool,
) -> None:
    if ln_gates is not None and not reset_after:
        raise ValueError(
            f"{f}: ln_gates must be None without b_hn: layer norm is not defined for the GRU that "
            "resets before the product"
        )
    check_norm(3, d, func=f, ln_gates=ln_gates, norm=norm, rstd=rstd, saves=saves)
