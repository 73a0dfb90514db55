"""The numbers that all contenders of a case work on: made once, from a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cases import (
    Adaptive,
    Busy,
    DropIn,
    Mixture,
    Recurrent,
    Script,
    Softmax,
    Train,
    zipf_law,
)
from pynlm import heads
from pynlm.models import RecurrentLM
from pynlm.text import Batch

Array = NDArray[Any]
SEED = 1
BATCHES = 8


@dataclass(frozen=True)
class RecurrentInputs:
    """x [T, B, I], upstream gradient dy like y, weights by layer, lengths int32 [B] or None.

    Weights: w_ih, w_hh, b, for the GRU b_hn, and those of the case's variant (`_of_variant`); a
    second direction's have names that end in _reverse.
    """

    x: Array
    dy: Array
    weights: list[dict[str, Array]]
    lengths: Array | None


@dataclass(frozen=True)
class SoftmaxInputs:
    """h [N, H], w [V, H], b [V], targets int32 [N]."""

    h: Array
    w: Array
    b: Array
    targets: Array


@dataclass(frozen=True)
class AdaptiveInputs:
    """h [N, H], targets int32 [N], weights at the users' cutoffs by torch's names."""

    h: Array
    targets: Array
    weights: dict[str, Array]


@dataclass(frozen=True)
class MixtureInputs:
    """h [N, H], targets int32 [N], weights by the head's names."""

    h: Array
    targets: Array
    weights: dict[str, Array]


@dataclass(frozen=True)
class DropInInputs:
    """x [1, H] of a tiny call, [T, B, H] of busy ones; ids [1], of a script [batches, T + 1, B]."""

    x: Array
    ids: Array


@dataclass(frozen=True)
class TrainInputs:
    """Initial weights by name, and batches whose words fall off as in text."""

    weights: dict[str, Array]
    batches: list[Batch]


Inputs = (
    RecurrentInputs | SoftmaxInputs | AdaptiveInputs | MixtureInputs | TrainInputs | DropInInputs
)


def recurrent_inputs(case: Recurrent) -> RecurrentInputs:
    """Weights as `torch.nn` draws them, input and upstream gradient from the unit normal."""
    rng = np.random.default_rng(SEED)
    weights = []
    for I, H in case.widths:
        layer = _layer(case, rng, I, H)
        if case.directions == 2:
            layer |= {f"{name}_reverse": w for name, w in _layer(case, rng, I, H).items()}
        weights.append(layer)
    x = rng.standard_normal((case.T, case.B, case.I), np.float32)
    dy = rng.standard_normal((case.T, case.B, case.P * case.directions), np.float32)
    lengths = np.array(case.lengths, np.int32) if case.ragged else None
    return RecurrentInputs(x, dy, weights, lengths)


def _layer(case: Recurrent, rng: np.random.Generator, I: int, H: int) -> dict[str, Array]:
    """Weights of one layer in one direction."""
    bound, gates = H**-0.5, case.gates
    layer = {
        "w_ih": _uniform(rng, bound, gates * H, I),
        "w_hh": _uniform(rng, bound, gates * H, case.P),
        "b": _uniform(rng, bound, gates * H),
    }
    # Without a product of its own to scale, the second bias of n would be the first's twin.
    if case.cell == "gru" and case.variant != "reset before":
        layer["b_hn"] = _uniform(rng, bound, H)
    return layer | _of_variant(case, rng, bound)


def _of_variant(case: Recurrent, rng: np.random.Generator, bound: float) -> dict[str, Array]:
    """Weights that only a variant has: gains near 1 or ½, the rest as all weights."""
    H, gates = case.H, case.gates * case.H
    if case.variant == "peephole":
        return {"peephole": _uniform(rng, bound, 3 * H)}
    if case.variant == "projection":
        return {"w_hr": _uniform(rng, bound, case.P, H)}
    if not case.variant.startswith("layer norm"):
        return {}
    # Of the products of input and state; their biases are one with the cell's.
    # Below 1, at which a hundred steps would enlarge rounding beyond any comparison.
    found = {"ln_gates": np.float32(0.5) + _uniform(rng, bound, 2, gates)}
    if case.cell == "lstm":
        gain_and_bias = 1 + _uniform(rng, bound, H), _uniform(rng, bound, H)
        found["ln_cell"] = np.stack(gain_and_bias)
    return found


