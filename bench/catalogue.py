"""What is measured: the cases of each family, the work in each, and the ratios aimed at.

Dimensions: T time, B batch, N rows, I input, H hidden, V vocabulary. Work is counted as the
multiplications and additions of the matrix products, which any library has to do; the pointwise
part and all that a library does besides is not counted, so that shares of the peak compare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from pynlm.models import RecurrentLMConfig
    from pynlm.train.config import Recipe

FLOAT = 4  # bytes
GATES = {"lstm": 4, "gru": 3, "rnn": 1}

SMOKE_STEPS, SMOKE_VOCABULARY = 3, 1000


# What a recurrent layer may do besides its plain equations, with the probability that goes with it.
VARIANTS = {
    "zoneout": 0.1,
    "recurrent dropout": 0.3,
    "weight drop": 0.5,
    "peephole": 0.0,
    "layer norm": 0.0,
    "layer norm of the state": 0.0,
    "coupled gates": 0.0,
    "projection": 0.0,
    "reset before": 0.0,
    "clipping": 0.0,
    "bidirectional": 0.0,
}
# Variants that not every cell has.
_CELLS = {
    "peephole": ("lstm",),
    "layer norm of the state": ("lstm",),
    "coupled gates": ("lstm",),
    "projection": ("lstm",),
    "reset before": ("gru",),
    "bidirectional": ("lstm", "gru"),
}
# Bounds of h by cell, and of the LSTM's c, that a few in a hundred or in a thousand exceed.
CLIP_H = {"lstm": 0.4, "gru": 0.7, "rnn": 0.9}
CLIP_C = 0.8


def cells_of(variant: str) -> tuple[str, ...]:
    """The cells that have a variant."""
    return _CELLS.get(variant, tuple(GATES))


LOOP = "torch's loop"


class Goal(NamedTuple):
    """Ratios that a group of cases aims at; `least` is not set for all.

    `against` is a library, whose fastest way counts, or `LOOP`: the loop alone.
    """

    mean: float
    least: float | None = None
    against: str = "torch"


@dataclass(frozen=True)
class Recurrent:
    """A stack of recurrent layers over [T, B, I]; `train` is forward and backward.

    Attributes
    ----------
    ragged
        Rows end at lengths from T down to T/4, evenly spread.
    variant, p
        One of `VARIANTS`, of one layer in training, with its probability.
    scoring
        Contiguous text, or one step of histories; a group apart from the grid of shapes.
    """

    cell: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    train: bool = True
    ragged: bool = False
    variant: str = ""
    p: float = 0.0
    scoring: bool = False

    family: ClassVar[str] = "recurrent"

    @property
    def group(self) -> str:
        if self.variant:
            return f"{self.cell.upper()} {self.variant}"
        if self.scoring:
            return f"{self.cell.upper()} scoring"
        ragged = "ragged " if self.ragged else ""
        return f"{self.cell.upper()} {ragged}{'training' if self.train else 'forward only'}"

    @property
    def name(self) -> str:
        stack = f" ×{self.layers}" if self.layers > 1 else ""
        return f"{self.T},{self.B},{self.I},{self.H}{stack}"

    @property
    def widths(self) -> list[tuple[int, int]]:
        """Input and output width of each layer."""
        return [(self.I if i == 0 else self.H, self.H) for i in range(self.layers)]

    @property
    def gates(self) -> int:
        """Gates with weights of their own."""
        return GATES[self.cell] - (self.variant == "coupled gates")

    @property
    def P(self) -> int:
        """Width of the state that goes back into the cell and out of the layer."""
        return self.H // 2 if self.variant == "projection" else self.H

    @property
    def directions(self) -> int:
        """Layers that read the same input, each with weights of its own."""
        return 2 if self.variant == "bidirectional" else 1

    @property
    def lengths(self) -> list[int]:
        """Steps that each row takes part in, non-increasing."""
        if not self.ragged:
            return [self.T] * self.B
        least = max(1, self.T // 4)
        return [self.T - round((self.T - least) * b / max(1, self.B - 1)) for b in range(self.B)]

    @property
    def flops(self) -> float:
        # Only the steps that rows take part in count: padding is no work.
        steps = 2.0 * sum(self.lengths)
        passes = 3 if self.train else 1  # the gradients of input and of weights: one forward each
        projected = self.H * self.P if self.P != self.H else 0
        weights = sum(self.gates * H * (I + self.P) + projected for I, H in self.widths)
        return passes * steps * weights * self.directions

    @property
    def bytes(self) -> int:
        """Rough upper bound of the memory that all contenders together take."""
        gates = self.gates
        weights = sum(gates * H * (I + H) for I, H in self.widths)
        each = FLOAT * (12 * weights + 6 * self.T * self.B * (gates + 4) * self.H * self.layers)
        # A variant's contenders are twice as many, and loops save more of each step.
        return 2 * each * self.directions if self.variant else each

    @property
    def quick(self) -> bool:
        return self.flops <= 8e9

    def smoke(self) -> Recurrent:
        """The same widths over a few steps."""
        return replace(self, T=min(self.T, SMOKE_STEPS))

    def certain(self) -> Recurrent:
        """The same with nothing left to chance, so that results can be compared."""
        return replace(self, p=0.0)

    def plain(self) -> Recurrent:
        """The same without its variant."""
        return replace(self, variant="", p=0.0)


@dataclass(frozen=True)
class Softmax:
    """Exact softmax cross-entropy of N rows of H over V words, with a bias.

    `train` is the loss with all gradients.
    """

    N: int
    H: int
    V: int
    train: bool = True

    family: ClassVar[str] = "softmax"

    @property
    def group(self) -> str:
        return f"softmax {'training' if self.train else 'loss only'}"

    @property
    def name(self) -> str:
        return f"{self.N},{self.H},{self.V}"

    @property
    def flops(self) -> float:
        return (3 if self.train else 1) * 2.0 * self.N * self.H * self.V

    @property
    def bytes(self) -> int:
        """Rough upper bound of the memory that all contenders together take."""
        return FLOAT * (7 * self.V * self.H + 5 * self.N * self.V)

    @property
    def quick(self) -> bool:
        return self.flops <= 3e10

    def smoke(self) -> Softmax:
        """The same rows over a small vocabulary."""
        return replace(self, V=min(self.V, SMOKE_VOCABULARY))


@dataclass(frozen=True)
class Adaptive:
    """Adaptive softmax of N rows of H over V words, Zipfian targets: the loss with all gradients.

    Attributes
    ----------
    users
        The cutoffs that torch's users take.
    chosen
        Whether pynlm takes those that it chooses, rather than the same.
    """

    N: int
    H: int
    V: int
    users: tuple[int, ...]
    chosen: bool = False

    family: ClassVar[str] = "softmax"
    train: ClassVar[bool] = True
    div_value: ClassVar[float] = 4.0

    @property
    def group(self) -> str:
        return f"adaptive softmax, {'chosen' if self.chosen else 'same'} cutoffs"

    @property
    def name(self) -> str:
        return f"{self.N},{self.H},{self.V} at {','.join(map(str, self.users))}"

    @cached_property
    def cutoffs(self) -> tuple[int, ...]:
        """pynlm's."""
        if not self.chosen:
            return self.users
        from pynlm.heads import choose_cutoffs

        return choose_cutoffs(zipf_counts(self.V), self.H, self.N, self.div_value)

    @property
    def flops(self) -> float:
        # of pynlm's cutoffs, with as many words in each cluster as are to be expected
        law, edges = zipf_law(self.V), (*self.cutoffs, self.V)
        products = (edges[0] + len(self.cutoffs)) * self.H * 1.0
        for i, (first, end) in enumerate(pairwise(edges)):
            width = int(self.H // self.div_value ** (i + 1))
            products += sum(law[first:end]) * width * (self.H + end - first)
        return 3 * 2.0 * self.N * products

    @property
    def bytes(self) -> int:
        """Rough upper bound of the memory that all contenders together take."""
        return FLOAT * 7 * (self.V * self.H + self.N * self.V)

    @property
    def quick(self) -> bool:
        return self.flops <= 8e9

    def smoke(self) -> Adaptive:
        """The same rows over a small vocabulary."""
        if self.V <= SMOKE_VOCABULARY:
            return self
        cutoffs = tuple(c * SMOKE_VOCABULARY // self.V for c in self.users)
        return replace(self, V=SMOKE_VOCABULARY, users=cutoffs)

    def certain(self) -> Adaptive:
        """The same at the cutoffs of torch's users, so that results can be compared."""
        return replace(self, chosen=False)


def zipf_law(V: int) -> list[float]:
    """Zipf-Mandelbrot: word k has a probability in proportion to 1 / (k + 2.7)."""
    weights = [1 / (k + 2.7) for k in range(V)]
    total = sum(weights)
    return [weight / total for weight in weights]


def zipf_counts(V: int) -> list[int]:
    """How often each word occurs in a text of 10^9 words under that law."""
    return [int(1e9 * p) for p in zipf_law(V)]


@dataclass(frozen=True)
class Train:
    """A whole training step: forward, backward, clipping, update.

    `recipe` is one of pynlm's, or the stem of a file beside this one.
    """

    recipe: str
    V: int = 10_000

    family: ClassVar[str] = "train"
    group: ClassVar[str] = "LM training step"
    train: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return self.recipe

    @cached_property
    def settings(self) -> Recipe:
        from pynlm.train.config import load_recipe

        path = Path(__file__).with_name(f"{self.recipe}.toml")
        return load_recipe(path if path.is_file() else self.recipe)

    @cached_property
    def config(self) -> RecurrentLMConfig:
        from pynlm.train.settings import model_config

        return model_config(self.settings, self.V)

    @property
    def shape(self) -> tuple[int, int]:
        """T, B of a batch."""
        return self.settings.train.bptt, self.settings.train.batch_size

    @property
    def detail(self) -> str:
        """The case in words."""
        config, (T, B) = self.config, self.shape
        widths = "-".join(map(str, config.hidden_sizes))
        dropout = max(config.dropout_input, config.dropout_between, config.dropout_output)
        dropped = f", dropout {dropout:g}" if dropout else ""
        return f"{config.cell} {widths}, T {T}, B {B}, V {self.V:,}{dropped}"

    @property
    def flops(self) -> float:
        config, (T, B) = self.config, self.shape
        gates = GATES[config.cell.partition("_")[0]]
        widths = (config.embedding_size, *config.hidden_sizes)
        products = sum(gates * H * (I + H) for I, H in pairwise(widths))
        return 3 * 2.0 * T * B * (products + widths[-1] * self.V)

    @property
    def bytes(self) -> int:
        """Rough upper bound of the memory that all contenders together take."""
        config, (T, B) = self.config, self.shape
        width = max(config.embedding_size, *config.hidden_sizes)
        weights = 2 * self.V * width + 8 * width * width * len(config.hidden_sizes)
        return FLOAT * (8 * weights + 8 * T * B * self.V)

    @property
    def quick(self) -> bool:
        return self.flops <= 8e9

    def smoke(self) -> Train:
        """The same model with a small vocabulary."""
        return replace(self, V=min(self.V, SMOKE_VOCABULARY))


Case = Recurrent | Softmax | Adaptive | Train

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
RECIPES = ["zaremba-small", "zaremba-medium", "awd-lstm-shape"]

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
    ],
    "train": [Train(recipe) for recipe in RECIPES],
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
STEP_GOALS = {"zaremba-small": 2.0, "zaremba-medium": 1.6, "awd-lstm-shape": 2.0}
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
