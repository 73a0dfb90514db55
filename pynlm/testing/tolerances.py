"""The only table of tolerances.

An element passes if

    |actual - expected| <= (relative * |expected| + scaled * max|expected|) * sqrt(K) + absolute

where K bounds the length of the longest sum (`Case.terms`): rounding errors of a sum grow like
sqrt(K), and a sum whose terms cancel is as exact as its terms are large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """Bounds on one comparison; see the formula above."""

    relative: float = 0.0
    scaled: float = 0.0
    absolute: float = 0.0

    def bound(self, magnitude: Any, scale: float, terms: int) -> Any:
        """Largest difference allowed where the expected magnitude is `magnitude`."""
        growth = math.sqrt(terms)
        return (self.relative * magnitude + self.scaled * scale) * growth + self.absolute


EXACT = Tolerance()

# Backend against the oracle, which runs in float64 on the same numbers. The kernels' exp, tanh and
# sigmoid are good to a few units in the last place; a recurrence carries errors on.
_KERNELS = {
    "float32": {
        "lstm": Tolerance(2.5e-7, 2.5e-7, 1e-7),
        "gru": Tolerance(2.5e-7, 2.5e-7, 1e-7),
        "rnn": Tolerance(2.5e-7, 2.5e-7, 1e-7),
        "linear": Tolerance(1e-7, 1e-7),
        "xent": Tolerance(2e-7, 1.5e-7, 1.5e-7),
        "candidates": Tolerance(2e-7, 1.5e-7, 1.5e-7),
        "hsoftmax": Tolerance(2e-7, 1.5e-7, 1.5e-7),
        "embedding": Tolerance(0.0, 1e-7),
        "dropout": Tolerance(2e-7),
        "sgd": Tolerance(0.0, 2e-7, 1e-7),
        "adam": Tolerance(3e-7, 2e-7, 1e-7),
        "adagrad": Tolerance(3e-7, 2e-7, 1e-7),
        "clip": Tolerance(1e-15),  # the sum is taken in double
    },
    "float64": {
        "lstm": Tolerance(5e-16, 5e-16, 2e-16),
        "gru": Tolerance(5e-16, 5e-16, 2e-16),
        "rnn": Tolerance(5e-16, 5e-16, 2e-16),
        "linear": Tolerance(2e-16, 2e-16),
        "xent": Tolerance(4e-16, 3e-16, 3e-16),
        "candidates": Tolerance(4e-16, 3e-16, 3e-16),
        "hsoftmax": Tolerance(4e-16, 3e-16, 5e-16),
        "embedding": Tolerance(0.0, 2e-16),
        "dropout": Tolerance(4e-16),
        "sgd": Tolerance(0.0, 4e-16, 2e-16),
        "adam": Tolerance(6e-16, 4e-16, 2e-16),
        "adagrad": Tolerance(6e-16, 4e-16, 2e-16),
        "clip": Tolerance(1e-15),
    },
}

# Recurrent kernels whose products have narrow operands (float32 sums): one unit roundoff of these.
_NARROW = {
    "tf32": Tolerance(2**-11, 2**-11),
    "fp16": Tolerance(2**-11, 2**-11),
    "bf16": Tolerance(2**-8, 2**-8),
}

# Chaotic or saturated cases, where the forward pass amplifies an input's last digit, by words in
# their names: factor on the whole bound.
_LOOSER = {"saturated": 100.0, "sharp": 30.0, "long": 10.0, "extreme": 10.0}
# Of recurrent kernels besides: layer norm divides by a deviation that may be small, and what is
# drawn at random may have few elements, none of them large.
_LOOSER_RECURRENT = {"norm": 4.0, "everything": 4.0, "random": 10.0}

# Analytic gradients against central differences of the float64 forward pass (step 1e-5): truncation
# and cancellation leave about 1e-10 of the numbers' size.
_FINITE_DIFFERENCES = Tolerance(1e-7, 1e-8, 1e-8)
FINITE_DIFFERENCE_STEP = 1e-5

# A hand-computed number with that many digits.
HAND = Tolerance(1e-6, 0.0, 1e-7)
ROUNDED = Tolerance(0.0, 0.0, 5e-5)
CLOSED_FORM = Tolerance(1e-13, 0.0, 1e-13)

# Of a distribution in float32, added up in double, however far apart its logits are.
PROBABILITY_SUM = Tolerance(0.0, 0.0, 1e-5)

# A chi-square statistic exceeds its mean by more standard deviations about once in 10^6 times.
_CHI_SQUARE_SIGMAS = 5.0

# torch in the same dtype: both sides round.
_TORCH = {"float32": Tolerance(4e-6, 2e-6, 1e-6), "float64": Tolerance(4e-15, 4e-15, 4e-15)}

# The onnx package's own NumPy code in the same dtype, on a few steps.
_ONNX = {"float32": Tolerance(2e-6, 1e-6, 5e-7), "float64": Tolerance(4e-15, 4e-15, 2e-15)}

# Cells written in JAX in the same dtype: both sides round.
_JAX = {"float32": Tolerance(4e-6, 2e-6, 1e-6), "float64": Tolerance(4e-15, 4e-15, 4e-15)}

# Language models in ONNX Runtime in the same dtype: its own sigmoid, tanh and exponential.
_ONNXRUNTIME = {"float32": Tolerance(2e-6, 1e-6, 1e-6), "float64": Tolerance(4e-15, 4e-15, 4e-15)}

# A whole training run against torch's, from the same weights on the same batches, by the relative
# difference of a step's loss. Both sides follow the same formulas and add up in another order. Ten
# updates leave that rounding visible as such, while one wrong factor (a bias with twice its rate)
# shows at once: this bound is on each single step. Further on training enlarges differences, and at
# a high rate its wild beginning is chaotic: what one rounding becomes says nothing about formulas,
# and no constant fits all recipes. The measure is then torch itself, trained once more from weights
# that were each moved to a neighbouring float. Two such runs are two draws of the same chance, so
# ours may be `factor` times as far from torch as that one is, and differences below `later` pass in
# any case: in float32 they say that both learn the same, in float64 they leave no room for another
# formula. Nothing is enlarged where each step starts from torch's weights and state anew: what is
# left of it there is the rounding of one pass, a thousand times below any mistake.
_TRAJECTORY = {"float32": (1e-4, 1e-2, 1e-5, 1e-3), "float64": (1e-11, 1e-6, 1e-13, 1e-11)}


# Losses of a short training run on a GPU against those on the CPU: sums are taken in another order,
# and each step starts from what the steps before made of that.
_DEVICE = {"float32": Tolerance(2e-5, 0.0, 1e-6), "float64": Tolerance(2e-14, 0.0, 1e-15)}


@dataclass(frozen=True)
class TrajectoryTolerance:
    """Bounds on the relative difference of training losses.

    Attributes
    ----------
    single
        Largest difference of a step among the first `first`.
    later
        Least bound on what comes after: root mean square over the steps, and running mean.
    in_step_loss, in_step_gradient
        Bounds on any step's loss and on any parameter's gradient (by its norm), computed from
        torch's weights and state of that step.
    factor
        The bound there is so many times what torch itself shows after one rounding.
    """

    single: float
    later: float
    in_step_loss: float
    in_step_gradient: float
    first: int = 10
    factor: float = 2.0

    def later_bound(self, nudged: float) -> float:
        """Bound on a figure of the later steps, which is `nudged` for torch against itself."""
        # A nudged run that breaks down measures nothing.
        return max(self.later, self.factor * nudged) if math.isfinite(nudged) else self.later


def chi_square_bound(freedom: int) -> float:
    """What a chi-square statistic with so many (dozens of) degrees of freedom stays below."""
    return freedom + _CHI_SQUARE_SIGMAS * math.sqrt(2 * freedom)


def trajectory_tolerance(dtype: Any) -> TrajectoryTolerance:
    """Tolerance of the losses of a training run in `dtype` against torch's."""
    return TrajectoryTolerance(*_TRAJECTORY[np.dtype(dtype).name])


