"""Which head a model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy.typing as npt

from pynlm.arrays import check_integer, check_number
from pynlm.heads.adaptive import Adaptive
from pynlm.heads.base import Head
from pynlm.heads.full import Full
from pynlm.heads.hierarchical import Hierarchical
from pynlm.heads.mixture import MOST_EXPERTS, Mixture
from pynlm.heads.sampled import NCE, NegativeSampling, Sampled, SampledHead, check_log_z
from pynlm.heads.samplers import check_options
from pynlm.heads.trees import MOST, TREES, Tree, make_tree
from pynlm.layers.clusters import check_cutoffs
from pynlm.layers.parameters import Parameter, Spec

_SAMPLED: dict[str, type[SampledHead]] = {
    "sampled": Sampled,
    "nce": NCE,
    "negative-sampling": NegativeSampling,
}
_OF_SAMPLES = ("temperature", "samples", "sampler", "alpha", "unique", "remove_hits")
# Each kind with the options that it has.
KINDS = {
    "full": ("label_smoothing", "z_loss", "temperature", "gradient_filter"),
    "adaptive": ("cutoffs", "div_value"),
    "hierarchical": ("tree", "arity", "classes", "clusters"),
    "sampled": _OF_SAMPLES,
    "nce": (*_OF_SAMPLES, "log_z"),
    "negative-sampling": _OF_SAMPLES,
    "mixture": ("temperature", "experts"),
}
_TREE_OPTIONS = {
    "huffman": ("arity",),
    "balanced": ("arity",),
    "classes": ("classes",),
    "clusters": ("clusters",),
}


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """A model's head, by kind and options.

    Parameters
    ----------
    kind
        "full": `pynlm.heads.Full`; "adaptive": `pynlm.heads.Adaptive`; "hierarchical":
        `pynlm.heads.Hierarchical`; "mixture": `pynlm.heads.Mixture`; "sampled", "nce" and
        "negative-sampling": `pynlm.heads.Sampled`, `NCE` and `NegativeSampling`.
    label_smoothing, z_loss, temperature
        See `pynlm.heads.Full`; a mixture and the heads that sample have the last only.
    gradient_filter
        Of "full", see `pynlm.heads.Full`: above 0, gradients are approximate.
    cutoffs, div_value
        Of "adaptive", see `pynlm.heads.Adaptive`; without cutoffs it is not decided yet
        (`pynlm.heads.choose_cutoffs`).
    tree
        Of "hierarchical": "huffman", "balanced", "classes" or "clusters", see `pynlm.heads.trees`.
    arity
        Of trees "huffman" and "balanced": children of a node.
    classes
        Of tree "classes": how many; None: the square root of V.
    clusters
        Of tree "clusters": a file, see `pynlm.text.read_clusters`.
    experts
        Of "mixture": how many softmaxes.
    samples, sampler, alpha, unique, remove_hits
        Of the heads that sample, see `pynlm.heads.SampledHead`; alpha of sampler "unigram".
    log_z
        Of "nce", see `pynlm.heads.NCE`.

    Raises
    ------
    TypeError
        An option that is no number.
    ValueError
        An unknown kind, an option out of its range, or one that the kind does not have.

    Examples
    --------
    >>> HeadOptions.from_dict(HeadOptions(z_loss=1e-4).to_dict()).z_loss
    0.0001
    """

    kind: str = "full"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    temperature: float = 1.0
    gradient_filter: float = 0.0
    cutoffs: tuple[int, ...] | None = None
    div_value: float = 4.0
    tree: str = "huffman"
    arity: int = 2
    classes: int | None = None
    clusters: str | None = None
    experts: int = 10
    samples: int = 1024
    sampler: str = "log-uniform"
    alpha: float = 0.75
    unique: bool = True
    remove_hits: bool | None = None
    log_z: float | str | None = None

    def __post_init__(self) -> None:
        func = "HeadOptions"
        for name, known in (("kind", KINDS), ("tree", TREES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{func}: {name} must be one of {', '.join(known)}, got {value!r}")
        check_number(self.label_smoothing, func=func, name="label_smoothing", low=0.0, high=1.0)
        check_number(self.z_loss, func=func, name="z_loss", low=0.0)
        check_number(self.temperature, func=func, name="temperature", low=0.0, low_open=True)
        check_number(self.gradient_filter, func=func, name="gradient_filter", low=0.0, high=1.0)
        check_number(self.div_value, func=func, name="div_value", low=1.0)
        if self.cutoffs is not None:
            cutoffs = check_cutoffs(self.cutoffs, 2**31, func=func)
            object.__setattr__(self, "cutoffs", cutoffs)
        check_integer(self.experts, func=func, name="experts", low=1, high=MOST_EXPERTS)
        check_integer(self.arity, func=func, name="arity", low=2, high=MOST)
        if self.classes is not None:
            check_integer(self.classes, func=func, name="classes", low=1, high=MOST)
        check_options(func, self.sampler, self.samples, self.alpha, self.unique)
        check_log_z(self.log_z, func)
        self._refuse(KINDS[self.kind], "kind", "kind")
        if self.kind in _SAMPLED and self.sampler != "unigram":
            others = tuple(option for option in KINDS[self.kind] if option != "alpha")
            self._refuse(others, "sampler", "kind")
        if self.kind == "hierarchical":
            self._refuse(("tree", *_TREE_OPTIONS[self.tree]), "tree", "kind")
            if self.tree == "clusters" and not self.clusters:
                raise ValueError(f"{func}: tree 'clusters' needs clusters, the file that has them")

    def _refuse(self, known: tuple[str, ...], of: str, *besides: str) -> None:
        """Raise ValueError for an option that would do nothing."""
        for option in fields(self):
            if option.name in (*known, *besides) or getattr(self, option.name) == option.default:
                continue
            raise ValueError(
                f"HeadOptions: {option.name} is not defined for {of} {getattr(self, of)!r}, got "
                f"{getattr(self, option.name)!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for TOML or JSON."""
        values = asdict(self)
        return {**values, "cutoffs": None if self.cutoffs is None else list(self.cutoffs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeadOptions:
        """The inverse of `to_dict`; what is missing has its default.

        Raises
        ------
        ValueError
            An unknown name.
        """
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"HeadOptions: unknown option {min(unknown)!r}")
        return cls(**values)

    @property
    def can_tie(self) -> bool:
        """Whether an embedding's table may be the head's weight."""
        return self.kind in ("full", "mixture", *_SAMPLED)

    @property
    def sparse(self) -> bool:
        """Whether the gradient of a weight that can be tied comes as rows."""
        return self.kind in _SAMPLED

    def specs(
        self, prefix: str, vocab_size: int, size: int, *, bias: bool, tied: bool
    ) -> list[Spec]:
        """The parameters of the head, for `Parameters`."""
        if self.kind == "adaptive":
            if self.cutoffs is None:
                raise ValueError("HeadOptions: kind 'adaptive' needs cutoffs (see choose_cutoffs)")
            return Adaptive.specs(prefix, vocab_size, size, self.cutoffs, self.div_value, bias=bias)
        if self.kind == "hierarchical":
            return Hierarchical.specs(prefix, vocab_size, size, bias=bias)
        if self.kind == "mixture":
            return Mixture.specs(prefix, vocab_size, size, self.experts, bias=bias, tied=tied)
        if self.kind == "nce":
            learned = self.log_z == "learned"
            return NCE.specs(prefix, vocab_size, size, bias=bias, tied=tied, learned=learned)
        if self.kind in _SAMPLED:
            return SampledHead.specs(prefix, vocab_size, size, bias=bias, tied=tied)
        return Full.specs(prefix, vocab_size, size, bias=bias, tied=tied)

    def make(
        self,
        parameters: Mapping[str, Parameter],
        tied: Parameter | None,
        prefix: str = "head",
        *,
        counts: npt.ArrayLike | None = None,
        tree: Tree | None = None,
    ) -> Head:
        """The head over its parameters.

        Parameters
        ----------
        counts
            Integers [V], how often each token occurs: trees "huffman" and "classes" and
            sampler "unigram" need them.
        tree
            Stands in for the tree that would be made; "clusters" needs it.

        Raises
        ------
        ValueError
            What the kind needs is missing; counts or tree of another number of tokens.
        """
        if self.kind == "adaptive":
            return Adaptive(parameters, prefix)
        if self.kind == "hierarchical":
            if tree is None:
                size = len(parameters[f"{prefix}.weight"].data) + 1
                tree = make_tree(
                    self.tree, size, counts=counts, arity=self.arity, classes=self.classes
                )
            return Hierarchical(parameters, tree, prefix)
        if self.kind == "mixture":
            return Mixture(parameters, tied, prefix, temperature=self.temperature)
        if self.kind in _SAMPLED:
            chosen = {option: getattr(self, option) for option in KINDS[self.kind]}
            return _SAMPLED[self.kind](parameters, tied, prefix, counts=counts, **chosen)
        return Full(
            parameters,
            tied,
            prefix,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            temperature=self.temperature,
            gradient_filter=self.gradient_filter,
        )
