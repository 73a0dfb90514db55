"""`torch.nn.functional.linear_cross_entropy` and its module, on the fused kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy as torchs  # also where ours takes its place
from torch.utils.weak import WeakTensorKeyDictionary

from pynlm._kernels import xent_forward, xent_gradients  # the arguments are checked here
from pynlm.torch.tensors import Memory, array, contiguous, is_narrower, mapped, readable, watched
from pynlm.torch.threads import follow_threads

Array = npt.NDArray[Any]

REDUCTIONS = ("none", "mean", "sum")
FEWEST = 2**19  # products below which what a call costs by itself decides, and torch's costs less

_memories = WeakTensorKeyDictionary()
"""Memory for gradients by the weights that they belong to, for as long as these live."""


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
) -> Tensor:
    """Cross-entropy of `input linear_weight^T + linear_bias` without the logits of all tokens.

    `torch.nn.functional.linear_cross_entropy`, argument for argument: `cross_entropy(linear(input,
    linear_weight, linear_bias), target)`. Where a gradient is asked for, all gradients are made
    along with the loss, in one pass over the logits, which exist for a block of tokens at a time;
    for `reduction="none"` in the backward pass, which knows the upstream gradients.

    torch's own function does, with its own speed and memory, what the kernel is not made for: small
    calls (N H V below 2^19), tensors that are not float32 or float64 on the CPU, class
    probabilities as the target, `weight` together with `label_smoothing`, K-dimensional losses,
    `options` (which choose among torch's chunked ways; the kernel needs none), second derivatives,
    `torch.func`, `torch.jit.trace` and forward-mode differentiation. Wrong arguments go there,
    too, and raise what they raise in torch.

    Under autocast the kernel computes in the weights' dtype, float32, as torch's `cross_entropy`
    does there.

    Parameters
    ----------
    input
        [N, H] or [H].
    linear_weight
        [V, H].
    target
        int64 [N] or [], each in [0, V) or `ignore_index`.
    linear_bias
        [V].
    weight
        [V], of each class; it has no gradient.
    reduction
        "none", "sum" or "mean": the sum over that of the weights of all tokens that count.
    ignore_index
        Tokens with this target have loss and gradient 0; None: -100.
    label_smoothing
        0 to 1.
    options
        None: the kernel.

    Returns
    -------
    Tensor
        The loss in nats, [] or (for "none") like `target`.

    Raises
    ------
    RuntimeError, ValueError, IndexError
        As torch.

    Notes
    -----
    Source: see `pynlm.kernels.xent_gradients`.

    Examples
    --------
    >>> input = torch.ones(5, 3, requires_grad=True)
    >>> target = torch.tensor([1, 2, 3, 4, -100])
    >>> loss = linear_cross_entropy(input, torch.zeros(11, 3), target)
    >>> loss.backward()
    >>> round(loss.item(), 4), input.grad.shape  # log 11
    (2.3979, torch.Size([5, 3]))
    """
    input = as_in_autocast(input, linear_weight)
    if not _fits(
        input, linear_weight, target, linear_bias, weight, reduction, label_smoothing, options
    ):
        return torchs(
            input, linear_weight, target, linear_bias=linear_bias, weight=weight,
            reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing,
            options=options,
        )  # fmt: skip
    ignored = -100 if ignore_index is None else ignore_index
    given = input, linear_weight, linear_bias, target, weight, ignored, label_smoothing, reduction
    wanted = torch.is_grad_enabled() and (
        input.requires_grad
        or linear_weight.requires_grad
        or (linear_bias is not None and linear_bias.requires_grad)
    )
    loss: Tensor
    if torch.compiler.is_compiling():
        loss = _operator(*given, wanted and reduction != "none")[0]
        return loss
    loss = _Function.apply(*given) if wanted else _loss(*given)
    return loss


class LinearCrossEntropyLoss(nn.LinearCrossEntropyLoss):
    """`torch.nn.LinearCrossEntropyLoss` on pynlm's kernel: see `linear_cross_entropy`.

    Arguments, parameters (`linear.weight` [V, H], `linear.bias` [V]), their names in a state dict
    and their initial values are torch's, and it is one: only `forward` differs.

    Examples
    --------
    >>> loss = LinearCrossEntropyLoss(3, 11, bias=True)
    >>> isinstance(loss, torch.nn.LinearCrossEntropyLoss), list(loss.state_dict())
    (True, ['linear.weight', 'linear.bias'])
    >>> loss(torch.ones(5, 3), torch.arange(5)).shape
    torch.Size([])
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of hidden states `input` [N, H] or [H] at `target` [N] or []."""
        linear, outputs = self.linear, self.out_features
        weight: Tensor = linear.weight
        bias: Tensor | None = linear.bias
        if outputs:
            weight = weight.reshape(self.num_classes, *outputs, linear.in_features)
            bias = None if bias is None else bias.reshape(self.num_classes, *outputs)
        return linear_cross_entropy(
            input, weight, target, linear_bias=bias, weight=self.weight, reduction=self.reduction,
            ignore_index=self.ignore_index, label_smoothing=self.label_smoothing,
            options=self.options,
        )  # fmt: skip


def as_in_autocast(input: Tensor, weight: Tensor) -> Tensor:
    """`input` in the dtype of `weight` where autocast has made it narrower."""
    if torch.is_autocast_enabled("cpu") and is_narrower(input, weight.dtype):
        return input.to(weight.dtype)
    return input


def _fits(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
    options: LinearCrossEntropyOptions | None,
) -> bool:
    """Whether the arguments are right, and the kernel does what they ask for."""
    return (
        options is None
        and readable(input)
        and readable(linear_weight)
        and input.dtype is linear_weight.dtype
        and input.dim() in (1, 2)
        and linear_weight.dim() == 2
        and input.shape[-1] == linear_weight.shape[1]
        and target.dtype is torch.int64
        and target.is_cpu
        and target.shape == input.shape[:-1]
        and input.numel() > 0
        and linear_weight.numel() > 0
        and (linear_bias is None or _of_classes(linear_bias, linear_weight))
        and (
            weight is None
            or (
                label_smoothing == 0
                and not weight.requires_grad
                and _of_classes(weight, linear_weight)
            )
        )
        and reduction in REDUCTIONS
        and 0 <= label_smoothing <= 1
        and (
            torch.compiler.is_compiling()
            or (
                (
                    input.numel() * len(linear_weight) >= FEWEST
                    or torch.is_autocast_enabled("cpu")  # torch's products are of bfloat16 there
                )
                and not watched()
            )
        )
    )


def _of_classes(x: Tensor, linear_weight: Tensor) -> bool:
    """Whether `x` has a number for each class."""
    return readable(x) and x.dtype is linear_weight.dtype and x.shape == linear_weight.shape[:1]


class _Call:
    """The tokens that count and the map to logits, as the kernels take them.

    Attributes
    ----------
    kept
        Where the tokens stand, None where all count.
    map
        h [n, H], w [V, H], b [V] or None, targets int32 [n], label_smoothing.
    factors
        Weights [n] of their classes, or None for 1.
    share
        What a token's loss is multiplied by in the mean; NaN where none counts, as in torch.

    Raises
    ------
    IndexError
        A target that is no class.
    """

    __slots__ = ("factors", "kept", "like", "map", "share", "target")

    def __init__(
        self,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        label_smoothing: float,
    ) -> None:
        follow_threads()
        self.like, self.target = input, target
        h: Array = array(contiguous(input)).reshape(-1, input.shape[-1])
        w: Array = array(contiguous(linear_weight))
        ids: npt.NDArray[np.int64] = target.numpy().reshape(-1)
        self.kept: npt.NDArray[np.intp] | None = None
        ignored = ids == ignore_index
        if ignored.any():
            self.kept = np.flatnonzero(~ignored)
            h, ids = h[self.kept], ids[self.kept]
        # as unsigned numbers negative ids are huge
        wrong = ids[ids.view(np.uint64) >= len(w)]
        if len(wrong):
            raise IndexError(f"Target {wrong[0]} is out of bounds.")
        self.factors: Array | None = None
        total = float(len(ids))
        if weight is not None:
            self.factors = array(contiguous(weight))[ids]
            total = float(self.factors.sum(dtype=np.float64))
        self.share = 1 / total if total else float("nan")
        self.map: dict[str, Any] = {
            "h": h,
            "w": w,
            "b": None if linear_bias is None else array(contiguous(linear_bias)),
            "targets": ids.astype(np.int32),
            "label_smoothing": label_smoothing,
        }

    def losses(self) -> dict[str, Any]:
        """Arrays for what the kernels give of each token; the last one is the loss."""
        names = ("nll", "loss") if self.map["label_smoothing"] else ("nll",)
        return {name: np.empty(len(self.map["h"]), self.map["h"].dtype) for name in names}

    def reduced(self, losses: dict[str, Any], reduction: str) -> Tensor:
        """The loss that is asked for."""
        *_, values = losses.values()
        if self.factors is not None:
            values *= self.factors
        if reduction == "none":
            return self.placed(values, self.target)
        total = values.sum(dtype=np.float64) * (self.share if reduction == "mean" else 1)
        return self.like.new_tensor(total)

    def placed(self, values: Array, like: Tensor) -> Tensor:
        """What belongs to the tokens that count in the shape of `like`, 0 for the others."""
        if self.kept is None:
            return torch.from_numpy(values).view(like.shape)
        placed = self.like.new_zeros(like.shape)
        array(placed).reshape(-1, *values.shape[1:])[self.kept] = values
        return placed


def _loss(*given: Any) -> Tensor:
    """The loss alone, of the arguments of `_Call` and the reduction."""
    *given, reduction = given  # type: ignore[assignment]
    call = _Call(*given)
    losses = call.losses()
    xent_forward(**losses, **call.map)
    return call.reduced(losses, reduction)


def _gradients(
    *given: Any, upstream: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The loss, and the gradients of input, weights and bias for `upstream` (1 by default)."""
    *given, reduction = given  # type: ignore[assignment]
    call = _Call(*given)
    factors = call.factors
    if reduction == "mean":
        factors = (1 if factors is None else factors) * call.map["h"].dtype.type(call.share)
    if upstream is not None:
        of_each: Array = array(contiguous(upstream)).reshape(-1)
        if reduction == "none" and call.kept is not None:
            of_each = of_each[call.kept]
        factors = of_each if factors is None else factors * of_each
    if factors is not None:
        factors = np.ascontiguousarray(np.broadcast_to(factors, len(call.map["h"])))
    linear_weight, linear_bias = given[1:3]
    memory: Memory = _memories.setdefault(linear_weight, Memory())
    losses, dh = call.losses(), memory.array(call.map["h"].shape, call.map["h"].dtype)
    dweight = memory.tensor(linear_weight.shape, linear_weight.dtype)
    dbias = None if linear_bias is None else linear_bias.new_empty(linear_bias.shape)
    xent_gradients(
        **losses, dh=dh, dw=array(dweight), db=None if dbias is None else array(dbias),
        weights=factors, **call.map,
    )  # fmt: skip
    return call.reduced(losses, reduction), call.placed(dh, call.like), dweight, dbias


class _Function(torch.autograd.Function):
    """What autograd calls in eager mode."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        """The loss; unless it is one of each token, with all gradients."""
        *tensors, ignore_index, label_smoothing, reduction = given
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.settings = ignore_index, label_smoothing, reduction
        ctx.made = None
        if reduction == "none":
            return _loss(*given)
        loss, *ctx.made = _gradients(*given)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of input, weights and bias."""
        saved = ctx.saved_tensors  # also where it is not used: raises if something has changed
        nothing = (None,) * 5
        if upstream is None:
            return None, None, None, *nothing
        if torch.is_grad_enabled() or watched() or mapped((upstream,)):
            return *_differentiable(ctx, saved, upstream), *nothing
        made, ctx.made = ctx.made, None
        if made is None:
            _, *made = _gradients(*saved, *ctx.settings, upstream=upstream)
        elif (scale := upstream.item()) != 1:
            for gradient in made:
                if gradient is not None:
                    gradient.mul_(scale)
        return *made, *nothing


def _differentiable(
    ctx: Any, saved: tuple[Tensor | None, ...], upstream: Tensor
) -> list[Tensor | None]:
    """The gradients by torch's own operations, so that they can be differentiated in turn."""
    ignore_index, label_smoothing, reduction = ctx.settings
    with torch.enable_grad():
        # aliases: one of the inputs may have been computed from another
        input, linear_weight, linear_bias = (None if t is None else t.view_as(t) for t in saved[:3])
        assert input is not None and linear_weight is not None and saved[3] is not None
        loss = torchs(
            input, linear_weight, saved[3], linear_bias=linear_bias, weight=saved[4],
            reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing,
        )  # fmt: skip
    needed = ctx.needs_input_grad[:3]
    of = [
        t
        for t, i in zip((input, linear_weight, linear_bias), needed, strict=True)
        if i and t is not None
    ]
    found = iter(torch.autograd.grad(loss, of, upstream, create_graph=torch.is_grad_enabled()))
    return [next(found) if i else None for i in needed]


_GIVEN = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, "
    "int ignore_index, float label_smoothing, str reduction"
)