def device_tolerance(dtype: Any) -> Tolerance:
    """Tolerance of the losses of a short training run on a GPU against those on the CPU."""
    return _DEVICE[np.dtype(dtype).name]


def kernel_tolerance(kernel: str, dtype: Any, case_name: str = "") -> Tolerance:
    """Tolerance of `kernel`'s results in `dtype` against the oracle."""
    base = _KERNELS[np.dtype(dtype).name][kernel]
    return _for_case(base, case_name, kernel in ("lstm", "gru", "rnn"))


def narrow_tolerance(math_: str) -> Tolerance:
    """Tolerance of recurrent kernels under `Device.math`, one of "tf32", "bf16", "fp16"."""
    return _NARROW[math_]


def finite_difference_tolerance(case_name: str) -> Tolerance:
    """Tolerance of finite differences against an analytic gradient."""
    return _for_case(_FINITE_DIFFERENCES, case_name)


def torch_tolerance(dtype: Any, case_name: str = "") -> Tolerance:
    """Tolerance of a kernel's results in `dtype` against torch's in the same dtype."""
    return _for_case(_TORCH[np.dtype(dtype).name], case_name)


def onnx_tolerance(dtype: Any) -> Tolerance:
    """Tolerance of outputs in `dtype` against those of ONNX's test cases and its evaluator."""
    return _ONNX[np.dtype(dtype).name]


def jax_tolerance(dtype: Any, case_name: str = "") -> Tolerance:
    """Tolerance of a cell's results and gradients in `dtype` against those of one in JAX."""
    return _for_case(_JAX[np.dtype(dtype).name], case_name)


def onnxruntime_tolerance(dtype: Any) -> Tolerance:
    """Tolerance of a language model's outputs in `dtype` against ONNX Runtime's."""
    return _ONNXRUNTIME[np.dtype(dtype).name]


def _for_case(base: Tolerance, case_name: str, recurrent: bool = True) -> Tolerance:
    words = _LOOSER | (_LOOSER_RECURRENT if recurrent else {})
    factor = max((f for word, f in words.items() if word in case_name), default=1.0)
    return Tolerance(base.relative * factor, base.scaled * factor, base.absolute * factor)
