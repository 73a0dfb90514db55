"""Options of the recurrent layers: what they do besides their cell's plain equations."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import INT32, describe
from pynlm.kernels import Variant
from pynlm.kernels.dropout import dropout
from pynlm.layers.context import Context, Site
from pynlm.layers.convert import take
from pynlm.layers.pool import Pool

Array = npt.NDArray[Any]

PROBABILITIES = ("recurrent_dropout", "weight_drop", "zoneout", "zoneout_cell")
SWITCHES = ("layer_norm", "layer_norm_state", "peephole", "coupled_gates", "reset_before")
ONLY = {
    **dict.fromkeys(("zoneout_cell", "peephole", "cell_clip", "coupled_gates"), "LSTM"),
    **dict.fromkeys(("projection", "layer_norm_state"), "LSTM"),
    "reset_before": "GRU",
}
"""Options that one cell alone has, and that cell."""


@dataclass(frozen=True, kw_only=True)
class RecurrentOptions:
    """Variants of a recurrent layer; all combine, but `layer_norm` and `reset_before`.

    ================== ==== === === ============================================================
    option             LSTM GRU RNN source
    ================== ==== === === ============================================================
    recurrent_dropout  yes  yes yes Gal & Ghahramani, arXiv:1512.05287
    weight_drop        yes  yes yes Merity, Keskar & Socher, arXiv:1708.02182
    zoneout            yes  yes yes Krueger et al., arXiv:1606.01305
    zoneout_cell       yes          the same
    layer_norm         yes  yes yes Ba, Kiros & Hinton, arXiv:1607.06450
    layer_norm_state   yes          torch's custom LSTM
    peephole           yes          Gers, Schraudolph & Schmidhuber 2002
    coupled_gates      yes          Greff et al., arXiv:1503.04069 (CIFG)
    projection         yes          Sak, Senior & Beaufays, arXiv:1402.1128 (LSTMP)
    cell_clip          yes          the same
    state_clip         yes  yes yes the same (there of the projected state)
    reset_before           yes      Cho et al., arXiv:1406.1078v3
    ================== ==== === === ============================================================

    Parameters
    ----------
    recurrent_dropout
        Probability in [0, 1) of a zero in the state that enters `w_hh`; one mask for all time steps
        of a call, scaled by 1 / (1 - p). Only in training.
    weight_drop
        Probability in [0, 1) of a zero in `w_hh` (DropConnect), one mask a call, scaled by
        1 / (1 - p). Only in training.
    zoneout, zoneout_cell
        Probability in [0, 1) that a unit of h (of c) keeps its value in a step. In training drawn
        for each step, row and unit; otherwise old and new value are mixed in that proportion.
    layer_norm
        Normalise the products with `w_ih` and with `w_hh` over all gates of a row, with a gain
        each, before they and the bias are added; an LSTM's output sees its cell state normalised,
        with gain and bias (the form of haste).
    layer_norm_state
        The normalised cell state is also what the next step sees (the form of torch's custom LSTM).
    peephole
        Weights [3H] from the cell state to the gates i, f and o ([2H], i and o, if they are
        coupled).
    coupled_gates
        Three gates i, g, o, and f = 1 - i.
    projection
        Width P of h_t = w_hr (o * tanh(c_t)), the layer's output; 0: none.
    reset_before
        The reset gate multiplies the state before the product with `w_hh`, not after.
    cell_clip
        Bound of the cell state's magnitude; 0: none.
    state_clip
        Bound of h's magnitude, after projection and before zoneout; 0: none.

    Raises
    ------
    TypeError
        `projection` no integer, a switch no bool, another option no number.
    ValueError
        A value outside its range.

    Examples
    --------
    >>> from pynlm.layers import LSTM, Context, Parameters
    >>> options = RecurrentOptions(zoneout=0.1, peephole=True)
    >>> layer = LSTM(Parameters(LSTM.specs("lstm", 3, 5, options=options)), "lstm", options)
    >>> x, state = np.ones((7, 2, 3), np.float32), layer.initial_state(2)
    >>> (y, state), backprop = layer(x, state, Context(train=True))
    >>> y.shape
    (7, 2, 5)
    """

    recurrent_dropout: float = 0.0
    weight_drop: float = 0.0
    zoneout: float = 0.0
    zoneout_cell: float = 0.0
    layer_norm: bool = False
    layer_norm_state: bool = False
    peephole: bool = False
    coupled_gates: bool = False
    projection: int = 0
    cell_clip: float = 0.0
    state_clip: float = 0.0
    reset_before: bool = False

    def __post_init__(self) -> None:
        for name in SWITCHES:
            value = getattr(self, name)
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"RecurrentOptions: {name} must be a bool, got {describe(value)}")
        for name in (*PROBABILITIES, "cell_clip", "state_clip"):
            value = getattr(self, name)
            # True would be 1: taken for a switch, an option would become a bound.
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
                raise TypeError(f"RecurrentOptions: {name} must be a number, got {describe(value)}")
        for name in PROBABILITIES:
            p = getattr(self, name)
            if not 0.0 <= p < 1.0:
                raise ValueError(f"RecurrentOptions: {name} must be in [0, 1), got {p}")
        for name in ("cell_clip", "state_clip"):
            bound = getattr(self, name)
            if not 0.0 <= bound < np.inf:
                raise ValueError(f"RecurrentOptions: {name} must be 0 or more, got {bound}")
        width = self.projection
        if isinstance(width, bool) or not isinstance(width, (int, np.integer)):
            raise TypeError(
                f"RecurrentOptions: projection must be an integer, got {describe(width)}"
            )
        if width < 0:
            raise ValueError(f"RecurrentOptions: projection must be 0 or more, got {width}")
        if self.layer_norm_state and not self.layer_norm:
            raise ValueError("RecurrentOptions: layer_norm_state must be False without layer_norm")
        if self.layer_norm and self.reset_before:
            raise ValueError(
                "RecurrentOptions: layer_norm and reset_before are not defined together"
            )

    def undefined_for(self, cell: str) -> tuple[str, str] | None:
        """The first option that is set and that `cell` ("LSTM", "GRU", "RNN") does not have.

        With the one cell that has it.
        """
        wrong = (name for name, own in ONLY.items() if own != cell and getattr(self, name))
        return next(((name, ONLY[name]) for name in wrong), None)


@dataclass(frozen=True)
class Drawn:
    """What one call draws: the weights that it uses, and what its kernels take besides."""

    w_hh: Array
    mask_h: Array | None
    variant: Variant | None


def draw(
    options: RecurrentOptions,
    w_hh: Array,
    batch: int,
    rows: npt.NDArray[np.intp] | None,
    layer: int,
    ctx: Context,
    pool: Pool,
) -> Drawn:
    """Masks and settings of a call; `rows` are the original numbers of sorted rows."""
    mask_h = None
    if ctx.train and options.weight_drop > 0:
        w_hh = drop_weights(options, pool.like(w_hh), w_hh, layer, ctx)
    if ctx.train and options.recurrent_dropout > 0:
        mask_h = pool.lease((1, batch, w_hh.shape[1]), w_hh.dtype)
        mask_h.fill(1)
        dropout(
            y=mask_h, x=mask_h, p=options.recurrent_dropout, seed=ctx.seed, step=ctx.step,
            site=Site.RECURRENT, layer=layer, locked=True, backend=ctx.backend,
        )  # fmt: skip
        mask_h = mask_h[0] if rows is None else take(mask_h[0], rows, pool)
    variant = None
    clips = options.cell_clip or options.state_clip
    forms = options.coupled_gates or options.layer_norm_state
    if options.zoneout or options.zoneout_cell or clips or forms:
        variant = Variant(
            zoneout_h=options.zoneout, zoneout_c=options.zoneout_cell,
            clip_h=options.state_clip, clip_c=options.cell_clip, coupled=options.coupled_gates,
            norm_state=options.layer_norm_state, sample=ctx.train, seed=ctx.seed, step=ctx.step,
            layer=layer, time0=ctx.time0, rows=None if rows is None else rows.astype(INT32),
        )  # fmt: skip
    return Drawn(w_hh, mask_h, variant)


def drop_weights(
    options: RecurrentOptions, out: Array, w: Array, layer: int, ctx: Context
) -> Array:
    """`w`, or a gradient of it, under the call's weight-drop mask, in `out`, which may be `w`."""
    dropout(
        y=out[None], x=w[None], p=options.weight_drop, seed=ctx.seed, step=ctx.step,
        site=Site.WEIGHT, layer=layer, locked=True, backend=ctx.backend,
    )  # fmt: skip
    return out
