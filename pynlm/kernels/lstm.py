"""LSTM over a whole sequence: contract and dispatch."""

from __future__ import annotations

from typing import Any

from pynlm.arrays import Array, check, check_lengths, check_together

from ._backend import function
from .variant import Variant, check_goes_with, check_norm, check_variant


def lstm_forward(
    *,
    y: Array,
    h_last: Array,
    c_last: Array,
    gates: Array | None = None,
    c: Array | None = None,
    h_in: Array | None = None,
    m: Array | None = None,
    norm: Array | None = None,
    norm_c: Array | None = None,
    rstd: Array | None = None,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    b: Array,
    peephole: Array | None = None,
    w_hr: Array | None = None,
    ln_gates: Array | None = None,
    ln_cell: Array | None = None,
    mask_h: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
    backend: str | None = None,
) -> None:
    """Run an LSTM layer over T steps of B rows.

    With a_t = W_ih x_t + W_hh h_{t-1} + b, split into a_i, a_f, a_g, a_o of height H::

        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)
        c_t = f * c_{t-1} + i * g;  h_t = o * tanh(c_t)

    Shapes are those of four gates; with `variant.coupled` read 3H for 4H (i, g, o; f = 1 - i). P is
    H without projection.

    Parameters
    ----------
    y : [T, B, P], output
        h_t of every step; 0 beyond a row's length.
    h_last : [B, P], c_last : [B, H], output
        State after each row's own last step; h0, c0 where the length is 0.
    gates : [T, B, 4H], output
        Saved for `lstm_backward`, with c: i, f, g, o after their nonlinearities. Unspecified
        beyond a row's length. None: forward only.
    c : [T, B, H], output
        c_t of every step. Unspecified beyond a row's length.
    m : [T, B, H], output, with `w_hr` where `gates` is saved
        o * tanh(c'), before the projection; 0 beyond a row's length.
    norm : [2, T, B, 4H], norm_c : [T, B, H], rstd : [3, T, B], output
        With `ln_gates` where `gates` is saved: what layer norm made of W_ih x_t, W_hh h_{t-1} and
        c', before its gains, and each row's 1 / sqrt(var + 1e-5). Unspecified beyond a row's
        length.
    h_in : [T, B, P], output, with `mask_h` only
        y * mask_h, saved for `lstm_backward`; 0 beyond a row's length.
    x : [T, B, I]
        Input. Ignored beyond a row's length, where it may be NaN.
    h0 : [B, P], c0 : [B, H]
        Initial state.
    w_ih : [4H, I], w_hh : [4H, P], b : [4H]
        Weights in torch.nn.LSTM's layout, with one bias (the sum of torch's two).
    peephole : [3H] or None
        p_i, p_f, p_o: a_i += p_i * c_{t-1}, a_f += p_f * c_{t-1}, a_o += p_o * c',
        where c' is c_t before zoneout. With coupled gates [2H]: p_i, p_o.
    w_hr : [P, H] or None
        Projection (LSTMP): h_t = W_hr (o * tanh(c_t)).
    ln_gates : [2, 4H], ln_cell : [2, H], both or None
        Layer norm. With N(v) = (v - mean(v)) / sqrt(var(v) + 1e-5) over a row, a_t becomes
        ln_gates[0] * N(W_ih x_t) + ln_gates[1] * N(W_hh h_{t-1}) + b, and the output sees
        ln_cell[0] * N(c') + ln_cell[1] in place of c'. `variant.norm_state` says whether that is
        the new cell state, too (torch's custom LSTM), or not (haste).
    mask_h : [B, P] or None
        Variational recurrent dropout: h_{t-1} enters W_hh as h_{t-1} * mask_h.
    lengths : int32 [B] or None
        Steps that each row takes part in, non-increasing, 0 to T. None: all T.
    variant : Variant or None
        Zoneout, clipping, coupled gates, the form of layer norm. None: none of them.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

    Raises
    ------
    TypeError
        An argument is no array or has another dtype.
    ValueError
        Shape, layout or range, or an array missing that goes with another.

    Notes
    -----
    Source: Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000, §3 (forget gate); Gers,
    Schraudolph & Schmidhuber 2002, eq. 5-8 (peepholes); Sak, Senior & Beaufays, arXiv:1402.1128
    (projection); Ba, Kiros & Hinton, arXiv:1607.06450, eq. 20-22 (layer norm, there with a bias for
    each product); `Variant` names the others'.

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
    check(c0, "B H", d, func=f, name="c0")
    gh, p = _check_weights(d, f, h0, w_ih, w_hh, peephole, w_hr, variant)
    check(b, gh, d, func=f, name="b")
    check(y, f"T B {p}", d, func=f, name="y", out=True)
    check(h_last, f"B {p}", d, func=f, name="h_last", out=True)
    check(c_last, "B H", d, func=f, name="c_last", out=True)
    saves = gates is not None
    if saves and c is None:
        raise ValueError(f"{f}: c must be an array, because gates is one")
    if saves:
        check(gates, f"T B {gh}", d, func=f, name="gates", out=True)
    if c is not None:
        check(c, "T B H", d, func=f, name="c", out=True)
    check_lengths(lengths, d, func=f)
    check_variant(variant, mask_h, h_in, d, func=f, writes=True, width=p)
    _check_saved(d, f, gh, m, norm, norm_c, rstd, w_hr, ln_gates, ln_cell, saves=saves)
    _check_norm_state(f, variant, ln_cell)
    function(f, backend, d)(
        y=y,
        h_last=h_last,
        c_last=c_last,
        gates=gates,
        c=c,
        h_in=h_in,
        m=m,
        norm=norm,
        norm_c=norm_c,
        rstd=rstd,
        x=x,
        h0=h0,
        c0=c0,
        w_ih=w_ih,
        w_hh=w_hh,
        b=b,
        peephole=peephole,
        w_hr=w_hr,
        ln_gates=ln_gates,
        ln_cell=ln_cell,
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
    dw_hr: Array | None = None,
    dln_gates: Array | None = None,
    dln_cell: Array | None = None,
    gates: Array,
    c: Array,
    h_in: Array | None = None,
    m: Array | None = None,
    norm: Array | None = None,
    norm_c: Array | None = None,
    rstd: Array | None = None,
    y: Array,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    peephole: Array | None = None,
    w_hr: Array | None = None,
    ln_gates: Array | None = None,
    ln_cell: Array | None = None,
    mask_h: Array | None = None,
    dy: Array,
    dh_last: Array | None = None,
    dc_last: Array | None = None,
    lengths: Array | None = None,
    variant: Variant | None = None,
    backend: str | None = None,
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
    dh0 : [B, P], dc0 : [B, H], output
    dw_ih : [4H, I], dw_hh : [4H, P], db : [4H], output
        Sums over time and batch, overwritten.
    dpeephole : [3H], dw_hr : [P, H], dln_gates : [2, 4H], dln_cell : [2, H], output
        Each with what it is the gradient of.
    gates : [T, B, 4H], consumed
        As `lstm_forward` saved it. On return: da, the gradient of the pre-activations, 0 beyond a
        row's length.
    norm : [2, T, B, 4H], consumed
        As `lstm_forward` saved it. On return: gradients of W_ih x_t and W_hh h_{t-1}.
    c : [T, B, H], y : [T, B, P]
        As `lstm_forward` left them.
    h_in, m, norm_c, rstd, x, h0, c0, w_ih, w_hh, peephole, w_hr, ln_gates, ln_cell, mask_h
        The arguments of `lstm_forward`.
    lengths, variant
        Likewise.
    dy : [T, B, P]
        Ignored beyond a row's length.
    dh_last : [B, P], dc_last : [B, H] or None
        None: 0.
    backend : "cpu", "cuda", "reference" or None
        None: "cuda" for arrays of a GPU, else "cpu".

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
    check(c0, "B H", d, func=f, name="c0")
    gh, p = _check_weights(d, f, h0, w_ih, w_hh, peephole, w_hr, variant)
    check(y, f"T B {p}", d, func=f, name="y")
    check(c, "T B H", d, func=f, name="c")
    check(dy, f"T B {p}", d, func=f, name="dy")
    if dh_last is not None:
        check(dh_last, f"B {p}", d, func=f, name="dh_last")
    if dc_last is not None:
        check(dc_last, "B H", d, func=f, name="dc_last")
    if dx is not None:
        check(dx, "T B I", d, func=f, name="dx", out=True)
    check(dh0, f"B {p}", d, func=f, name="dh0", out=True)
    check(dc0, "B H", d, func=f, name="dc0", out=True)
    check(dw_ih, f"{gh} I", d, func=f, name="dw_ih", out=True)
    check(dw_hh, f"{gh} {p}", d, func=f, name="dw_hh", out=True)
    check(db, gh, d, func=f, name="db", out=True)
    check(gates, f"T B {gh}", d, func=f, name="gates", out=True)
    check_lengths(lengths, d, func=f)
    check_variant(variant, mask_h, h_in, d, func=f, writes=False, width=p)
    _check_saved(d, f, gh, m, norm, norm_c, rstd, w_hr, ln_gates, ln_cell, saves=True)
    _check_norm_state(f, variant, ln_cell)
    for name, gradient, other, weights, shape in (
        ("dpeephole", dpeephole, "peephole", peephole, "2H" if gh == "3H" else "3H"),
        ("dw_hr", dw_hr, "w_hr", w_hr, "P H"),
        ("dln_gates", dln_gates, "ln_gates", ln_gates, f"2 {gh}"),
        ("dln_cell", dln_cell, "ln_cell", ln_cell, "2 H"),
    ):
        if check_goes_with(f, weights, other, **{name: gradient}):
            check(gradient, shape, d, func=f, name=name, out=True)
    function(f, backend, d)(
        dx=dx,
        dh0=dh0,
        dc0=dc0,
        dw_ih=dw_ih,
        dw_hh=dw_hh,
        db=db,
        dpeephole=dpeephole,
        dw_hr=dw_hr,
        dln_gates=dln_gates,
        dln_cell=dln_cell,
        gates=gates,
        c=c,
        h_in=h_in,
        m=m,
        norm=norm,
        norm_c=norm_c,
        rstd=rstd,
        y=y,
        x=x,
        h0=h0,
        c0=c0,
        w_ih=w_ih,
        w_hh=w_hh,
        peephole=peephole,
        w_hr=w_hr,
        ln_gates=ln_gates,
        ln_cell=ln_cell,
        mask_h=mask_h,
        dy=dy,
        dh_last=dh_last,
        dc_last=dc_last,
        lengths=lengths,
        variant=variant,
    )


def _check_weights(
    d: dict[str, Any],
    f: str,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    peephole: Array | None,
    w_hr: Array | None,
    variant: Variant | None,
) -> tuple[str, str]:
    """Check what both passes take; symbols of the gates' rows and of the state's width."""
    coupled = isinstance(variant, Variant) and variant.coupled
    gh, p = "3H" if coupled else "4H", "H" if w_hr is None else "P"
    if w_hr is not None:
        check(w_hr, "P H", d, func=f, name="w_hr")
    check(h0, f"B {p}", d, func=f, name="h0")
    check(w_ih, f"{gh} I", d, func=f, name="w_ih")
    check(w_hh, f"{gh} {p}", d, func=f, name="w_hh")
    if peephole is not None:
        check(peephole, "2H" if coupled else "3H", d, func=f, name="peephole")
    return gh, p


def _check_saved(
    d: dict[str, Any],
    f: str,
    gh: str,
    m: Array | None,
    norm: Array | None,
    norm_c: Array | None,
    rstd: Array | None,
    w_hr: Array | None,
    ln_gates: Array | None,
    ln_cell: Array | None,
    *,
    saves: bool,
) -> None:
    """Check projection's and layer norm's arrays; `m` and `norm_c` only where the pass saves."""
    if check_goes_with(f, w_hr if saves else None, "w_hr", "nothing is saved", m=m):
        check(m, "T B H", d, func=f, name="m", out=True)
    if check_together(func=f, ln_gates=ln_gates, ln_cell=ln_cell):
        check(ln_cell, "2 H", d, func=f, name="ln_cell")
    check_norm(int(gh[0]), d, func=f, ln_gates=ln_gates, norm=norm, rstd=rstd, saves=saves, norms=3)
    saved = ln_gates if saves else None
    if check_goes_with(f, saved, "ln_gates", "nothing is saved", norm_c=norm_c):
        check(norm_c, "T B H", d, func=f, name="norm_c", out=True)


def _check_norm_state(f: str, variant: Variant | None, ln_cell: Array | None) -> None:
    if variant is not None and variant.norm_state and ln_cell is None:
        raise ValueError(f"{f}: variant.norm_state must be False without ln_cell")
