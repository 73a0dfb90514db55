"""`torch.nn.AdaptiveLogSoftmaxWithLoss` on pynlm's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.adaptive import _ASMoutput
from torch.nn.modules.module import _has_any_global_hook

from pynlm.heads import Adaptive
from pynlm.heads.fused import FusedBackprop
from pynlm.layers import SCORING, Context, Group, Parameter, Pool
from pynlm.layers.parameters import UNSET
from pynlm.torch.cross_entropy import as_in_autocast
from pynlm.torch.tensors import array, contiguous, mapped, readable, watched
from pynlm.torch.threads import follow_threads

Array = npt.NDArray[Any]

FEWEST = 2**25  # N H V below which what a call costs by itself decides, and torch's costs less

_GROUP = Group("torch")
_POOL = Pool()  # of what lives within a call
_TRAINING = Context(train=True)


class AdaptiveLogSoftmaxWithLoss(nn.AdaptiveLogSoftmaxWithLoss):
    """`torch.nn.AdaptiveLogSoftmaxWithLoss` on pynlm's kernels.

    Arguments, parameters, their names in a state dict and their initial values are torch's, and it
    is one: only what is computed differs. Tokens are sorted by cluster once, each cluster is one
    call of the fused kernel, and loss and gradients are made together. A gradient of `output` (that
    of `loss` is the usual one) makes the backward pass compute them again.

    torch's own code does what the kernels are not made for: small calls (N H V below 2^25), tensors
    that are not float32 or float64 on the CPU, empty batches, second derivatives, `torch.func`,
    forward-mode differentiation, layers in `head` or `tail` that are replaced, parametrised,
    hooked or given a bias, and in `log_prob` all that needs a gradient. Wrong arguments raise what
    they raise in torch.

    As in torch, a cluster without a token in the batch leaves its weights' `grad` as it is; under
    `torch.compile` it gets zeros. Under autocast the kernels compute in the weights' float32.

    Notes
    -----
    Source: see `pynlm.heads.Adaptive`.

    Examples
    --------
    >>> head = AdaptiveLogSoftmaxWithLoss(8, 11, cutoffs=[3, 6], div_value=2.0)
    >>> isinstance(head, torch.nn.AdaptiveLogSoftmaxWithLoss)
    True
    >>> output, loss = head(torch.ones(5, 8), torch.tensor([0, 2, 3, 5, 10]))
    >>> output.shape, bool(torch.isclose(loss, -output.mean()))
    (torch.Size([5]), True)
    >>> head.predict(torch.ones(5, 8)).shape
    torch.Size([5])
    """

    def forward(self, input_: Tensor, target_: Tensor) -> _ASMoutput:
        """Log-probability of each target [N] or [] after `input_` [N, H] or [H], and mean loss."""
        given = self._given(input_, target_)
        if given is None:
            return super().forward(input_, target_)
        input, *weights = given
        target = target_
        if not target_.dim():
            assert input is not None
            input, target = input[None], target_[None]
        wanted = _wanted(given)
        if torch.compiler.is_compiling():
            head, bias, *tails = weights
            output, loss, _, _ = _operator(input, target, [head, *tails], bias, wanted)
        elif wanted:
            output, loss = _Function.apply(input, target, *weights)
        else:
            output, loss = _results(_call(_head(weights), input, target, SCORING)[0])
        return _ASMoutput(output if target_.dim() else output[0], loss)

    def log_prob(self, input: Tensor) -> Tensor:
        """Log-probabilities [N, V] of all classes after `input` [N, H]."""
        given = None if torch.compiler.is_compiling() else self._given(input)
        if given is None or _wanted(given):
            return super().log_prob(input)
        h, *weights = given
        return torch.from_numpy(_head(weights).log_prob(array(contiguous(h))))

    def predict(self, input: Tensor) -> Tensor:
        """The most probable class [N] after `input` [N, H]; few clusters are opened."""
        given = None if torch.compiler.is_compiling() else self._given(input)
        if given is None:
            return super().predict(input)
        h, *weights = given
        _, ids = _head(weights).top_k(array(contiguous(h)), 1)
        return torch.from_numpy(ids[:, 0].astype(np.int64))

    def _given(self, input: Tensor, target: Tensor | None = None) -> list[Any] | None:
        """Input and weights of head and clusters; None if they or the target are not for kernels.

        Weights are the head's, its bias (or None), and two of each cluster.
        """
        if not torch.compiler.is_compiling() and (
            (input.numel() * self.n_classes < FEWEST and not torch.is_autocast_enabled("cpu"))
            or watched()
        ):
            return None
        pairs: Any = self.tail
        linears: list[Any] = [linear for pair in pairs for linear in pair]
        if not (
            _is_plain(self.head, nn.Linear)
            and all(_is_plain(pair, nn.Sequential) and len(pair) == 2 for pair in pairs)
            and all(_is_plain(linear, nn.Linear) and linear.bias is None for linear in linears)
            and not _has_any_global_hook()
        ):
            return None
        head, *tails = (linear.weight for linear in (self.head, *linears))
        input = as_in_autocast(input, head)
        given = [input, head, self.head.bias, *tails]
        fits = (
            all(map(partial(_is_like, input), given))
            and input.dim() in ((2,) if target is None else (1, 2))
            and input.shape[-1] == self.in_features
            and (
                target is None
                or (
                    target.shape == input.shape[:-1]
                    and target.dtype is torch.int64
                    and target.is_cpu
                )
            )
        )
        return given if fits else None


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is what its class does, and no more."""
    return type(module) is kind and not (
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_like(input: Tensor, x: Tensor | None) -> bool:
    """Whether kernels can read `x`, in the dtype of `input`, and it is not empty."""
    return x is None or (readable(x) and x.dtype is input.dtype and x.numel() > 0)


def _wanted(given: Sequence[Tensor | None]) -> bool:
    """Whether a gradient is asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)


def _head(
    weights: Sequence[Tensor | None], gradients: Sequence[Tensor | None] | None = None
) -> Adaptive:
    """pynlm's head over torch's weights, and over the memory for their gradients."""
    follow_threads()
    names = [".head.weight", ".head.bias"]
    for i in range(len(weights) // 2 - 1):
        names += [f".tail.{i}.0.weight", f".tail.{i}.1.weight"]
    parameters = {}
    for i, (name, w) in enumerate(zip(names, weights, strict=True)):
        if w is not None:
            data = array(contiguous(w))
            gradient = None if gradients is None else gradients[i]
            grad = data if gradient is None else array(gradient)  # data: nobody writes there
            parameters[name] = Parameter(name, data, grad, _GROUP, pool=_POOL)
    return Adaptive(parameters, "")


def _parameters(head: Adaptive) -> list[Parameter | None]:
    """Those of a head in the order of torch's weights."""
    return [head.weight, head.bias, *(p for tail in head.tails for p in tail[1:])]


def _call(
    head: Adaptive, input: Tensor, target: Tensor, ctx: Context, weights: float | Array = 1.0
) -> tuple[Array, FusedBackprop | None]:
    """nll [N] and backprop, with torch's error for a target that is no class."""
    try:
        return head(array(contiguous(input)), target.numpy(), ctx, weights)
    except IndexError:
        low, high = int(target.min()), int(target.max())
        raise RuntimeError(
            f"Target values should be in [0, {head.vocab_size - 1}], "
            f"but values in range [{low}, {high}] were found. "
        ) from None


def _results(nll: Array) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the mean loss."""
    output = torch.from_numpy(-nll)
    return output, output.new_tensor(nll.mean(dtype=np.float64))


class _Made:
    """Gradients that were made along with the loss.

    Parameters
    ----------
    upstream
        Of each token's nll; by default that of their mean.
    gradients
        Memory for those of the weights.
    """

    __slots__ = ("_backprop", "_gradients", "_head", "nll")

    def __init__(
        self,
        input: Tensor,
        target: Tensor,
        weights: Sequence[Tensor | None],
        upstream: Tensor | None = None,
        gradients: Sequence[Tensor | None] | None = None,
    ) -> None:
        if gradients is None:
            gradients = [None if w is None else w.new_empty(w.shape) for w in weights]
        self._gradients, self._head = gradients, _head(weights, gradients)
        factors = 1 / len(target) if upstream is None else array(contiguous(upstream))
        self.nll, self._backprop = _call(self._head, input, target, _TRAINING, factors)

    def take(self, scale: float = 1.0) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients of input and weights times `scale`; None for clusters without a token."""
        assert self._backprop is not None
        dinput = torch.from_numpy(self._backprop(scale))
        of = zip(self._gradients, _parameters(self._head), strict=True)
        return dinput, [None if p is None or p.state == UNSET else g for g, p in of]


def _upstream(d_output: Tensor | None, d_loss: Tensor | None, n: int) -> Tensor | None:
    """The gradient of each token's nll; None if that of the mean is all there is."""
    if d_output is None or not d_output.any():
        return None
    return -d_output if d_loss is None else d_loss / n - d_output


def _scale(d_loss: Tensor | None) -> float:
    return 0.0 if d_loss is None else d_loss.item()


class _Function(torch.autograd.Function):
    """What autograd calls in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, *weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and mean loss, with the gradients of the latter."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, *weights)
        ctx.made = _Made(input, target, weights)
        return _results(ctx.made.nll)

    @staticmethod
    def backward(
        ctx: Any, d_output: Tensor | None, d_loss: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of input and weights."""
        input, target, *weights = ctx.saved_tensors  # raises if something has changed
        if d_output is None and d_loss is None:
            return (None,) * (2 + len(weights))
        if torch.is_grad_enabled() or watched() or mapped((d_output, d_loss)):
            return _differentiable(ctx, input, target, weights, d_output, d_loss)
        made, ctx.made = ctx.made, None
        upstream = _upstream(d_output, d_loss, len(target))
        if made is None or upstream is not None:
            made = _Made(input, target, weights, upstream)
        dinput, gradients = made.take(_scale(d_loss) if upstream is None else 1.0)
        return dinput, None, *gradients


def _differentiable(
    ctx: Any,
    input: Tensor,
    target: Tensor,
    weights: Sequence[Tensor | None],
    d_output: Tensor | None,
    d_loss: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients by torch's own operations, so that they can be differentiated in turn."""
    with torch.enable_grad():
        # aliases: one of the inputs may have been computed from another
        inputs = [None if t is None else t.view_as(t) for t in (input, *weights)]
        output, loss = _composed(target, *inputs)
    pairs = [(y, d) for y, d in ((output, d_output), (loss, d_loss)) if d is not None]
    needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
    of = [t for t, i in zip(inputs, needed, strict=True) if i and t is not None]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs], of, [d for _, d in pairs],
            create_graph=torch.is_grad_enabled(), allow_unused=True,
        )
    )  # fmt: skip
    dinput, *gradients = (next(found) if i else None for i in needed)
    return dinput, None, *gradients


