"""Which head a model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pynlm.arrays import check_number
from pynlm.heads.base import Head
from pynlm.heads.full import Full
from pynlm.heads.sampled import NCE, NegativeSampling, Sampled, SampledHead, check_log_z
from pynlm.heads.samplers import check_options
from pynlm.layers.parameters import Parameter, Spec

_SAMPLED: dict[str, type[SampledHead]] = {
    "sampled": Sampled,
    "nce": NCE,
    "negative-sampling": NegativeSampling,
}
KINDS = ("full", *_SAMPLED)
_OF_KINDS: dict[str, tuple[str, ...]] = {  # options that are not defined for all kinds
    "label_smoothing": ("full",),
    "z_loss": ("full",),
    **dict.fromkeys(("samples", "sampler", "alpha", "unique", "remove_hits"), tuple(_SAMPLED)),
    "log_z": ("nce",),
}


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """A model's head, by kind and options.

    Parameters
    ----------
    kind
        "full": `pynlm.heads.Full`; "sampled", "nce" and "negative-sampling": `Sampled`, `NCE` and
        `NegativeSampling` there, which learn from sampled tokens.
    label_smoothing, z_loss, temperature
        See `pynlm.heads.Full`; the first two are its own.
    samples, sampler, alpha, unique, remove_hits
        Of the heads that sample, see `pynlm.heads.SampledHead`.
    log_z
        See `pynlm.heads.NCE`.

    Raises
    ------
    TypeError
        An option of a wrong kind.
    ValueError
        An unknown kind; an option out of its range, or of another kind of head.

    Examples
    --------
    >>> HeadOptions.from_dict(HeadOptions(z_loss=1e-4).to_dict()).z_loss
    0.0001
    """

    kind: str = "full"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    temperature: float = 1.0
    samples: int = 1024
    sampler: str = "log-uniform"
    alpha: float = 0.75
    unique: bool = True
    remove_hits: bool | None = None
    log_z: float | str | None = None

    def __post_init__(self) -> None:
        func = "HeadOptions"
        if self.kind not in KINDS:
            raise ValueError(f"{func}: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        check_number(self.label_smoothing, func=func, name="label_smoothing", low=0.0, high=1.0)
        check_number(self.z_loss, func=func, name="z_loss", low=0.0)
        check_number(self.temperature, func=func, name="temperature", low=0.0, low_open=True)
        check_options(func, self.sampler, self.samples, self.alpha, self.unique)
        check_log_z(self.log_z, func)
        for field in fields(self):
            kinds = _OF_KINDS.get(field.name, KINDS)
            if self.kind not in kinds and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{func}: {field.name} is not defined for kind {self.kind!r}, only for "
                    f"{' and '.join(map(repr, kinds))}"
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
        if self.kind == "nce":
            learned = self.log_z == "learned"
            return NCE.specs(prefix, vocab_size, size, bias=bias, tied=tied, learned=learned)
        if self.kind in _SAMPLED:
            return SampledHead.specs(prefix, vocab_size, size, bias=bias, tied=tied)
        return Full.specs(prefix, vocab_size, size, bias=bias, tied=tied)

    @property
    def sparse(self) -> bool:
        """Whether the weight's gradient comes as rows."""
        return self.kind in _SAMPLED

    def make(
        self,
        parameters: Mapping[str, Parameter],
        tied: Parameter | None,
        prefix: str = "head",
        *,
        counts: object = None,
    ) -> Head:
        """The head over its parameters; `counts` [V] of the tokens where it needs them."""
        if self.kind in _SAMPLED:
            constant = {"log_z": self.log_z} if self.kind == "nce" else {}
            return _SAMPLED[self.kind](
                parameters,
                tied,
                prefix,
                samples=self.samples,
                sampler=self.sampler,
                alpha=self.alpha,
                unique=self.unique,
                remove_hits=self.remove_hits,
                temperature=self.temperature,
                counts=counts,
                **constant,
            )
        return Full(
            parameters,
            tied,
            prefix,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            temperature=self.temperature,
        )
