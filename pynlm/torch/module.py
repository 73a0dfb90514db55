"""What all recurrent modules share: variants among the keyword arguments, threads, other devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pynlm import kernels
from pynlm.layers import RecurrentOptions
from pynlm.layers.variant import PROBABILITIES
from pynlm.torch.stack import options_text
from pynlm.torch.tensors import kind_of

VARIANTS = tuple(f.name for f in fields(RecurrentOptions) if f.name != "projection")
"""Keyword arguments that torch's modules do not have; `proj_size` is torch's own."""

_threads = torch.get_num_threads()


def follow_threads() -> None:
    """Let the kernels use as many threads as torch, whenever torch's number has changed."""
    global _threads
    n = torch.get_num_threads()
    if n != _threads:
        _threads = n
        kernels.set_num_threads(n)


class Variants:
    """Options of a module, and what happens where the kernels cannot run."""

    # Of modules that were torch's before.
    options: RecurrentOptions | None = None
    """Variants; None: the plain cell."""
    options_text: str = ""
    draws: bool = False
    """Whether training draws random numbers, besides dropout between layers."""

    cell: ClassVar[str]

    def _take_options(self, arguments: dict[str, Any]) -> RecurrentOptions | None:
        """The options among keyword arguments, which lose them."""
        given = {name: arguments.pop(name) for name in VARIANTS if name in arguments}
        options = RecurrentOptions(**given)
        wrong = options.undefined_for(self.cell)
        if wrong is not None:
            raise ValueError(
                f"pynlm.torch.{type(self).__name__}: {wrong[0]} is not defined for this cell, only "
                f"for {wrong[1]}"
            )
        return None if options == RecurrentOptions() else options

    def _set_options(self, options: RecurrentOptions) -> None:
        self.options, self.options_text = options, options_text(options)
        self.draws = any(getattr(options, name) > 0 for name in PROBABILITIES)

    def _options_repr(self) -> str:
        if self.options is None:
            return ""
        plain = RecurrentOptions()
        given = {name: getattr(self.options, name) for name in VARIANTS}
        return "".join(f", {n}={v}" for n, v in given.items() if v != getattr(plain, n))

    def _refuse(self, twin: torch.nn.Module, x: Any, hx: Any) -> NoReturn:
        """Raise what torch raises for these arguments, else that a variant cannot have them.

        `twin` is torch's module of the same sizes, without memory.
        """
        twin(_meta(x), None if hx is None else _meta(hx))
        data = x.data if isinstance(x, PackedSequence) else x
        raise NotImplementedError(
            f"pynlm.torch.{type(self).__name__}: a cell with{self._options_repr()[1:]} needs "
            f"tensors with elements, float32 or float64 on the CPU, outside of torch.func and "
            f"tracing; got {kind_of(data)} {list(data.shape)}"
        )


def _meta(x: Any) -> Any:
    if isinstance(x, PackedSequence):
        return PackedSequence(x.data.to("meta"), x.batch_sizes)
    if isinstance(x, (tuple, list)):
        return tuple(_meta(one) for one in x)
    return x.to("meta")


def as_torch(module: torch.nn.Module, kind: type[torch.nn.Module]) -> torch.nn.Module:
    """torch's own module `kind` with the same parameters, hooks and settings."""
    own = kind.__new__(kind)
    own.__dict__ = dict(module.__dict__)
    return own


def add_extras(module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], like: Tensor) -> None:
    """Register a variant's own parameters, with the dtype and device of `like`."""
    for name, shape in shapes.items():
        setattr(module, name, torch.nn.Parameter(like.new_empty(shape)))


def reset_extras(module: torch.nn.Module, names: Iterable[str]) -> None:
    """First values of layer norm: gains 1, biases 0. (Peepholes are drawn as all other weights.)"""
    with torch.no_grad():
        for name in names:
            if name.startswith("ln_"):
                p = getattr(module, name)
                p.fill_(1)
                if name.startswith("ln_cell"):
                    p[1] = 0