def _composed(
    target: Tensor, input: Any, weight: Any, bias: Tensor | None, *tails: Any
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and mean loss by torch's operations."""
    first = len(weight) - len(tails) // 2
    entries, inside = target.clone(), input.new_zeros(len(target))
    for i, (projection, of_cluster) in enumerate(zip(tails[::2], tails[1::2], strict=True), first):
        last = first + len(of_cluster)
        rows = ((target >= first) & (target < last)).nonzero().squeeze(1)
        entries[rows] = i
        x = F.linear(F.linear(input[rows], projection), of_cluster).log_softmax(1)
        some = x.gather(1, (target[rows] - first)[:, None]).squeeze(1)
        inside, first = inside.index_add(0, rows, some), last
    head = F.linear(input, weight, bias).log_softmax(1)
    output = head.gather(1, entries[:, None]).squeeze(1) + inside
    return output, -output.mean()


_GIVEN = "Tensor input, Tensor target, Tensor[] weights, Tensor? bias"


@torch.library.custom_op(
    "pynlm::adaptive_log_softmax",
    mutates_args=(),
    schema=f"({_GIVEN}, bool gradients) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _operator(
    input: Tensor, target: Tensor, weights: list[Tensor], bias: Tensor | None, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For torch.compile: output, loss and, if asked for, gradients of input and of all weights."""
    if not gradients:
        nll, _ = _call(_head([weights[0], bias, *weights[1:]]), input, target, SCORING)
        return *_results(nll), input.new_empty(0), input.new_empty(0)
    nll, dinput, flat = _flat_gradients(input, target, weights, bias)
    return *_results(nll), dinput, flat


@torch.library.custom_op(
    "pynlm::adaptive_log_softmax_backward",
    mutates_args=(),
    schema=f"({_GIVEN}, Tensor dinput, Tensor flat, Tensor? d_output, Tensor? d_loss) "
    "-> (Tensor, Tensor)",
)
def _backward_operator(
    input: Tensor,
    target: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    dinput: Tensor,
    flat: Tensor,
    d_output: Tensor | None,
    d_loss: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of input and of all weights, from those made in the forward pass if they serve."""
    upstream = _upstream(d_output, d_loss, len(target))
    if upstream is None:
        scale = _scale(d_loss)
        return dinput * scale, flat * scale
    _, dinput, flat = _flat_gradients(input, target, weights, bias, upstream)
    return dinput, flat


def _flat_gradients(
    input: Tensor,
    target: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    upstream: Tensor | None = None,
) -> tuple[Array, Tensor, Tensor]:
    """nll, gradient of the input, and those of all weights one after another, then the bias's."""
    flat = input.new_empty(_flat_size(weights, bias))
    parts = _parts(flat, weights, bias)
    memory = [parts[0], None if bias is None else parts[-1], *parts[1 : len(weights)]]
    made = _Made(input, target, [weights[0], bias, *weights[1:]], upstream, memory)
    dinput, gradients = made.take()
    for part, gradient in zip(memory, gradients, strict=True):
        if gradient is None and part is not None:
            part.zero_()
    return made.nll, dinput.clone(), flat


def _flat_size(weights: Sequence[Tensor], bias: Tensor | None) -> int:
    return sum(w.numel() for w in weights) + (0 if bias is None else bias.numel())


def _parts(flat: Tensor, weights: Sequence[Tensor], bias: Tensor | None) -> list[Tensor]:
    """The flat gradient cut into those of the weights and the bias."""
    shapes = [w.shape for w in (*weights, *(() if bias is None else (bias,)))]
    cut = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(cut, shapes, strict=True)]


@_operator.register_fake
def _(
    input: Tensor, target: Tensor, weights: list[Tensor], bias: Tensor | None, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made: Any = (input.shape, _flat_size(weights, bias)) if gradients else (0, 0)
    dinput, flat = (input.new_empty(shape) for shape in made)
    return input.new_empty(target.shape), input.new_empty(()), dinput, flat


@_backward_operator.register_fake
def _(
    input: Tensor, target: Tensor, weights: list[Tensor], bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape), input.new_empty(_flat_size(weights, bias))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, target, weights, bias, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, target, bias, *output[2:], *weights)


def _compiled_backward(
    ctx: Any, d_output: Tensor | None, d_loss: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    input, target, bias, dinput, flat, *weights = ctx.saved_tensors
    dinput, flat = _backward_operator(input, target, weights, bias, dinput, flat, d_output, d_loss)
    parts = _parts(flat, weights, bias)
    return dinput, None, parts[: len(weights)], None if bias is None else parts[-1], None


_operator.register_autograd(_compiled_backward, setup_context=_setup_context)
