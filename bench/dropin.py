"""The cases of `pynlm.torch`: one script, with torch's modules and with pynlm's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import pynlm.torch
from bench.cases import Busy, DropIn, Script, TinyCall
from bench.inputs import SEED, DropInInputs
from bench.work import Work

Array = NDArray[Any]
_CLIP, _RATE = 5.0, 1.0


def make(case: DropIn, inputs: DropInInputs, *, ours: bool) -> Work:
    """The case with pynlm's modules (`ours`) or torch's."""
    torch.manual_seed(SEED)  # both draw the same weights
    if isinstance(case, TinyCall):
        return _tiny(case, inputs, pynlm.torch if ours else nn)
    if isinstance(case, Busy):
        return _busy(case, inputs, pynlm.torch if ours else nn)
    return _script(case, inputs, ours=ours)


def _tiny(case: TinyCall, inputs: DropInInputs, modules: Any) -> Work:
    kind = getattr(modules, case.module)
    x, target = torch.tensor(inputs.x), torch.tensor(inputs.ids).long()
    if case.module == "AdaptiveLogSoftmaxWithLoss":
        module = kind(case.H, case.V, [case.V // 5, case.V // 2])
    elif case.module == "LinearCrossEntropyLoss":
        module = kind(case.H, case.V, bias=True)
    else:
        module = kind(case.H, case.H)
        x = x if case.module.endswith("Cell") else x[None]
    classes = not isinstance(module, (nn.RNNBase, nn.RNNCellBase))
    x.requires_grad_(case.train)

    def forward() -> Tensor:
        found = module(x, target) if classes else module(x)
        if not isinstance(found, tuple):
            return found  # type: ignore[no-any-return]
        return found[1] if classes else found[0]  # the loss; h of all steps, or of a cell

    dy = torch.ones_like(forward())

    def step() -> Tensor:
        module.zero_grad()
        x.grad = None
        y = forward()
        y.backward(dy)
        return y

    def train() -> None:
        for _ in range(case.calls):
            step()

    def forward_only() -> None:
        with torch.inference_mode():
            for _ in range(case.calls):
                forward()

    def results() -> dict[str, Array]:
        y = step() if case.train else forward()
        found = {"y": y.detach().numpy().copy()}
        if case.train:
            found |= _gradients(module)
            assert x.grad is not None
            found["dx"] = x.grad.numpy()
        return found

    return Work(train if case.train else forward_only, results)


def _busy(case: Busy, inputs: DropInInputs, modules: Any) -> Work:
    module = getattr(modules, case.module)(case.H, case.H)
    x, a = torch.tensor(inputs.x, requires_grad=True), torch.ones(case.product, case.product)

    def step() -> Tensor:
        module.zero_grad()
        x.grad = None
        y: Tensor = module(x)[0]
        y.sum().backward()
        return y

    def run() -> None:
        for _ in range(case.calls):
            a @ a
            step()

    def results() -> dict[str, Array]:
        return {"y": step().detach().numpy(), **_gradients(module)}

    return Work(run, results)


class _LanguageModel(nn.Module):
    """Embedding, recurrent layers and linear layer, in torch."""

    def __init__(self, case: Script) -> None:
        super().__init__()
        self.embedding = nn.Embedding(case.V, case.H)
        self.recurrent = getattr(nn, case.module)(case.H, case.H, case.layers)
        self.head = nn.Linear(case.H, case.V)


def _cross_entropy(h: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(h), targets)


def _our_cross_entropy(h: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    return pynlm.torch.linear_cross_entropy(h, head.weight, targets, linear_bias=head.bias)


def _script(case: Script, inputs: DropInInputs, *, ours: bool) -> Work:
    model: Any = _LanguageModel(case)
    if ours:
        model = pynlm.torch.replace(model, verbose=False)
    loss_of: Callable[..., Tensor] = _our_cross_entropy if ours and case.head else _cross_entropy
    optimiser = torch.optim.SGD(model.parameters(), lr=_RATE)
    supply = cycle(torch.tensor(inputs.ids).long())
    state: Any = None

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        nonlocal state
        y, state = model.recurrent(model.embedding(ids), state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        return loss_of(y.flatten(0, 1), model.head, targets.flatten())

    def step() -> Tensor:
        nonlocal state
        text = next(supply)
        optimiser.zero_grad()
        value = loss(text[:-1], text[1:])
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimiser.step()
        return value

    def results() -> dict[str, Array]:
        # of the first batch the gradients (clipped), of all the loss curve
        losses = [step().detach()]
        return {
            **_gradients(model),
            "losses": torch.stack([*losses, *(step().detach() for _ in inputs.ids[1:])]).numpy(),
        }

    return Work(step, results)


def _gradients(module: nn.Module) -> dict[str, Array]:
    """Copies of the gradients by name, those that are not set as zeros."""
    return {
        f"d{name}": (torch.zeros_like(p) if p.grad is None else p.grad).detach().numpy().copy()
        for name, p in module.named_parameters()
    }
