"""torch's module and ours with the same numbers, run on the same input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import pynlm.torch
from pynlm.testing import assert_close
from pynlm.testing.tolerances import torch_tolerance

I, H, P = 3, 5, 2


def pair(kind: str, *args: Any, seed: int = 1, **kwargs: Any) -> tuple[Any, Any]:
    """torch.nn's module and ours, each made after the same seed."""
    modules = []
    for home in (torch.nn, pynlm.torch):
        torch.manual_seed(seed)
        modules.append(getattr(home, kind)(*args, **kwargs))
    return modules[0], modules[1]


def tensors(found: Any) -> Iterator[Tensor]:
    """The tensors of what a module returns, in order."""
    if isinstance(found, PackedSequence):
        yield found.data
    elif isinstance(found, Tensor):
        yield found
    elif found is not None:
        for one in found:
            yield from tensors(one)


def packed(x: Tensor, lengths: Sequence[int], **options: Any) -> PackedSequence:
    """[T, B, I], packed in any order."""
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False, **options)


def outcome(module: Any, x: Any, hx: Any = None, seed: int = 2) -> dict[str, Tensor]:
    """Outputs, and gradients of a random sum of them for all leaves and parameters."""
    torch.manual_seed(seed)
    out = list(tensors(module(x, hx)))
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in out]
    total = torch.stack([(o * w).sum() for o, w in zip(out, weights, strict=True)]).sum()
    leaves = {f"input {i}": t for i, t in enumerate(tensors((x, hx))) if t.requires_grad}
    leaves |= {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    gradients = {f"d {name}": g for name, g in zip(leaves, found, strict=True) if g is not None}
    return {f"output {i}": o for i, o in enumerate(out)} | gradients


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], terms: int = 64) -> None:
    """Raise AssertionError unless both have the same tensors, up to rounding."""
    assert list(ours) == list(theirs)
    for name, want in theirs.items():
        got = ours[name]
        assert got.dtype == want.dtype and got.shape == want.shape, name
        a, b = got.detach().numpy(), want.detach().numpy()
        assert_close(a, b, torch_tolerance(a.dtype), what=name, terms=terms)


def states(kind: str, shape: tuple[int, ...], proj_size: int = 0, **options: Any) -> Any:
    """A random initial state whose last axis is H, or for a projected h its width."""
    h = torch.randn((*shape, proj_size or H), **options)
    return (h, torch.randn((*shape, H), **options)) if kind.startswith("LSTM") else h
