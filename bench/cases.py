"""The cases that are measured: their names, sizes and work.

Dimensions: T time, B batch, N rows, I input, H hidden, V vocabulary. Work is counted as the
multiplications and additions of the matrix products, which any library has to do; the pointwise
part and all that a library does besides is not counted, so that shares of the peak compare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

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

    def smoke(self) -> Adaptive:
        """The same rows over a small vocabulary."""
        if self.V <= SMOKE_VOCABULARY:
            return self
        cutoffs = tuple(c * SMOKE_VOCABULARY // self.V for c in self.users)
        return replace(self, V=SMOKE_VOCABULARY, users=cutoffs)

    def certain(self) -> Adaptive:
        """The same at the cutoffs of torch's users, so that results can be compared."""
        return replace(self, chosen=False)


@dataclass(frozen=True)
class Mixture:
    """Mixture of `experts` softmaxes of N rows of H over V words: the loss with all gradients."""

    N: int
    H: int
    V: int
    experts: int

    family: ClassVar[str] = "softmax"
    group: ClassVar[str] = "mixture of softmaxes"
    train: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"{self.N},{self.H},{self.V} of {self.experts}"

    @property
    def flops(self) -> float:
        # each expert's input and logits, and the prior
        return 3 * 2.0 * self.N * self.H * self.experts * (self.H + self.V + 1)

    @property
    def bytes(self) -> int:
        """Rough upper bound of the memory that all contenders together take."""
        return FLOAT * (7 * self.V * self.H + 6 * self.N * self.experts * self.V)

    def smoke(self) -> Mixture:
        """The same rows over a small vocabulary."""
        return replace(self, V=min(self.V, SMOKE_VOCABULARY))


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

    def smoke(self) -> Train:
        """The same model with a small vocabulary."""
        return replace(self, V=min(self.V, SMOKE_VOCABULARY))


@dataclass(frozen=True)
class TinyCall:
    """Many calls of a module of `pynlm.torch` on one step of one row: what a call costs by itself.

    Attributes
    ----------
    module
        A name that `pynlm.torch` and `torch.nn` share.
    train
        Forward and backward; else forward within `inference_mode`.
    """

    module: str
    train: bool = True

    family: ClassVar[str] = "dropin"
    calls: ClassVar[int] = 100
    H: ClassVar[int] = 16
    V: ClassVar[int] = 100
    bytes: ClassVar[int] = 2**24

    @property
    def group(self) -> str:
        return f"drop-in tiny calls, {'training' if self.train else 'forward only'}"

    @property
    def name(self) -> str:
        return self.module

    @property
    def flops(self) -> float:
        recurrent = {"LSTM": 4, "GRU": 3, "RNN": 1}
        gates = recurrent.get(self.module.removesuffix("Cell"))
        weights = self.H * self.V if gates is None else 2 * gates * self.H**2
        return (3 if self.train else 1) * 2.0 * self.calls * weights

    def smoke(self) -> TinyCall:
        """The same; it is short."""
        return self


@dataclass(frozen=True)
class Script:
    """A training step of a language model written in torch, as it is and with pynlm's modules.

    Embedding, two recurrent layers, linear layer and cross-entropy, clipping, SGD.

    Attributes
    ----------
    module
        The recurrent one's name in `torch.nn`.
    head
        Whether pynlm's `LinearCrossEntropyLoss` takes the place of the last two, too. Else the
        script is unchanged but for `pynlm.torch.replace(model)`.
    """

    module: str
    head: bool = False
    T: int = 35
    B: int = 20
    H: int = 650
    V: int = 10_000

    family: ClassVar[str] = "dropin"
    group: ClassVar[str] = "drop-in LM script"
    train: ClassVar[bool] = True
    layers: ClassVar[int] = 2

    @property
    def name(self) -> str:
        return f"{self.module} script{' with our loss' if self.head else ''}"

    @property
    def detail(self) -> str:
        """The case in words."""
        return f"{self.H}-{self.H}, T {self.T}, B {self.B}, V {self.V:,}"

    @property
    def flops(self) -> float:
        gates = GATES[self.module.lower()]
        products = self.layers * gates * self.H * 2 * self.H + self.H * self.V
        return 3 * 2.0 * self.T * self.B * products

    @property
    def bytes(self) -> int:
        """Rough upper bound of the memory that all contenders together take."""
        weights = 2 * self.V * self.H + 8 * self.H * self.H * self.layers
        return FLOAT * (8 * weights + 8 * self.T * self.B * self.V)

    def smoke(self) -> Script:
        """The same model with a small vocabulary."""
        return replace(self, V=min(self.V, SMOKE_VOCABULARY))


@dataclass(frozen=True)
class Busy:
    """Steps of a recurrent module, each after a product by torch, whose threads still spin then."""

    module: str
    T: int = 50
    B: int = 32
    H: int = 128

    family: ClassVar[str] = "dropin"
    group: ClassVar[str] = "drop-in beside busy threads"
    train: ClassVar[bool] = True
    calls: ClassVar[int] = 5
    product: ClassVar[int] = 512
    V: ClassVar[int] = 2
    bytes: ClassVar[int] = 2**28

    @property
    def name(self) -> str:
        return f"{self.module} {self.T},{self.B},{self.H}"

    @property
    def flops(self) -> float:
        step = 3 * 2.0 * self.T * self.B * GATES[self.module.lower()] * 2 * self.H**2
        return self.calls * (step + 2.0 * self.product**3)

    def smoke(self) -> Busy:
        """The same over a few steps."""
        return replace(self, T=SMOKE_STEPS)


DropIn = TinyCall | Script | Busy
Case = Recurrent | Softmax | Adaptive | Mixture | Train | DropIn
