"""Variants of the recurrent cells in PyTorch, whose modules have none: loops over the steps.

The input's products are one call for all steps, and masks of all steps are drawn at once, as
careful users do it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.cases import CLIP_C, CLIP_H, GATES, Recurrent
from bench.inputs import RecurrentInputs
from bench.peers import TORCH
from bench.work import Work

Array = NDArray[Any]
Weights = dict[str, Tensor]
Forward = Callable[[Recurrent, Tensor, Weights], Tensor]

MODULES: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def variants(case: Recurrent, inputs: RecurrentInputs) -> dict[str, Work]:
    """The ways in which torch does a variant; weight drop has two."""
    if case.variant == "projection":
        return {TORCH: _work(case, inputs, _Projected(case))}
    forward = _OF_THEIR_OWN.get((case.cell, case.variant), loop)
    found = {TORCH: _work(case, inputs, forward)}
    if case.variant == "weight drop":
        found[f"{TORCH} (functional_call)"] = _work(case, inputs, _Module(case))
    return found


def _work(case: Recurrent, inputs: RecurrentInputs, forward: Forward) -> Work:
    x, dy = torch.tensor(inputs.x, requires_grad=True), torch.tensor(inputs.dy)
    weights = _weights(inputs)

    def train(case: Recurrent) -> Tensor:
        for tensor in (x, *weights.values()):
            tensor.grad = None
        y = forward(case, x, weights)
        y.backward(dy)
        return y

    def results() -> dict[str, Array]:
        found = {"y": train(case.certain()).detach().numpy(), "dx": _gradient(x)}
        found |= {f"d{name}.0": _gradient(w) for name, w in weights.items() if name != "b_hh"}
        if "b_hh" in weights:
            found["db_hn.0"] = _gradient(weights["b_hh"])[2 * case.H :]
        return found

    return Work(lambda: train(case), results)


def _weights(inputs: RecurrentInputs) -> Weights:
    """Ours, except that the bias inside the GRU's reset product is a part of torch's second."""
    (given,) = inputs.weights
    found = {name: torch.tensor(w) for name, w in given.items() if name != "b_hn"}
    if "b_hn" in given:
        found["b_hh"] = torch.zeros_like(found["b"])
        found["b_hh"][-len(given["b_hn"]) :] = torch.tensor(given["b_hn"])
    return {name: w.requires_grad_() for name, w in found.items()}


def loop(case: Recurrent, x: Tensor, weights: Weights) -> Tensor:
    """A layer step by step, with the case's variant."""
    w_hh, zeros = weights["w_hh"], x.new_zeros(case.B, case.H)
    b_hh, peephole = weights.get("b_hh"), weights.get("peephole")
    if case.variant == "weight drop":
        w_hh = F.dropout(w_hh, case.p)
    mask, clips = None, case.variant == "clipping"
    if case.variant == "recurrent dropout":
        mask = F.dropout(torch.ones_like(zeros), case.p)
    keeps_h, keeps_c = _keeps(case), _keeps(case)
    h = c = zeros
    ys = []
    for t, a in enumerate(F.linear(x, weights["w_ih"], weights["b"]).unbind()):
        u = F.linear(h if mask is None else h * mask, w_hh, b_hh)
        if case.cell == "lstm":
            i, f, g, o = (a + u).chunk(4, 1)
            if peephole is not None:
                p_i, p_f, p_o = peephole.chunk(3)
                i, f = i + p_i * c, f + p_f * c
            c_new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            if clips:
                c_new = c_new.clamp(-CLIP_C, CLIP_C)
            if peephole is not None:
                o = o + p_o * c_new
            h_new = torch.sigmoid(o) * torch.tanh(c_new)
            c = c_new if keeps_c is None else torch.where(keeps_c[t], c, c_new)
        elif case.cell == "gru":
            (a_r, a_z, a_n), (u_r, u_z, u_n) = a.chunk(3, 1), u.chunk(3, 1)
            r, z = torch.sigmoid(a_r + u_r), torch.sigmoid(a_z + u_z)
            n = torch.tanh(a_n + r * u_n)
            h_new = n + z * (h - n)
        else:
            h_new = torch.tanh(a + u)
        if clips:
            h_new = h_new.clamp(-CLIP_H[case.cell], CLIP_H[case.cell])
        h = h_new if keeps_h is None else torch.where(keeps_h[t], h, h_new)
        ys.append(h)
    return torch.stack(ys)


def _keeps(case: Recurrent) -> tuple[Tensor, ...] | None:
    """Which units keep their state, by step."""
    if case.variant != "zoneout":
        return None
    return (torch.rand(case.T, case.B, case.H) < case.p).unbind()


def layer_norm_lstm(case: Recurrent, x: Tensor, weights: Weights) -> Tensor:
    """Both products are normalised over all gates, and the cell state on its way out.

    Ba et al., arXiv:1607.06450, eq. 20-22, and haste's `LayerNormLSTM`. Of the state: what goes on
    to the next step is normalised, too, as in the `custom_lstms.py` of torch's benchmarks.
    """
    H, w_hh = case.H, weights["w_hh"]
    h = c = x.new_zeros(case.B, H)
    ys = []
    for a in _normed_products(case, x, weights):
        i, f, g, o = (a + F.layer_norm(F.linear(h, w_hh), (4 * H,), weights["ln_gates"][1])).chunk(
            4, 1
        )
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        normed = F.layer_norm(c, (H,), weights["ln_cell"][0], weights["ln_cell"][1])
        if case.variant == "layer norm of the state":
            c = normed
        h = torch.sigmoid(o) * torch.tanh(normed)
        ys.append(h)
    return torch.stack(ys)


