"""GRU over a whole sequence, reset gate after the product: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import Array, check, check_lengths, check_together

from ._backend import function
from .variant import Variant, check_variant


def gru_forward(
    *,
    y: Array,
    h_last: Array,
    gates: Array | None = None,
    hn: Array | None = None,
    h_in: Array | None = None,
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    b: Array,
    b_hn: Array,
    mask_h: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
    backend: str = "cpu",
) -> None:
    """Run a GRU layer over T steps of B rows, with torch.nn.GRU's equations.

    With the rows of the weights in the order r, z, n::

        r = sigmoid(W_ir x_t + W_hr h + b_r);  z = sigmoid(W_iz x_t + W_hz h + b_z)
        hn = W_hn h + b_hn;  n = tanh(W_in x_t + b_n + r * hn)
        h_t = (1 - z) * n + z * h

    Parameters
    ----------
    y : [T, B, H], output
        h_t of every step; 0 beyond a row's length.
    h_last : [B, H], output
        State after each row's own last step; h0 where the length is 0.
    gates : [T, B, 3H], hn : [T, B, H], output, both or neither
        Saved for `gru_backward`: r, z, n after their nonlinearities, and hn. Unspecified beyond a
        row's length. None: forward only.
    h_in : [T, B, H], output, with `mask_h` only
        y * mask_h, saved for `gru_backward`; 0 beyond a row's length.
    x : [T, B, I]
        Input. Ignored beyond a row's length, where it may be NaN.
    h0 : [B, H]
        Initial state.
    w_ih : [3H, I], w_hh : [3H, H]
        Weights in torch.nn.GRU's layout.
    b : [3H], b_hn : [H]
        b is torch's b_ih, plus b_hh for r and z; b_hn is the n part of torch's b_hh.
    mask_h : [B, H] or None
        Variational recurrent dropout: h_{t-1} enters W_hh as h_{t-1} * mask_h.
    lengths : int32 [B] or None
        Steps that each row takes part in, non-increasing, 0 to T. None: all T.
    variant : Variant or None
        Zoneout. None: the plain cell.
    backend : "cpu" or "reference"

    Raises
    ------
    TypeError
        An argument is no NumPy array or has another dtype.
    ValueError
        Shape, layout or range, or only one of `gates` and `hn` given.

    Notes
    -----
    Source: Cho et al., arXiv:1406.1078v1, eq. 5-8.

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
    check(b_hn, "H", d, func=f, name="b_hn")
    check(y, "T B H", d, func=f, name="y", out=True)
    check(h_last, "B H", d, func=f, name="h_last", out=True)
    if check_together(func=f, gates=gates, hn=hn):
        check(gates, "T B 3H", d, func=f, name="gates", out=True)
        check(hn, "T B H", d, func=f, name="hn", out=True)
    check_lengths(lengths, d, func=f)
    check_variant(variant, mask_h, h_in, d, func=f, writes=True)
    function(f, backend)(
        y=y,
        h_last=h_last,
        gates=gates,
        hn=hn,
        h_in=h_in,
        x=x,
        h0=h0,
        w_ih=w_ih,
        w_hh=w_hh,
        b=b,
        b_hn=b_hn,
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
    db_hn: Array,
    gates: Array,
    hn: Array,
    h_in: Array | None = None,
    y: Array,
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    mask_h: Array | None = None,
    dy: Array,
    dh_last: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
    backend: str = "cpu",
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
        Sums over time and batch, overwritten.
    gates : [T, B, 3H], hn : [T, B, H], consumed
        As `gru_forward` saved them. On return: dr, dz, dn, and dhn; 0 beyond a row's length.
    y : [T, B, H]
        As `gru_forward` left it.
    h_in, x, h0, w_ih, w_hh, mask_h, lengths, variant
        The arguments of `gru_forward`.
    dy : [T, B, H]
        Ignored beyond a row's length.
    dh_last : [B, H] or None
        None: 0.
    backend : "cpu" or "reference"

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
    check(db_hn, "H", d, func=f, name="db_hn", out=True)
    check_lengths(lengths, d, func=f)
    check_variant(variant, mask_h, h_in, d, func=f, writes=False)
    function(f, backend)(
        dx=dx,
        dh0=dh0,
        dw_ih=dw_ih,
        dw_hh=dw_hh,
        db=db,
        db_hn=db_hn,
        gates=gates,
        hn=hn,
        h_in=h_in,
        y=y,
        x=x,
        h0=h0,
        w_ih=w_ih,
        w_hh=w_hh,
        mask_h=mask_h,
        dy=dy,
        dh_last=dh_last,
        lengths=lengths,
        variant=variant,
    )