@torch.library.custom_op(
    "pynlm::linear_cross_entropy",
    mutates_args=(),
    schema=f"({_GIVEN}, bool gradients) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _operator(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For torch.compile: the loss and, if asked for, the gradients of its three arguments."""
    *given, gradients = given  # type: ignore[assignment]
    none = given[0].new_empty(0)
    if not gradients:
        return _loss(*given), none, none.clone(), none.clone()
    loss, dinput, dweight, dbias = _gradients(*given)
    return loss, dinput, dweight, none if dbias is None else dbias


@torch.library.custom_op(
    "pynlm::linear_cross_entropy_backward",
    mutates_args=(),
    schema=f"({_GIVEN}, Tensor upstream) -> (Tensor, Tensor, Tensor)",
)
def _backward_operator(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients, given those of each token's loss."""
    *given, upstream = given  # type: ignore[assignment]
    _, dinput, dweight, dbias = _gradients(*given, upstream=upstream)
    return dinput, dweight, given[0].new_empty(0) if dbias is None else dbias


@_operator.register_fake
def _(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
      weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: str,
      gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    loss = input.new_empty(target.shape if reduction == "none" else ())
    if not gradients:
        return loss, input.new_empty(0), input.new_empty(0), input.new_empty(0)
    return loss, *_empty_gradients(input, linear_weight, linear_bias)


@_backward_operator.register_fake
def _(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, *_: Any) -> Any:
    return _empty_gradients(input, linear_weight, linear_bias)


def _empty_gradients(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        input.new_empty(input.shape),
        linear_weight.new_empty(linear_weight.shape),
        input.new_empty(0 if linear_bias is None else linear_bias.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ignore_index, label_smoothing, reduction, gradients = inputs
    made = output[1:] if gradients else ()
    ctx.save_for_backward(*tensors, *made)
    ctx.settings = ignore_index, label_smoothing, reduction


def _compiled_backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    tensors, made = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    if made:
        made = tuple(gradient * upstream for gradient in made)
    else:
        made = _backward_operator(*tensors, *ctx.settings, upstream)
    return *made[:2], made[2] if tensors[2] is not None else None, *(None,) * 6


_operator.register_autograd(_compiled_backward, setup_context=_setup_context)