def layer_norm_gru(case: Recurrent, x: Tensor, weights: Weights) -> Tensor:
    """Both products are normalised over all gates, as in haste's `LayerNormGRU`."""
    H, w_hh = case.H, weights["w_hh"]
    h = x.new_zeros(case.B, H)
    ys = []
    for a in _normed_products(case, x, weights):
        u = F.layer_norm(F.linear(h, w_hh), (3 * H,), weights["ln_gates"][1], weights["b_hh"])
        (a_r, a_z, a_n), (u_r, u_z, u_n) = a.chunk(3, 1), u.chunk(3, 1)
        r, z = torch.sigmoid(a_r + u_r), torch.sigmoid(a_z + u_z)
        n = torch.tanh(a_n + r * u_n)
        h = n + z * (h - n)
        ys.append(h)
    return torch.stack(ys)


def layer_norm_rnn(case: Recurrent, x: Tensor, weights: Weights) -> Tensor:
    """Both products are normalised, as those of the other cells."""
    w_hh, gain = weights["w_hh"], weights["ln_gates"][1]
    h = x.new_zeros(case.B, case.H)
    ys = []
    for a in _normed_products(case, x, weights):
        h = torch.tanh(a + F.layer_norm(F.linear(h, w_hh), (case.H,), gain))
        ys.append(h)
    return torch.stack(ys)


def _normed_products(case: Recurrent, x: Tensor, weights: Weights) -> tuple[Tensor, ...]:
    """The input's products by step."""
    a = F.linear(x, weights["w_ih"])
    return F.layer_norm(a, (case.gates * case.H,), weights["ln_gates"][0], weights["b"]).unbind()


def coupled_lstm(case: Recurrent, x: Tensor, weights: Weights) -> Tensor:
    """Gates i, g, o: what is not written is kept (Greff et al., arXiv:1503.04069, CIFG)."""
    h = c = x.new_zeros(case.B, case.H)
    ys = []
    for a in F.linear(x, weights["w_ih"], weights["b"]).unbind():
        i, g, o = (a + F.linear(h, weights["w_hh"])).chunk(3, 1)
        c = torch.lerp(c, torch.tanh(g), torch.sigmoid(i))
        h = torch.sigmoid(o) * torch.tanh(c)
        ys.append(h)
    return torch.stack(ys)


def reset_before_gru(case: Recurrent, x: Tensor, weights: Weights) -> Tensor:
    """The reset gate is applied to the state, not to its product (arXiv:1406.1078v3, eq. 8)."""
    H = case.H
    h = x.new_zeros(case.B, H)
    w_rz, w_n = weights["w_hh"].split((2 * H, H))
    ys = []
    for a in F.linear(x, weights["w_ih"], weights["b"]).unbind():
        a_rz, a_n = a.split((2 * H, H), 1)
        r, z = torch.sigmoid(a_rz + F.linear(h, w_rz)).chunk(2, 1)
        n = torch.tanh(a_n + F.linear(r * h, w_n))
        h = n + z * (h - n)
        ys.append(h)
    return torch.stack(ys)


# Variants whose steps have another form than those of `loop`.
_OF_THEIR_OWN: dict[tuple[str, str], Forward] = {
    ("lstm", "layer norm"): layer_norm_lstm,
    ("lstm", "layer norm of the state"): layer_norm_lstm,
    ("gru", "layer norm"): layer_norm_gru,
    ("rnn", "layer norm"): layer_norm_rnn,
    ("lstm", "coupled gates"): coupled_lstm,
    ("gru", "reset before"): reset_before_gru,
}


class _Module:
    """torch's module, called with dropped weights."""

    def __init__(self, case: Recurrent) -> None:
        self.module = MODULES[case.cell](case.I, case.H)
        self.zeros = torch.zeros(GATES[case.cell] * case.H)

    def __call__(self, case: Recurrent, x: Tensor, weights: Weights) -> Tensor:
        given = {
            "weight_ih_l0": weights["w_ih"],
            "weight_hh_l0": F.dropout(weights["w_hh"], case.p),
            "bias_ih_l0": weights["b"],
            "bias_hh_l0": weights.get("b_hh", self.zeros),
        }
        y: Tensor = functional_call(self.module, given, (x,))[0]
        return y


class _Projected:
    """torch's LSTM whose state goes back and out as w_hr h (Sak et al., arXiv:1402.1128)."""

    def __init__(self, case: Recurrent) -> None:
        self.module = nn.LSTM(case.I, case.H, proj_size=case.P)
        self.zeros = torch.zeros(4 * case.H)
        with warnings.catch_warnings():
            # Once in a process torch says that oneDNN has no such layer.
            warnings.simplefilter("ignore")
            self.module(torch.zeros(1, 1, case.I))

    def __call__(self, case: Recurrent, x: Tensor, weights: Weights) -> Tensor:
        given = {
            "weight_ih_l0": weights["w_ih"],
            "weight_hh_l0": weights["w_hh"],
            "weight_hr_l0": weights["w_hr"],
            "bias_ih_l0": weights["b"],
            "bias_hh_l0": self.zeros,
        }
        y: Tensor = functional_call(self.module, given, (x,))[0]
        return y


def _gradient(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad.numpy()
