"""Which head a model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pynlm.arrays import check_integer, check_number
from pynlm.heads.base import Head
from pynlm.heads.full import Full
from pynlm.heads.mixture import MOST_EXPERTS, Mixture
from pynlm.layers.parameters import Parameter, Spec

# Each kind with the options that it has.
KINDS = {
    "full": ("label_smoothing", "z_loss", "temperature", "gradient_filter"),
    "mixture": ("temperature", "experts"),
}


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """A model's head, by kind and options.

    Parameters
    ----------
    kind
        "full": `pynlm.heads.Full`; "mixture": `pynlm.heads.Mixture`.
    label_smoothing, z_loss, temperature
        See `pynlm.heads.Full`; a mixture has the last only.
    gradient_filter
        Of "full", see `pynlm.heads.Full`: above 0, gradients are approximate.
    experts
        Of "mixture": how many softmaxes.

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
    experts: int = 10

    def __post_init__(self) -> None:
        func = "HeadOptions"
        if self.kind not in KINDS:
            raise ValueError(f"{func}: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        check_number(self.label_smoothing, func=func, name="label_smoothing", low=0.0, high=1.0)
        check_number(self.z_loss, func=func, name="z_loss", low=0.0)
        check_number(self.temperature, func=func, name="temperature", low=0.0, low_open=True)
        check_number(self.gradient_filter, func=func, name="gradient_filter", low=0.0, high=1.0)
        check_integer(self.experts, func=func, name="experts", low=1, high=MOST_EXPERTS)
        for option in fields(self):
            if option.name in ("kind", *KINDS[self.kind]):
                continue
            if getattr(self, option.name) != option.default:
                raise ValueError(
                    f"{func}: {option.name} is not defined for kind {self.kind!r}, got "
                    f"{getattr(self, option.name)!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for TOML or JSON."""
        return asdict(self)

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
        if self.kind == "mixture":
            return Mixture.specs(prefix, vocab_size, size, self.experts, bias=bias, tied=tied)
        return Full.specs(prefix, vocab_size, size, bias=bias, tied=tied)

    def make(
        self, parameters: Mapping[str, Parameter], tied: Parameter | None, prefix: str = "head"
    ) -> Head:
        """The head over its parameters."""
        if self.kind == "mixture":
            return Mixture(parameters, tied, prefix, temperature=self.temperature)
        return Full(
            parameters,
            tied,
            prefix,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            temperature=self.temperature,
            gradient_filter=self.gradient_filter,
        )
