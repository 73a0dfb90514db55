"""The cases in PyTorch, as its users write them: modules, autograd, `torch.optim`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle, product
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bench import dropin
from bench.cases import Adaptive, Case, DropIn, Mixture, Recurrent, Softmax, Train
from bench.inputs import (
    AdaptiveInputs,
    DropInInputs,
    Inputs,
    MixtureInputs,
    RecurrentInputs,
    SoftmaxInputs,
    TrainInputs,
)
from bench.peers.torch_models import SUFFIXES, WEIGHTS, Model, gradient, load_layer, model_for
from bench.peers.torch_variants import MODULES, variants
from bench.work import Work
from pynlm.text import Batch

if TYPE_CHECKING:
    from pynlm.models import RecurrentLMConfig
    from pynlm.train.config import OptimiserConfig, Recipe

Array = NDArray[Any]
Loss = Callable[[Tensor, nn.Linear, Tensor, str], Tensor]
Clip = Callable[[Iterable[Tensor], float], Any]


def set_threads(n: int) -> None:
    """Let torch (its OpenMP, MKL and oneDNN) use `n` threads."""
    torch.set_num_threads(n)


def versions() -> dict[str, str]:
    """PyTorch's version and its CPU capability."""
    return {"torch": f"{torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"}


def make(case: Case, inputs: Inputs) -> dict[str, Work]:
    """The ways in which torch does the case; cases with a softmax have two."""
    if isinstance(case, Recurrent):
        assert isinstance(inputs, RecurrentInputs)
        if case.variant and case.variant != "bidirectional":
            return variants(case, inputs)
        return {"torch": _recurrent(case, inputs)}
    if isinstance(case, Softmax):
        assert isinstance(inputs, SoftmaxInputs)
        return {name: _softmax(case, inputs, loss) for name, loss in losses().items()}
    if isinstance(case, Adaptive):
        assert isinstance(inputs, AdaptiveInputs)
        return {"torch": _adaptive(case, inputs)}
    if isinstance(case, Mixture):
        assert isinstance(inputs, MixtureInputs)
        return {"torch": _mixture(case, inputs)}
    if isinstance(case, DropIn):
        assert isinstance(inputs, DropInInputs)
        return {"torch": dropin.make(case, inputs, ours=False)}
    assert isinstance(inputs, TrainInputs)
    return {name: _train(case, inputs, loss) for name, loss in losses().items()}


def losses() -> dict[str, Loss]:
    """Linear layer and cross-entropy in torch: apart, and (where torch has it) in chunks."""
    found: dict[str, Loss] = {"torch": _linear_then_cross_entropy}
    if hasattr(F, "linear_cross_entropy"):
        found["torch (linear_cross_entropy)"] = _linear_cross_entropy
    return found


def _linear_then_cross_entropy(h: Tensor, head: nn.Linear, targets: Tensor, how: str) -> Tensor:
    return F.cross_entropy(head(h), targets, reduction=how)


def _linear_cross_entropy(h: Tensor, head: nn.Linear, targets: Tensor, how: str) -> Tensor:
    # Without options it is `_linear_then_cross_entropy` once more.
    return F.linear_cross_entropy(
        h,
        head.weight,
        targets,
        linear_bias=head.bias,
        reduction=how,
        options=nn.LinearCrossEntropyOptions(),
    )


