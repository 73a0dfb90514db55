"""Options of the recurrent layers: what they do besides their cell's plain equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import INT32
from pynlm.kernels import Variant
from pynlm.kernels.dropout import dropout
from pynlm.layers.context import Context, Site
from pynlm.layers.pool import Pool

Array = npt.NDArray[Any]

PROBABILITIES = ("recurrent_dropout", "weight_drop", "zoneout", "zoneout_cell")
LSTM_ONLY = ("zoneout_cell", "peephole", "cell_clip")


@dataclass(frozen=True, kw_only=True)
class RecurrentOptions:
    """Variants of a recurrent layer; all combine.

    ================== ==== === === ============================================================
    option             LSTM GRU RNN source
    ================== ==== === === ============================================================
    recurrent_dropout  yes  yes yes Gal & Ghahramani, arXiv:1512.05287
    weight_drop        yes  yes yes Merity, Keskar & Socher, arXiv:1708.02182
    zoneout            yes  yes yes Krueger et al., arXiv:1606.01305
    zoneout_cell       yes          the same
    peephole           yes          Gers, Schraudolph & Schmidhuber 2002
    cell_clip          yes          Sak, Senior & Beaufays, arXiv:1402.1128
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
    peephole
        Weights [3H] from the cell state to the gates i, f and o.
    cell_clip
        Bound of the cell state's magnitude; 0: none.

    Raises
    ------
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
    peephole: bool = False
    cell_clip: float = 0.0

    def __post_init__(self) -> None:
        for name in PROBABILITIES:
            p = getattr(self, name)
            if not 0.0 <= p < 1.0:
                raise ValueError(f"RecurrentOptions: {name} must be in [0, 1), got {p}")
        if not 0.0 <= self.cell_clip < np.inf:
            raise ValueError(f"RecurrentOptions: cell_clip must be 0 or more, got {self.cell_clip}")

    def undefined_for(self, cell: str) -> str | None:
        """The first option that is set and that `cell` ("LSTM", "GRU", "RNN") does not have."""
        if cell == "LSTM":
            return None
        return next((name for name in LSTM_ONLY if getattr(self, name)), None)


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
        mask_h = mask_h[0] if rows is None else mask_h[0][rows]
    variant = None
    if options.zoneout or options.zoneout_cell or options.cell_clip:
        variant = Variant(
            zoneout_h=options.zoneout, zoneout_c=options.zoneout_cell, clip_c=options.cell_clip,
            sample=ctx.train, seed=ctx.seed, step=ctx.step, layer=layer, time0=ctx.time0,
            rows=None if rows is None else rows.astype(INT32),
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
