"""Which head a model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pynlm.arrays import check_number
from pynlm.heads.adaptive import Adaptive
from pynlm.heads.base import Head
from pynlm.heads.full import Full
from pynlm.layers.clusters import check_cutoffs
from pynlm.layers.parameters import Parameter, Spec

KINDS = ("full", "adaptive")
_OF_KIND = {  # options that are not defined for all kinds
    "label_smoothing": "full",
    "z_loss": "full",
    "temperature": "full",
    "cutoffs": "adaptive",
    "div_value": "adaptive",
}


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """A model's head, by kind and options.

    Parameters
    ----------
    kind
        "full": `pynlm.heads.Full`; "adaptive": `pynlm.heads.Adaptive`.
    label_smoothing, z_loss, temperature
        Of the full softmax, see `pynlm.heads.Full`.
    cutoffs, div_value
        Of the adaptive softmax, see `pynlm.heads.Adaptive`; None stands for cutoffs still to be
        chosen (`pynlm.heads.choose_cutoffs`).

    Raises
    ------
    TypeError
        An option that is no number.
    ValueError
        An unknown kind; an option out of its range, or of another kind.

    Examples
    --------
    >>> HeadOptions.from_dict(HeadOptions(z_loss=1e-4).to_dict()).z_loss
    0.0001
    """

    kind: str = "full"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    temperature: float = 1.0
    cutoffs: tuple[int, ...] | None = None
    div_value: float = 4.0

    def __post_init__(self) -> None:
        func = "HeadOptions"
        if self.kind not in KINDS:
            raise ValueError(f"{func}: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        check_number(self.label_smoothing, func=func, name="label_smoothing", low=0.0, high=1.0)
        check_number(self.z_loss, func=func, name="z_loss", low=0.0)
        check_number(self.temperature, func=func, name="temperature", low=0.0, low_open=True)
        check_number(self.div_value, func=func, name="div_value", low=1.0)
        if self.cutoffs is not None:
            check_cutoffs(self.cutoffs, 2**31, func=func)
            object.__setattr__(self, "cutoffs", tuple(self.cutoffs))
        for field in fields(self):
            kind = _OF_KIND.get(field.name, self.kind)
            if kind != self.kind and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{func}: {field.name} is not defined for kind {self.kind!r}, only for {kind!r}"
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

    def specs(
        self, prefix: str, vocab_size: int, size: int, *, bias: bool, tied: bool
    ) -> list[Spec]:
        """The parameters of the head, for `Parameters`."""
        if self.kind == "adaptive":
            if self.cutoffs is None:
                raise ValueError("HeadOptions: kind 'adaptive' needs cutoffs (see choose_cutoffs)")
            return Adaptive.specs(prefix, vocab_size, size, self.cutoffs, self.div_value, bias=bias)
        return Full.specs(prefix, vocab_size, size, bias=bias, tied=tied)

    def make(
        self, parameters: Mapping[str, Parameter], tied: Parameter | None, prefix: str = "head"
    ) -> Head:
        """The head over its parameters."""
        if self.kind == "adaptive":
            return Adaptive(parameters, prefix)
        return Full(
            parameters,
            tied,
            prefix,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            temperature=self.temperature,
        )
