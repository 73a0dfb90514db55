"""What a recurrent language model is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pynlm.heads.options import HeadOptions
from pynlm.layers.clusters import cluster_widths
from pynlm.layers.variant import RecurrentOptions

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
INITS = ("uniform", "xavier", "he", "orthogonal", "torch")
BIASES = ("zero", "uniform")


@dataclass(frozen=True)
class RecurrentLMConfig:
    """Sizes, dropout and initial weights of a `RecurrentLM`.

    Parameters
    ----------
    vocab_size, embedding_size
        V and the width of the embedding.
    hidden_sizes
        Width of each recurrent layer, first to last; with `projection` that of its cells.
    cell
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    dropout_input, dropout_between, dropout_output
        Probability of a zero after the embedding, between recurrent layers, before the head.
    locked
        One dropout mask for all time steps of a call.
    recurrent_dropout, weight_drop, zoneout, zoneout_cell, layer_norm, layer_norm_state
        Variants of the recurrent layers, see `pynlm.layers.RecurrentOptions`.
    peephole, coupled_gates, projection, cell_clip, state_clip, reset_before
        Variants of the recurrent layers, see `pynlm.layers.RecurrentOptions`.
    residual
        Each recurrent layer but the first adds its input to its output, where both are as wide (He
        et al., arXiv:1512.03385; Wu et al., arXiv:1609.08144, eq. 5-6).
    tied
        The head's weight is the embedding's; the last layer's output must be `embedding_size` wide.
        An adaptive head shares its tables with an adaptive input.
    adaptive_input
        Embeddings have the adaptive head's clusters, see `pynlm.layers.AdaptiveEmbedding`.
    head_bias
        Whether the head has a bias.
    head
        Kind and options of the head, see `pynlm.heads.HeadOptions`; a mapping is converted.
    init
        Distribution of the weights, see `RecurrentLM.initialise`.
    init_scale
        Bound of "uniform", and of the embedding in "xavier", "he" and "orthogonal".
    init_bias
        "zero", or "uniform": drawn like the weights they belong to.
    forget_bias
        Added to the LSTM's forget-gate bias after initialisation.

    Raises
    ------
    ValueError
        A value outside its range, or two that contradict each other; clusters without dimensions.

    Examples
    --------
    >>> config = RecurrentLMConfig(100, embedding_size=8, hidden_sizes=(16, 8), tied=True)
    >>> RecurrentLMConfig.from_dict(config.to_dict()) == config
    True
    """

    vocab_size: int
    embedding_size: int
    hidden_sizes: tuple[int, ...]
    cell: str = "lstm"
    dropout_input: float = 0.0
    dropout_between: float = 0.0
    dropout_output: float = 0.0
    locked: bool = False
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
    residual: bool = False
    tied: bool = False
    adaptive_input: bool = False
    head_bias: bool = True
    head: HeadOptions = field(default_factory=HeadOptions)
    init: str = "uniform"
    init_scale: float = 0.1
    init_bias: str = "zero"
    forget_bias: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))
        if isinstance(self.head, Mapping):
            object.__setattr__(self, "head", HeadOptions.from_dict(self.head))
        for name in ("vocab_size", "embedding_size"):
            _require(getattr(self, name) >= 1, name, "positive", getattr(self, name))
        _require(
            bool(self.hidden_sizes) and min(self.hidden_sizes) >= 1,
            "hidden_sizes", "one or more positive widths", list(self.hidden_sizes),
        )  # fmt: skip
        for name in ("dropout_input", "dropout_between", "dropout_output"):
            p = getattr(self, name)
            _require(0.0 <= p < 1.0, name, "in [0, 1)", p)
        for name, valid in (("cell", CELLS), ("init", INITS), ("init_bias", BIASES)):
            value = getattr(self, name)
            _require(value in valid, name, f"one of {', '.join(valid)}", repr(value))
        _require(self.init_scale > 0.0, "init_scale", "positive", self.init_scale)
        forgets = self.cell == "lstm" and not self.coupled_gates
        cell = "coupled gates" if self.coupled_gates else f"cell {self.cell!r}"
        _require(
            forgets or self.forget_bias == 0.0,
            "forget_bias", f"0 for {cell}: there is no forget gate of its own", self.forget_bias,
        )  # fmt: skip
        wrong = self.recurrent.undefined_for(self.cell.partition("_")[0].upper())
        if wrong is not None:
            raise ValueError(
                f"RecurrentLMConfig: {wrong[0]} is not defined for cell {self.cell!r}, only for "
                f"{wrong[1].lower()!r}"
            )
        _require(
            not self.residual or any(map(self.is_residual, range(len(self.hidden_sizes)))),
            "hidden_sizes", "equal for two neighbours when residual", list(self.hidden_sizes),
        )  # fmt: skip
        adaptive = self.head.kind == "adaptive"
        if adaptive and self.head.cutoffs is not None:
            tails, div_value = len(self.head.cutoffs), self.head.div_value
            cluster_widths(self.output_sizes[-1], tails, div_value, func="Adaptive")
            if self.adaptive_input:
                cluster_widths(self.embedding_size, tails, div_value, func="AdaptiveEmbedding")
        _require(
            not self.adaptive_input or adaptive,
            "adaptive_input", f"false for head kind {self.head.kind!r}: no cutoffs", True,
        )  # fmt: skip
        _require(
            not self.tied or (self.adaptive_input if adaptive else self.head.can_tie),
            "tied",
            f"false for head kind {self.head.kind!r}" + " without adaptive_input" * adaptive,
            self.tied,
        )  # fmt: skip
        _require(
            not self.tied or self.output_sizes[-1] == self.embedding_size,
            "projection" if self.projection else "hidden_sizes",
            f"{'' if self.projection else 'ended by '}embedding_size={self.embedding_size} when "
            "tied",
            self.projection or list(self.hidden_sizes),
        )  # fmt: skip

    def is_residual(self, layer: int) -> bool:
        """Whether that recurrent layer adds its input to its output."""
        sizes = self.output_sizes
        return self.residual and layer > 0 and sizes[layer - 1] == sizes[layer]

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Width of each recurrent layer's output."""
        return tuple(self.projection or size for size in self.hidden_sizes)

    @property
    def recurrent(self) -> RecurrentOptions:
        """The variants of the recurrent layers."""
        return RecurrentOptions(
            **{field.name: getattr(self, field.name) for field in fields(RecurrentOptions)}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name, for TOML or JSON."""
        return {**asdict(self), "hidden_sizes": list(self.hidden_sizes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecurrentLMConfig:
        """The inverse of `to_dict`.

        Raises
        ------
        ValueError
            Unknown or missing names.
        """
        known = {field.name for field in fields(cls)}
        unknown = [name for name in values if name not in known]
        missing = [n for n in ("vocab_size", "embedding_size", "hidden_sizes") if n not in values]
        if unknown or missing:
            raise ValueError(
                f"RecurrentLMConfig: missing {missing or 'none'}, unknown {unknown or 'none'}"
            )
        return cls(**values)


def _require(good: bool, name: str, want: str, got: object) -> None:
    if not good:
        raise ValueError(f"RecurrentLMConfig: {name} must be {want}, got {got}")