def _recurrent(case: Recurrent, inputs: RecurrentInputs) -> Work:
    two = case.directions == 2
    module = MODULES[case.cell](case.I, case.H, case.layers, bidirectional=two)
    x, dy = torch.tensor(inputs.x), torch.tensor(inputs.dy)
    for layer, weights in enumerate(inputs.weights):
        load_layer(module, layer, weights)
    lengths = None if inputs.lengths is None else torch.tensor(inputs.lengths).long()

    def forward() -> Tensor:
        y: Tensor
        if lengths is None:
            y, _ = module(x)
        else:
            packed, _ = module(nn.utils.rnn.pack_padded_sequence(x, lengths))
            y, _ = nn.utils.rnn.pad_packed_sequence(packed)
        return y

    def forward_only() -> Tensor:
        with torch.inference_mode():
            return forward()

    def train() -> Tensor:
        module.zero_grad()
        x.grad = None
        y = forward()
        y.backward(dy)
        return y

    def results() -> dict[str, Array]:
        if not case.train:
            return {"y": forward_only().numpy()}
        found = {"y": train().detach().numpy(), "dx": gradient(x)}
        for layer, suffix in product(range(case.layers), SUFFIXES[: case.directions]):
            found |= {
                f"d{name}{suffix}.{layer}": gradient(getattr(module, f"{theirs}_l{layer}{suffix}"))
                for name, theirs in WEIGHTS
            }
            if case.cell == "gru":
                second = gradient(getattr(module, f"bias_hh_l{layer}{suffix}"))
                found[f"db_hn{suffix}.{layer}"] = second[2 * case.H :]
        return found

    if case.train:
        x.requires_grad_()
        return Work(train, results)
    module.eval()
    return Work(forward_only, results)


def _softmax(case: Softmax, inputs: SoftmaxInputs, loss: Loss) -> Work:
    head = _linear(inputs.w, inputs.b)
    h = torch.tensor(inputs.h, requires_grad=case.train)
    targets = torch.tensor(inputs.targets).long()

    def loss_only() -> Tensor:
        with torch.inference_mode():
            return loss(h, head, targets, "mean")

    def train() -> Tensor:
        head.zero_grad()
        h.grad = None
        value = loss(h, head, targets, "mean")
        value.backward()
        return value

    def results() -> dict[str, Array]:
        if not case.train:
            return {"nll": loss_only().numpy().reshape(1)}
        found = {"nll": train().detach().numpy().reshape(1)}
        return found | {
            "dh": gradient(h),
            "dw": gradient(head.weight),
            "db": gradient(head.bias),
        }

    return Work(train if case.train else loss_only, results)


def _adaptive(case: Adaptive, inputs: AdaptiveInputs) -> Work:
    head = nn.AdaptiveLogSoftmaxWithLoss(
        case.H, case.V, list(case.users), div_value=case.div_value, head_bias=True
    )
    head.load_state_dict({name: torch.tensor(w) for name, w in inputs.weights.items()})
    h = torch.tensor(inputs.h, requires_grad=True)
    targets = torch.tensor(inputs.targets).long()

    def train() -> Tensor:
        head.zero_grad()
        h.grad = None
        loss: Tensor = head(h, targets).loss
        loss.backward()
        return loss

    def results() -> dict[str, Array]:
        found = {"nll": train().detach().numpy().reshape(1), "dh": gradient(h)}
        return found | {f"d{name}": gradient(w) for name, w in head.named_parameters()}

    return Work(train, results)


def _mixture(case: Mixture, inputs: MixtureInputs) -> Work:
    """As its authors write it: the probabilities of all experts, added up."""
    given = {name: torch.tensor(w, requires_grad=True) for name, w in inputs.weights.items()}
    h = torch.tensor(inputs.h, requires_grad=True)
    targets = torch.tensor(inputs.targets).long()

    def train() -> Tensor:
        for leaf in (h, *given.values()):
            leaf.grad = None
        e = torch.tanh(F.linear(h, given["latent.weight"], given["latent.bias"]))
        logits = F.linear(e.view(-1, case.H), given["weight"], given["bias"])
        p = F.softmax(logits, -1).view(case.N, case.experts, case.V)
        prior = F.softmax(F.linear(h, given["prior.weight"]), -1)
        loss = F.nll_loss((p * prior[..., None]).sum(1).log(), targets)
        loss.backward()
        return loss

    def results() -> dict[str, Array]:
        found = {"nll": train().detach().numpy().reshape(1), "dh": gradient(h)}
        return found | {f"d{name}": gradient(w) for name, w in given.items()}

    return Work(train, results)


