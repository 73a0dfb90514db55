"""What is measured: the cases of each family, and the ratios aimed at."""

from __future__ import annotations

from typing import NamedTuple

from bench.cases import (
    GATES,
    VARIANTS,
    Adaptive,
    Busy,
    Case,
    Mixture,
    Recurrent,
    Script,
    Softmax,
    TinyCall,
    Train,
    cells_of,
)

LOOP = "torch's loop"


class Goal(NamedTuple):
    """Ratios that a group of cases aims at; `least` is not set for all.

    `against` is a library, whose fastest way counts, or `LOOP`: the loop alone.
    """

    mean: float
    least: float | None = None
    against: str = "torch"


GRID = [  # T, B, I, H, layers
    (50, 32, 128, 128, 1),
    (50, 32, 256, 256, 1),
    (100, 16, 512, 512, 1),
    (35, 20, 650, 650, 2),
    (35, 20, 1500, 1500, 1),
    (35, 20, 400, 1150, 1),
    (25, 128, 1024, 1024, 1),
    (100, 1, 256, 256, 1),
    (35, 20, 200, 200, 2),
]
RAGGED = [(100, 32, 256, 256), (100, 16, 512, 512), (200, 32, 256, 256)]  # T, B, I, H
VARIED = [  # T, B, I, H
    (50, 32, 128, 128),
    (50, 32, 256, 256),
    (100, 16, 512, 512),
    (35, 20, 650, 650),
]
SCORING = [  # T, B, I, H, layers; the last as one step of `generate`, of beams, of many histories
    (100, 1, 128, 128, 1),
    (100, 1, 512, 512, 1),
    (35, 1, 650, 650, 2),
    (35, 1, 1500, 1500, 1),
    (1, 1, 650, 650, 2),
    (1, 8, 650, 650, 2),
    (1, 32, 650, 650, 2),
]
HEADS = [  # N, H, V
    (400, 200, 10_000),
    (400, 1024, 10_000),
    (700, 650, 10_000),
    (700, 650, 33_000),
    (4096, 256, 33_000),
    (1024, 256, 81_000),
    (1024, 512, 267_000),
]
ADAPTIVE = [  # N, H, V, the cutoffs of torch's users
    (700, 650, 33_000, (2_000, 10_000)),
    (1024, 256, 81_000, (4_000, 20_000)),
    (1024, 512, 267_000, (20_000, 60_000)),
]
MIXTURES = [(400, 280, 10_000, 10)]  # N, H, V, experts
RECIPES = ["zaremba-small", "zaremba-medium", "awd-lstm-shape"]

TINY = [
    "LSTM",
    "GRU",
    "RNN",
    "LSTMCell",
    "GRUCell",
    "RNNCell",
    "LinearCrossEntropyLoss",
    "AdaptiveLogSoftmaxWithLoss",
]
SCRIPTS = [("LSTM",), ("GRU",), ("LSTM", True)]  # module, whether with pynlm's loss

_RECURRENT = [
    *(
        Recurrent(cell, *shape, train=train)
        for train in (True, False)
        for cell in GATES
        for shape in GRID
    ),
    *(Recurrent(cell, *shape, train=False, scoring=True) for cell in GATES for shape in SCORING),
    *(
        Recurrent(cell, *shape, train=train, ragged=True)
        for train in (True, False)
        for cell in ("lstm", "gru")
        for shape in RAGGED
    ),
    *(
        Recurrent(cell, *shape, variant=variant, p=p)
        for variant, p in VARIANTS.items()
        for cell in cells_of(variant)
        for shape in VARIED
    ),
]
FAMILIES: dict[str, list[Case]] = {
    "recurrent": [*_RECURRENT],
    "softmax": [
        *(Softmax(*shape, train=train) for train in (True, False) for shape in HEADS),
        *(Adaptive(*shape, chosen=chosen) for chosen in (False, True) for shape in ADAPTIVE),
        *(Mixture(*shape) for shape in MIXTURES),
    ],
    "train": [Train(recipe) for recipe in RECIPES],
    "dropin": [
        *(TinyCall(module, train) for train in (True, False) for module in TINY),
        *(Script(*script) for script in SCRIPTS),
        *(Busy(module) for module in ("LSTM", "GRU")),
    ],
}

# By group; with one thread, and with all.
GOALS: dict[str, tuple[Goal | None, Goal]] = {
    "LSTM training": (Goal(1.25, 1.0), Goal(1.8, 1.05)),
    "GRU training": (None, Goal(2.6, 1.25)),
    "RNN training": (None, Goal(1.8, 1.15)),
    "softmax training": (None, Goal(1.8, 1.3)),
    "adaptive softmax, same cutoffs": (None, Goal(1.6, 1.6)),
    "adaptive softmax, chosen cutoffs": (None, Goal(3.0, 3.0)),
    "LSTM ragged training": (None, Goal(4.0)),
    "GRU ragged training": (None, Goal(4.0)),
    "drop-in tiny calls, training": (None, Goal(1.0, 1.0)),
    "drop-in tiny calls, forward only": (None, Goal(1.0, 1.0)),
}
# A runtime made for nothing else; of ragged batches it computes the padding, too.
FORWARD_GOAL = Goal(1.05, 0.95, "ONNX Runtime")
GOALS |= {case.group: (None, FORWARD_GOAL) for case in _RECURRENT if not case.train}
# Dropped weights also go into torch's own module, which may be faster; the goal is about loops.
LOOP_GOAL = Goal(2.5, None, LOOP)
# Clipping and two directions are measured without a goal.
_TOLD = ("clipping", "bidirectional")
GOALS |= {
    case.group: (None, LOOP_GOAL)
    for case in _RECURRENT
    if case.variant and case.variant not in _TOLD
}
# In narrow layers the steps of a loop cost more than their products.
NARROW, NARROW_LOOP_GOAL = 128, Goal(5.0, None, LOOP)
# The least share of the peak in a group, where there are so many rows and units.
SHARE_GROUP = "LSTM training"
SHARE_GOALS = [(32, 512, 0.75), (16, 1, 0.70)]  # B, H, share
# A variant's time over that of our plain cell: geometric mean of a group, and the greatest.
PLAIN_GOAL = (1.25, 1.5)
# Whole steps have a goal each.
STEP_GOALS = {
    "zaremba-small": 2.0,
    "zaremba-medium": 1.6,
    "awd-lstm-shape": 2.0,
    "LSTM script": 1.25,
    "GRU script": 1.4,
    "LSTM script with our loss": 1.5,
}
# How much slower the median step of `zaremba-small` may be beside so many busy processes, where
# pynlm has two CPUs.
LOAD_CPUS, LOAD_GOALS = 2, {1: 2.5, 2: 4.0}


def identifier(case: Case) -> str:
    """A name for one case among all, without spaces."""
    return f"{case.group} {case.name}".replace(" ", "-").replace("×", "x")


def find(group: str, name: str) -> Case | None:
    """The case of a group with that name; None if the catalogue no longer has it."""
    for family in FAMILIES.values():
        for case in family:
            if (case.group, case.name) == (group, name):
                return case
    return None
