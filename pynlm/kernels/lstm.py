"""LSTM over a whole sequence: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import Array, check, check_lengths, check_together

from ._backend import function
from .variant import Variant, check_variant


def lstm_forward(
    *,
    y: Array,
    h_last: Array,
    c_last: Array,
    gates: Array | None = None,
    c: Array | None = None,
    h_in: Array | None = None,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    b: Array,
    peephole: Array | None = None,
    mask_h: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
    backend: str = "cpu",
) -> None:
    """Run an LSTM layer over T steps of B rows.

    With a_t = W_ih x_t + W_hh h_{t-1} + b, split into a_i, a_f, a_g, a_o of height H::

        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)
        c_t = f * c_{t-1} + i * g;  h_t = o * tanh(c_t)

    Parameters
    ----------
    y : [T, B, H], output
        h_t of every step; 0 beyond a row's length.
    h_last, c_last : [B, H], output
        State after each row's own last step; h0, c0 where the length is 0.
    gates : [T, B, 4H], c : [T, B, H], output, both or neither
        Saved for `lstm_backward`: i, f, g, o after their nonlinearities, and the cell states.
        Unspecified beyond a row's length. None: forward only.
    h_in : [T, B, H], output, with `mask_h` only
        y * mask_h, saved for `lstm_backward`; 0 beyond a row's length.
    x : [T, B, I]
        Input. Ignored beyond a row's length, where it may be NaN.
    h0, c0 : [B, H]
        Initial state.
    w_ih : [4H, I], w_hh : [4H, H], b : [4H]
        Weights in torch.nn.LSTM's layout, with one bias (the sum of torch's two).
    peephole : [3H] or None
        p_i, p_f, p_o: a_i += p_i * c_{t-1}, a_f += p_f * c_{t-1}, a_o += p_o * c',
        where c' is c_t before zoneout.
    mask_h : [B, H] or None
        Variational recurrent dropout: h_{t-1} enters W_hh as h_{t-1} * mask_h.
    lengths : int32 [B] or None
        Steps that each row takes part in, non-increasing, 0 to T. None: all T.
    variant : Variant or None
        Zoneout, and for the LSTM clipping. None: the plain cell.
    backend : "cpu" or "reference"

    Raises
    ------
    TypeError
        An argument is no NumPy array or has another dtype.
    ValueError
        Shape, layout or range, or only one of `gates` and `c` given.

    Notes
    -----
    Source: Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000, §3 (forget gate); Gers,
    Schraudolph & Schmidhuber 2002, eq. 5-8 (peepholes); `Variant` names the others'.

    Examples
    --------
    >>> import numpy as np
    >>> h, y, w = np.zeros((1, 2)), np.empty((3, 1, 2)), np.ones((8, 2))
    >>> lstm_forward(y=y, h_last=h.copy(), c_last=h.copy(), x=np.ones((3, 1, 2)), h0=h, c0=h,
    ...              w_ih=w, w_hh=w, b=np.zeros(8))
    >>> y[:, 0, 0].round(3)
    array([0.608, 0.908, 0.97 ])
    """
    f = "lstm_forward"
    d: dict[str, Any] = {}
    check(x, "T B I", d, func=f, name="x")
    check(h0, "B H", d, func=f, name="h0")
    check(c0, "B H", d, func=f, name="c0")
    check(w_ih, "4H I", d, func=f, name="w_ih")
    check(w_hh, "4H H", d, func=f, name="w_hh")
    check(b, "4H", d, func=f, name="b")
    check(y, "T B H", d, func=f, name="y", out=True)
    check(h_last, "B H", d, func=f, name="h_last", out=True)
    check(c_last, "B H", d, func=f, name="c_last", out=True)
    if check_together(func=f, gates=gates, c=c):
        check(gates, "T B 4H", d, func=f, name="gates", out=True)
        check(c, "T B H", d, func=f, name="c", out=True)
    check_lengths(lengths, d, func=f)
    if peephole is not None:
        check(peephole, "3H", d, func=f, name="peephole")
    check_variant(variant, mask_h, h_in, d, func=f, writes=True)
    function(f, backend)(
        y=y,
        h_last=h_last,
        c_last=c_last,
        gates=gates,
        c=c,
        h_in=h_in,
        x=x,
        h0=h0,
        c0=c0,
        w_ih=w_ih,
        w_hh=w_hh,
        b=b,
        peephole=peephole,
        mask_h=mask_h,
        lengths=lengths,
        variant=variant,
    )


def lstm_backward(
    *,
    dx: Array | None = None,
    dh0: Array,
    dc0: Array,
    dw_ih: Array,
    dw_hh: Array,
    db: Array,
    dpeephole: Array | None = None,
    gates: Array,
    c: Array,
    h_in: Array | None = None,
    y: Array,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    peephole: Array | None = None,
    mask_h: Array | None = None,
    dy: Array,
    dh_last: Array | None = None,
    dc_last: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
    backend: str = "cpu",
) -> None:
    """Gradients of `lstm_forward` from those of y, h_last and c_last.

    Of the plain cell (csrc/recurrent/lstm_math.h has the variants), walking back from dh = dh_last,
    dc = dc_last at each row's own last step::

        dh += dy_t;  dc += dh * o * (1 - tanh(c_t)**2)
        da = [dc*g*i*(1-i), dc*c_{t-1}*f*(1-f), dc*i*(1-g**2), dh*tanh(c_t)*o*(1-o)]
        dx_t = da W_ih;  dh = da W_hh;  dc = dc * f
        dW_ih = sum_t da^T x_t;  dW_hh = sum_t da^T h_{t-1};  db = sum_t sum_B da

    Parameters
    ----------
    dx : [T, B, I] or None, output
        0 beyond a row's length. None: not computed (the first layer over constant input).
    dh0, dc0 : [B, H], output
    dw_ih : [4H, I], dw_hh : [4H, H], db : [4H], output
        Sums over time and batch, overwritten.
    dpeephole : [3H], output, with `peephole` only
    gates : [T, B, 4H], consumed
        As `lstm_forward` saved it. On return: da, the gradient of the pre-activations, 0 beyond a
        row's length.
    c, y : [T, B, H]
        As `lstm_forward` left them.
    h_in, x, h0, c0, w_ih, w_hh, peephole, mask_h, lengths, variant
        The arguments of `lstm_forward`.
    dy : [T, B, H]
        Ignored beyond a row's length.
    dh_last, dc_last : [B, H] or None
        None: 0.
    backend : "cpu" or "reference"

    Raises
    ------
    TypeError, ValueError
        As `lstm_forward`.

    Notes
    -----
    Source: the chain rule on `lstm_forward` (Werbos, "Backpropagation through time", 1990).

    Examples
    --------
    >>> import numpy as np
    >>> h, x, w = np.zeros((1, 1)), np.ones((1, 1, 1)), np.ones((4, 1))
    >>> y, c, gates = np.empty((1, 1, 1)), np.empty((1, 1, 1)), np.empty((1, 1, 4))
    >>> lstm_forward(y=y, h_last=h.copy(), c_last=h.copy(), gates=gates, c=c, x=x, h0=h, c0=h,
    ...              w_ih=w, w_hh=w, b=np.zeros(4))
    >>> dw_ih, dw_hh = np.empty((4, 1)), np.empty((4, 1))
    >>> lstm_backward(dh0=h.copy(), dc0=h.copy(), dw_ih=dw_ih, dw_hh=dw_hh, db=np.empty(4),
    ...               gates=gates, c=c, y=y, x=x, h0=h, c0=h, w_ih=w, w_hh=w, dy=np.ones((1, 1, 1)))
    >>> dw_ih[:, 0].round(3)
    array([0.081, 0.   , 0.167, 0.099])
    """
    f = "lstm_backward"
    d: dict[str, Any] = {}
    check(x, "T B I", d, func=f, name="x")
    check(h0, "B H", d, func=f, name="h0")
    check(c0, "B H", d, func=f, name="c0")
    check(w_ih, "4H I", d, func=f, name="w_ih")
    check(w_hh, "4H H", d, func=f, name="w_hh")
    check(gates, "T B 4H", d, func=f, name="gates", out=True)
    check(c, "T B H", d, func=f, name="c")
    check(y, "T B H", d, func=f, name="y")
    check(dy, "T B H", d, func=f, name="dy")
    if dh_last is not None:
        check(dh_last, "B H", d, func=f, name="dh_last")
    if dc_last is not None:
        check(dc_last, "B H", d, func=f, name="dc_last")
    if dx is not None:
        check(dx, "T B I", d, func=f, name="dx", out=True)
    check(dh0, "B H", d, func=f, name="dh0", out=True)
    check(dc0, "B H", d, func=f, name="dc0", out=True)
    check(dw_ih, "4H I", d, func=f, name="dw_ih", out=True)
    check(dw_hh, "4H H", d, func=f, name="dw_hh", out=True)
    check(db, "4H", d, func=f, name="db", out=True)
    check_lengths(lengths, d, func=f)
    if check_together(func=f, peephole=peephole, dpeephole=dpeephole):
        check(peephole, "3H", d, func=f, name="peephole")
        check(dpeephole, "3H", d, func=f, name="dpeephole", out=True)
    check_variant(variant, mask_h, h_in, d, func=f, writes=False)
    function(f, backend)(
        dx=dx,
        dh0=dh0,
        dc0=dc0,
        dw_ih=dw_ih,
        dw_hh=dw_hh,
        db=db,
        dpeephole=dpeephole,
        gates=gates,
        c=c,
        h_in=h_in,
        y=y,
        x=x,
        h0=h0,
        c0=c0,
        w_ih=w_ih,
        w_hh=w_hh,
        peephole=peephole,
        mask_h=mask_h,
        dy=dy,
        dh_last=dh_last,
        dc_last=dc_last,
        lengths=lengths,
        variant=variant,
    )