def softmax_inputs(case: Softmax) -> SoftmaxInputs:
    """Hidden states in (-1, 1), as recurrent layers give them; small weights; Zipfian targets."""
    rng = np.random.default_rng(SEED)
    return SoftmaxInputs(
        h=_uniform(rng, 1.0, case.N, case.H),
        w=_uniform(rng, case.H**-0.5, case.V, case.H),
        b=_uniform(rng, case.H**-0.5, case.V),
        targets=zipf(rng, case.V, case.N),
    )


def adaptive_inputs(case: Adaptive) -> AdaptiveInputs:
    """As `softmax_inputs`."""
    rng = np.random.default_rng(SEED)
    h, targets = _uniform(rng, 1.0, case.N, case.H), zipf(rng, case.V, case.N)
    return AdaptiveInputs(h, targets, adaptive_weights(case.certain()))


def adaptive_weights(case: Adaptive) -> dict[str, Array]:
    """Weights at the case's cutoffs, by torch's names."""
    rng = np.random.default_rng(SEED)
    specs = heads.Adaptive.specs(
        "", case.V, case.H, case.cutoffs, div_value=case.div_value, bias=True
    )
    return {s.name[1:]: _uniform(rng, s.shape[-1] ** -0.5, *s.shape) for s in specs}


def mixture_inputs(case: Mixture) -> MixtureInputs:
    """As `softmax_inputs`."""
    rng = np.random.default_rng(SEED)
    h, targets = _uniform(rng, 1.0, case.N, case.H), zipf(rng, case.V, case.N)
    specs = heads.Mixture.specs("", case.V, case.H, case.experts)
    weights = {s.name[1:]: _uniform(rng, case.H**-0.5, *s.shape) for s in specs}
    return MixtureInputs(h, targets, weights)


def dropin_inputs(case: DropIn) -> DropInInputs:
    """Input from the unit normal, Zipfian text."""
    rng = np.random.default_rng(SEED)
    sizes = (case.T, case.B) if isinstance(case, Busy) else (1,)
    x = rng.standard_normal((*sizes, case.H), np.float32)
    shape = (BATCHES, case.T + 1, case.B) if isinstance(case, Script) else (1,)
    return DropInInputs(x, zipf(rng, case.V, *shape))


def train_inputs(case: Train) -> TrainInputs:
    """The weights that the recipe's initialiser draws, and a few batches."""
    model = RecurrentLM(case.config)
    model.initialise(SEED)
    weights = {name: w.copy() for name, w in model.state_dict().items()}
    return TrainInputs(weights, batches(case, BATCHES))


def batches(case: Train, count: int) -> list[Batch]:
    """`count` batches of one running text, whose number of different words varies."""
    rng = np.random.default_rng(SEED)
    T, B = case.shape
    text = zipf(rng, case.V, count * T + 1, B)
    cuts = range(0, count * T, T)
    return [Batch(text[i : i + T], text[i + 1 : i + T + 1], None, fresh=i == 0) for i in cuts]


def zipf(rng: np.random.Generator, V: int, *shape: int) -> Array:
    """Word ids int32, drawn by the Zipf-Mandelbrot law: probability of id k ~ 1 / (k + 2.7)."""
    return rng.choice(V, shape, p=zipf_law(V)).astype(np.int32)


def _uniform(rng: np.random.Generator, bound: float, *shape: int) -> Array:
    return (rng.random(shape, np.float32) * 2 - 1) * np.float32(bound)
