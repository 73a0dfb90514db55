"""The cases in pynlm: kernels on arrays allocated beforehand, the trainer's step for models.

Variants of the recurrent cells run through the layers, which draw what a training step draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count, cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cases import (
    CLIP_C,
    CLIP_H,
    GATES,
    Adaptive,
    Case,
    DropIn,
    Mixture,
    Recurrent,
    Softmax,
    Train,
)
from bench.inputs import (
    SEED,
    AdaptiveInputs,
    DropInInputs,
    Inputs,
    MixtureInputs,
    RecurrentInputs,
    SoftmaxInputs,
    TrainInputs,
    adaptive_inputs,
    adaptive_weights,
    dropin_inputs,
    mixture_inputs,
    recurrent_inputs,
    softmax_inputs,
    train_inputs,
)
from bench.work import Work
from pynlm import heads, kernels
from pynlm.layers import GRU, LSTM, RNN, Bidirectional, Context, Parameters, RecurrentOptions, Spec
from pynlm.layers import Recurrent as Layer
from pynlm.models import RecurrentLM
from pynlm.text import Batch
from pynlm.train.bptt import BPTT
from pynlm.train.optimisers import make_optimiser

Array = NDArray[Any]
NAME = "pynlm"
PLAIN = "pynlm, plain cell"
"""Beside a variant: the same layer without it, which does less work and is no peer."""

_LAYERS: dict[str, type[Layer]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}

# What each cell's kernels take besides the arguments that all have.
_FORWARD = {
    "lstm": ("c_last", "gates", "c", "c0"),
    "gru": ("gates", "hn", "b_hn"),
    "rnn": ("nonlinearity",),
}
_BACKWARD = {
    "lstm": ("dc0", "gates", "c", "c0"),
    "gru": ("db_hn", "gates", "hn"),
    "rnn": ("dpre", "nonlinearity"),
}
_ALL_FORWARD = ("y", "h_last", "x", "h0", "w_ih", "w_hh", "b", "lengths")
_ALL_BACKWARD = (
    "dx", "dh0", "dw_ih", "dw_hh", "db", "y", "x", "h0", "w_ih", "w_hh", "dy", "lengths",
)  # fmt: skip
_SAVED = ("gates", "c", "hn")


def make_inputs(case: Case) -> Inputs:
    """The numbers for all contenders of `case`."""
    if isinstance(case, Recurrent):
        return recurrent_inputs(case)
    if isinstance(case, Softmax):
        return softmax_inputs(case)
    if isinstance(case, Adaptive):
        return adaptive_inputs(case)
    if isinstance(case, Mixture):
        return mixture_inputs(case)
    if isinstance(case, DropIn):
        return dropin_inputs(case)
    return train_inputs(case)


def make(case: Case, inputs: Inputs) -> dict[str, Work]:
    """The case as pynlm does it; beside a variant the plain cell."""
    if isinstance(case, Recurrent):
        assert isinstance(inputs, RecurrentInputs)
        if not case.variant:
            return {NAME: _recurrent(case, inputs)}
        plain = case.plain()
        return {NAME: _variant(case, inputs), PLAIN: _variant(plain, recurrent_inputs(plain))}
    if isinstance(case, Softmax):
        assert isinstance(inputs, SoftmaxInputs)
        return {NAME: _softmax(case, inputs)}
    if isinstance(case, Adaptive):
        assert isinstance(inputs, AdaptiveInputs)
        return {NAME: _adaptive(case, inputs)}
    if isinstance(case, Mixture):
        assert isinstance(inputs, MixtureInputs)
        return {NAME: _mixture(case, inputs)}
    if isinstance(case, DropIn):
        from bench import dropin  # needs torch

        assert isinstance(inputs, DropInInputs)
        return {NAME: dropin.make(case, inputs, ours=True)}
    assert isinstance(inputs, TrainInputs)
    return {NAME: _train(case, inputs)}


def _recurrent(case: Recurrent, inputs: RecurrentInputs) -> Work:
    T, B, gates = case.T, case.B, GATES[case.cell]
    stack: list[dict[str, Any]] = []
    below = inputs.x
    for (I, H), weights in zip(case.widths, inputs.weights, strict=True):
        a: dict[str, Any] = {
            **weights,
            "x": below,
            "nonlinearity": "tanh",
            "lengths": inputs.lengths,
        }
        a |= {f"d{name}": _empty(*w.shape) for name, w in weights.items()}
        a |= {name: np.zeros((B, H), np.float32) for name in ("h0", "c0")}
        a |= {name: _empty(B, H) for name in ("h_last", "c_last", "dh0", "dc0")}
        a |= {name: _empty(T, B, H) for name in ("y", "c", "hn", "dpre")}
        a |= {"gates": _empty(T, B, gates * H), "dx": _empty(T, B, I)}
        if not case.train:
            a |= dict.fromkeys(_SAVED)
            # as a session of ONNX Runtime does when it is made
            a |= {
                "w_ih": kernels.pack(weights["w_ih"]),
                "w_hh": kernels.pack(weights["w_hh"], gates=gates),
            }
        stack.append(a)
        below = a["y"]
    forward = getattr(kernels, f"{case.cell}_forward")
    backward = getattr(kernels, f"{case.cell}_backward")
    names = (*_ALL_FORWARD, *_FORWARD[case.cell])
    calls: list[Callable[[], None]] = [partial(forward, **_pick(a, names)) for a in stack]
    if case.train:
        names = (*_ALL_BACKWARD, *_BACKWARD[case.cell])
        for i, a in reversed(list(enumerate(stack))):
            a["dy"] = stack[i + 1]["dx"] if i + 1 < len(stack) else inputs.dy
            calls.append(partial(backward, **_pick(a, names)))

    def run() -> None:
        for call in calls:
            call()

    def results() -> dict[str, Array]:
        run()
        found = {"y": stack[-1]["y"]}
        if case.train:
            found["dx"] = stack[0]["dx"]
            for i, (a, weights) in enumerate(zip(stack, inputs.weights, strict=True)):
                found |= {f"d{name}.{i}": a[f"d{name}"] for name in weights}
        return found

    return Work(run, results)


def _variant(case: Recurrent, inputs: RecurrentInputs) -> Work:
    step, certain = _layer_step(case, inputs), _layer_step(case.certain(), inputs)
    return Work(step, certain)


def _layer_step(case: Recurrent, inputs: RecurrentInputs) -> Callable[[], dict[str, Array]]:
    """Forward and backward of a layer, with all that its options draw in a step."""
    cell, (weights,), options = _LAYERS[case.cell], inputs.weights, _options(case)
    prefixes = ("0", "0_reverse")[: case.directions]
    specs = [cell.specs(prefix, case.I, case.H, options=options) for prefix in prefixes]
    parameters = Parameters([spec for layer in specs for spec in layer])
    parameters.load_state_dict({name: weights[_short(name)] for name in parameters})
    layers = [cell(parameters, prefix, options=options) for prefix in prefixes]
    layer, steps = Bidirectional(layers[0], layers[1]) if layers[1:] else layers[0], count()
    state = layer.initial_state(case.B)

    def step() -> dict[str, Array]:
        parameters.zero_grad()
        # The number of the step is a part of the key: each draws masks of its own.
        ctx = Context(train=True, seed=SEED, step=next(steps))
        (y, _), backprop = layer(inputs.x, state, ctx)
        assert backprop is not None
        found = {"y": y, "dx": backprop(inputs.dy)}
        for name, parameter in parameters.items():
            found[f"d{_short(name)}.0"] = parameter.grad
        return found

    return step


def _short(name: str) -> str:
    """ "w_ih" of "0.w_ih", "w_ih_reverse" of "0_reverse.w_ih"."""
    prefix, _, weight = name.partition(".")
    return weight + prefix.removeprefix("0")


def _options(case: Recurrent) -> RecurrentOptions:
    if case.variant == "zoneout":
        return RecurrentOptions(zoneout=case.p, zoneout_cell=case.p if case.cell == "lstm" else 0.0)
    if case.variant == "recurrent dropout":
        return RecurrentOptions(recurrent_dropout=case.p)
    if case.variant == "weight drop":
        return RecurrentOptions(weight_drop=case.p)
    if case.variant == "clipping":
        cell_clip = CLIP_C if case.cell == "lstm" else 0.0
        return RecurrentOptions(state_clip=CLIP_H[case.cell], cell_clip=cell_clip)
    chosen: dict[str, dict[str, Any]] = {
        "": {},
        "peephole": {"peephole": True},
        "layer norm": {"layer_norm": True},
        "layer norm of the state": {"layer_norm": True, "layer_norm_state": True},
        "coupled gates": {"coupled_gates": True},
        "projection": {"projection": case.P},
        "reset before": {"reset_before": True},
        "bidirectional": {},
    }
    return RecurrentOptions(**chosen[case.variant])


def _softmax(case: Softmax, inputs: SoftmaxInputs) -> Work:
    given: dict[str, Any] = {"h": inputs.h, "w": inputs.w, "b": inputs.b, "targets": inputs.targets}
    out: dict[str, Any] = {"nll": _empty(case.N)}
    if case.train:
        out |= {f"d{name}": _empty(*given[name].shape) for name in ("h", "w", "b")}
        mean = np.full(case.N, 1 / case.N, np.float32)
        run = partial(kernels.xent_gradients, **out, **given, weights=mean)
    else:
        run = partial(kernels.xent_forward, **out, **given)

    def results() -> dict[str, Array]:
        run()
        return {**out, "nll": out["nll"].mean(keepdims=True)}

    return Work(run, results)


def _adaptive(case: Adaptive, inputs: AdaptiveInputs) -> Work:
    def same() -> Callable[[], dict[str, Array]]:
        return _adaptive_step(case.certain(), inputs, inputs.weights)

    if case.chosen:
        # The other model, which is compared, is there for as long as that takes.
        return Work(_adaptive_step(case, inputs, adaptive_weights(case)), lambda: same()())
    step = same()
    return Work(step, step)


def _adaptive_step(
    case: Adaptive, inputs: AdaptiveInputs, weights: dict[str, Array]
) -> Callable[[], dict[str, Array]]:
    specs = heads.Adaptive.specs("head", case.V, case.H, case.cutoffs, case.div_value, bias=True)
    return _head_step(heads.Adaptive, specs, inputs, weights)


def _mixture(case: Mixture, inputs: MixtureInputs) -> Work:
    specs = heads.Mixture.specs("head", case.V, case.H, case.experts)
    step = _head_step(heads.Mixture, specs, inputs, inputs.weights)
    return Work(step, step)


def _head_step(
    kind: type[heads.Adaptive] | type[heads.Mixture],
    specs: list[Spec],
    inputs: AdaptiveInputs | MixtureInputs,
    weights: dict[str, Array],
) -> Callable[[], dict[str, Array]]:
    """Mean loss and its gradients, through a head."""
    parameters = Parameters(specs)
    parameters.load_state_dict({f"head.{name}": w for name, w in weights.items()})
    head, ctx = kind(parameters), Context(train=True)

    def step() -> dict[str, Array]:
        parameters.zero_grad()
        loss, backprop = head.loss(inputs.h, inputs.targets, ctx)
        assert backprop is not None
        found = {"nll": np.array([loss], np.float32), "dh": backprop()}
        # an unset gradient's memory holds leftovers; every cluster of a case has tokens
        return found | {f"d{n.removeprefix('head.')}": p.grad for n, p in parameters.items()}

    return step


class Trainee:
    """A model in training, as `pynlm train` holds it."""

    def __init__(self, case: Train) -> None:
        self.settings = case.settings
        self.model = RecurrentLM(case.config)
        optimiser = make_optimiser(self.settings.optimiser, self.model.parameters)
        self.bptt = BPTT(self.model, optimiser, self.settings.train)
        self.steps = 0

    def step(self, batch: Batch) -> float:
        """One training step; its loss."""
        self.steps += 1
        return self.bptt.step(batch, lr=self.settings.optimiser.lr, step=self.steps).nats


def _train(case: Train, inputs: TrainInputs) -> Work:
    trainee = Trainee(case)
    trainee.model.load_state_dict(inputs.weights)
    supply = cycle(inputs.batches)

    def results() -> dict[str, Array]:
        batch = inputs.batches[0]
        nll, *_ = trainee.model(batch.ids, batch.targets, None, Context(train=False))
        return {"nll": nll}

    return Work(lambda: trainee.step(next(supply)), results)


def _pick(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names}


def _empty(*shape: int) -> Array:
    return np.empty(shape, np.float32)