class Trainee:
    """A model in training: forward, backward, clipping, update; the state runs through the text."""

    def __init__(
        self,
        settings: Recipe,
        config: RecurrentLMConfig,
        loss: Loss,
        clip: Clip = nn.utils.clip_grad_norm_,
    ) -> None:
        self.model: Model = model_for(config).to(getattr(torch, settings.train.dtype))
        self.optimiser = _optimiser(settings.optimiser, self.model)
        self.clip_value, self.clip_norm = settings.train.clip_value, settings.train.clip_norm
        self.sums_time, self.loss, self.clip = settings.train.loss == "sum_time", loss, clip
        self.state: Any = None

    def step(self, ids: Tensor, targets: Tensor) -> float:
        """One training step; its loss."""
        self.optimiser.zero_grad()
        hidden, self.state = self.model(ids, _detached(self.state))
        if self.sums_time:
            loss = self.loss(hidden, self.model.head, targets.flatten(), "sum") / ids.shape[1]
        else:
            loss = self.loss(hidden, self.model.head, targets.flatten(), "mean")
        loss.backward()
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.model.parameters(), self.clip_value)
        if self.clip_norm is not None:
            self.clip(self.model.parameters(), self.clip_norm)
        self.optimiser.step()
        return loss.item()


def _detached(state: Any) -> Any:
    """The same numbers without their history: a tensor, nested tuples of such, or None."""
    if isinstance(state, tuple):
        return tuple(map(_detached, state))
    return None if state is None else state.detach()


def norm_in_double(parameters: Iterable[Tensor]) -> float:
    """Norm of all gradients, squares added up in double precision.

    On a CPU torch adds up a float32 tensor's squares in float32: over the millions of a table of
    words it loses 1e-4 to 1e-3 of the norm.
    """
    norms = [
        torch.linalg.vector_norm(p.grad, dtype=torch.float64)
        for p in parameters
        if p.grad is not None
    ]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def clip_in_double(parameters: Iterable[Tensor], limit: float) -> None:
    """`clip_grad_norm_` with the norm in double, and without the 1e-6 that it adds to it."""
    parameters = list(parameters)
    norm = norm_in_double(parameters)
    if norm > limit:
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(limit / norm)


def _optimiser(config: OptimiserConfig, model: nn.Module) -> torch.optim.Optimizer:
    """What a recipe's `[optimiser]` describes."""
    decay = config.weight_decay
    if config.kind == "adagrad":
        return torch.optim.Adagrad(
            model.parameters(), lr=config.lr, eps=config.eps, weight_decay=decay
        )
    if config.kind in ("adam", "adamw"):
        make = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
        return make(
            model.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=decay
        )
    momentum = config.momentum if config.kind == "momentum" else 0.0
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=momentum,
        nesterov=bool(momentum) and config.nesterov,
        weight_decay=decay,
    )


def as_tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """Ids and targets in the kind that torch's modules take."""
    return torch.tensor(batch.ids).long(), torch.tensor(batch.targets).long()


def _train(case: Train, inputs: TrainInputs, loss: Loss) -> Work:
    trainee = Trainee(case.settings, case.config, loss)
    trainee.model.load(inputs.weights)
    supply = cycle([as_tensors(batch) for batch in inputs.batches])

    def results() -> dict[str, Array]:
        ids, targets = as_tensors(inputs.batches[0])
        trainee.model.eval()
        with torch.inference_mode():
            hidden, _ = trainee.model(ids, None)
            nll = loss(hidden, trainee.model.head, targets.flatten(), "none")
        trainee.model.train()
        return {"nll": nll.numpy().reshape(ids.shape)}

    return Work(lambda: trainee.step(*next(supply)), results)


def _linear(w: Array, b: Array) -> nn.Linear:
    head = nn.utils.skip_init(nn.Linear, w.shape[1], w.shape[0])
    with torch.no_grad():
        head.weight.copy_(torch.tensor(w))
        head.bias.copy_(torch.tensor(b))
    return head
