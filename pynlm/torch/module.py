"""What all recurrent modules share: variants as keyword arguments, threads, other devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pynlm.layers import RecurrentOptions
from pynlm.layers.variant import PROBABILITIES
from pynlm.torch.autograd import Call
from pynlm.torch.operators import context
from pynlm.torch.stack import Stack, options_text, stack_of
from pynlm.torch.tensors import Memory, is_narrower, kind_of

VARIANTS = tuple(f.name for f in fields(RecurrentOptions) if f.name != "projection")
"""Keyword arguments that torch's modules do not have; `proj_size` is torch's own."""

SMALL_STEP = 1 << 20
"""Multiplications below which a plain step is torch's own: what surrounds ours would cost more."""


class Variants(torch.nn.Module):
    """Options of a module, and what happens where the kernels cannot run."""

    # Of modules that were torch's before.
    options: RecurrentOptions | None = None
    """Variants; None: the plain cell."""
    options_text: str = ""
    draws: bool = False
    """Whether training draws random numbers, besides dropout between layers."""

    extra_names: tuple[str, ...] = ()
    """A variant's own parameters; in a module of layers by layer and direction."""

    input_size: int
    hidden_size: int
    cell: ClassVar[str]
    gates: ClassVar[int]
    torch_class: ClassVar[type[torch.nn.Module]]

    def extra_repr(self) -> str:
        """torch's, and the variants."""
        return super().extra_repr() + self._options_repr()

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """What torch.jit.script compiles in place of this module: torch's own."""
        return self._as_torch()

    def _settings(self) -> str:
        """What the module's `Stack` is made of."""
        raise NotImplementedError

    def _weight_names(self) -> list[str]:
        """Names in the order in which a `Stack` takes weights."""
        raise NotImplementedError

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

    def _stack(self) -> tuple[Stack, list[str], dict[bool, Call]]:
        """The module's stack, names of its weights, and plain calls by training or not.

        The same for as long as the module lives; it is no part of its state.
        """
        try:
            found: tuple[Stack, list[str], dict[bool, Call]] = self.__dict__["_pynlm"]
        except KeyError:
            stack, memory = stack_of(self._settings()), Memory()
            calls = {train: Call(stack, context(train, None), memory) for train in (False, True)}
            found = self.__dict__["_pynlm"] = stack, self._weight_names(), calls
        return found

    def _is_small(self, rows: int) -> bool:
        """Whether torch's own code takes less time for steps of so many rows in all.

        Never under autocast, which gives it other dtypes, nor where rows are traced.
        """
        if type(rows) is not int:
            return False
        size = self.hidden_size
        work = rows * size * (self.input_size + size) * self.gates
        return work < SMALL_STEP and not torch.is_autocast_enabled("cpu")

    def _weights(self, names: list[str]) -> list[Tensor]:
        """The weights of these names."""
        own: dict[str, Any] = self._parameters
        found = []
        for name in names:
            w = own.get(name)
            if w is None:  # torch.nn.utils' norms, torch.nn.utils.parametrize and the like
                w = getattr(self, name)
            found.append(w)
        return found

    def _seed(self) -> Tensor | None:
        """From torch's generator, for what training draws."""
        if not (self.draws and self.training):
            return None
        return torch.randint(0, 1 << 32, (1,), device="cpu")

    def _as_torch(self) -> torch.nn.Module:
        """torch's own module with the same parameters, hooks and settings."""
        if self.options is not None:
            raise NotImplementedError(
                f"pynlm.torch.{type(self).__name__}: torch.jit.script cannot compile a cell with"
                f"{self._options_repr()[1:]}"
            )
        own = self.torch_class.__new__(self.torch_class)
        own.__dict__ = {name: value for name, value in self.__dict__.items() if name != "_pynlm"}
        return own

    def _options_repr(self) -> str:
        if self.options is None:
            return ""
        plain = RecurrentOptions()
        given = {name: getattr(self.options, name) for name in VARIANTS}
        return "".join(f", {n}={v}" for n, v in given.items() if v != getattr(plain, n))

    def _twin(self) -> torch.nn.Module:
        """torch's module of the same sizes, without variants and without memory."""
        raise NotImplementedError

    def _elsewhere(self, input: Any, hx: Any) -> Any:
        """What the kernels do not take: torch's own implementation, or its exception.

        Under autocast, what autocast made of the input for other operations is turned back.
        """
        dtype = getattr(self, self._weight_names()[0]).dtype
        data = input.data if isinstance(input, PackedSequence) else input
        given = (data, *(hx if isinstance(hx, (tuple, list)) else (hx,)))
        if torch.is_autocast_enabled("cpu") and any(is_narrower(t, dtype) for t in given):
            return self.forward(
                *(_map(lambda t: t.to(dtype) if is_narrower(t, dtype) else t, one)
                  for one in (input, hx))
            )  # fmt: skip
        if self.options is None:
            return super().forward(input, hx)
        bare = _map(lambda t: t.to("meta"), input)
        if isinstance(input, PackedSequence):
            bare = PackedSequence(bare.data, input.batch_sizes)
        self._twin()(bare, _map(lambda t: t.to("meta"), hx))
        raise NotImplementedError(
            f"pynlm.torch.{type(self).__name__}: a cell with{self._options_repr()[1:]} needs "
            f"tensors with elements, float32 or float64 on the CPU as its weights are, packed as "
            f"torch packs them, outside of torch.func and tracing; got {kind_of(data)} "
            f"{list(data.shape)}"
        )


def states_as(
    hx: Any, shapes: Sequence[tuple[int, ...]], x: Tensor
) -> tuple[Tensor | None, Tensor | None] | None:
    """The state h, and c if there are two shapes; None if it is not what goes with `x`."""
    if hx is None:
        return None, None
    given = (hx,)
    if len(shapes) == 2:
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            return None
        given = tuple(hx)
    for state, shape in zip(given, shapes, strict=True):
        if not isinstance(state, Tensor) or state.shape != shape:
            return None
        if state.dtype != x.dtype or state.device != x.device:
            return None
    return given if len(given) == 2 else (hx, None)


def wants_graph(x: Tensor, states: Iterable[Tensor | None], weights: Iterable[Tensor]) -> bool:
    """Whether a backward pass may follow."""
    if not torch.is_grad_enabled():
        return False
    if x.requires_grad:
        return True
    for t in weights:
        if t.requires_grad:
            return True
    return any(s is not None and s.requires_grad for s in states)


def _map(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    """`x` with other tensors: a tensor, a state of several, a packed sequence, or None."""
    if x is None:
        return None
    if isinstance(x, PackedSequence):
        return PackedSequence(change(x.data), *x[1:])
    if isinstance(x, (tuple, list)):
        return tuple(change(one) for one in x)
    return change(x)


def add_extras(
    module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], like: Tensor
) -> None:
    """Register a variant's own parameters, with the dtype and device of `like`."""
    for name, shape in shapes.items():
        setattr(module, name, torch.nn.Parameter(like.new_empty(shape)))


def reset_extras(module: torch.nn.Module, names: Iterable[str], bound: float | None = None) -> None:
    """First values of a variant's own parameters.

    Layer norm: gains 1, biases 0. Peepholes: U(±bound), or as they are without `bound`.
    """
    with torch.no_grad():
        for name in names:
            p = getattr(module, name)
            if name.startswith("ln_"):
                p.fill_(1)
                if name.startswith("ln_cell"):
                    p[1] = 0
            elif bound is not None:
                p.uniform_(-bound, bound)
