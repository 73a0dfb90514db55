"""The same computation in torch, as a second oracle."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from .arguments import arguments, lengths_of
from .cases import Case
from .checks import assert_close
from .gradcheck import MAPS, Named, random_upstream
from .tolerances import torch_tolerance


def check_against_torch(kernel: str, case: Case, dtype: Any, backend: str = "cpu") -> None:
    """Raise AssertionError unless outputs and gradients agree with torch's in the same dtype."""
    mapping = MAPS[kernel](case, backend, dtype)
    upstream = random_upstream(mapping, case.rng("torch"))
    got = mapping.forward(mapping.inputs)
    got |= {f"d{name}": g for name, g in mapping.vjp(mapping.inputs, upstream).items()}
    loops = "T" in case.dims and not case.is_plain and kernel != "dropout"
    want = (_looped if loops else _PEERS[kernel])(case, mapping.inputs, upstream)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        assert_close(
            got[name],
            value,
            torch_tolerance(dtype, case.name),
            what=f"{name} {np.dtype(dtype).name} against torch",
            kernel=kernel,
            case=case,
            backend=backend,
            terms=case.terms,
        )


def _tensors(inputs: Named) -> dict[str, Any]:
    torch = import_module("torch")
    return {name: torch.tensor(value, requires_grad=True) for name, value in inputs.items()}


def _finish(outputs: dict[str, Any], upstream: Named, tensors: dict[str, Any]) -> Named:
    """Outputs, and the gradients of <upstream, outputs>, as arrays."""
    torch = import_module("torch")
    total = sum((outputs[name] * torch.tensor(upstream[name])).sum() for name in outputs)
    gradients = torch.autograd.grad(total, list(tensors.values()))
    found = {name: value.detach().numpy() for name, value in outputs.items()}
    found |= {f"d{name}": g.numpy() for name, g in zip(tensors, gradients, strict=True)}
    return found


def _recurrent(case: Case, inputs: Named, upstream: Named) -> Named:
    torch = import_module("torch")
    T, I, H = (case.dims[k] for k in "TIH")
    dtype = torch.tensor(inputs["x"]).dtype
    if case.kernel == "lstm":
        module = torch.nn.LSTM(I, H, dtype=dtype)
    elif case.kernel == "gru":
        module = torch.nn.GRU(I, H, dtype=dtype)
    else:
        module = torch.nn.RNN(I, H, nonlinearity=case.options["nonlinearity"], dtype=dtype)

    # torch has two biases: ours is the first; of the second only the GRU's last part is used.
    places = {"w_ih": module.weight_ih_l0, "w_hh": module.weight_hh_l0, "b": module.bias_ih_l0}
    with torch.no_grad():
        module.bias_hh_l0.zero_()
        for name, parameter in places.items():
            parameter.copy_(torch.tensor(inputs[name]))
        if case.kernel == "gru":
            module.bias_hh_l0[2 * H :] = torch.tensor(inputs["b_hn"])

    states = [name for name in ("h0", "c0") if name in inputs]
    free = _tensors({name: inputs[name] for name in ("x", *states)})
    state = tuple(free[name][None] for name in states)
    lengths = lengths_of(case)
    x = free["x"]
    if lengths is not None:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths))
    y, last = module(x, state if len(state) == 2 else state[0])
    if lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    last = last if isinstance(last, tuple) else (last,)
    outputs = {"y": y} | {f"{n[0]}_last": v[0] for n, v in zip(states, last, strict=True)}

    extra = {"b_hn": module.bias_hh_l0} if case.kernel == "gru" else {}
    found = _finish(outputs, upstream, {**free, **places, **extra})
    if case.kernel == "gru":
        found["db_hn"] = found["db_hn"][2 * H :]
    return found


def _looped(case: Case, inputs: Named, upstream: Named) -> Named:
    """A variant step by step, as torch's users write it; no zoneout, whose numbers torch lacks."""
    torch = import_module("torch")
    F = torch.nn.functional
    given, options = _tensors(inputs), case.options
    mask = arguments(f"{case.kernel}_forward", case, inputs["x"].dtype).get("mask_h")
    limit, bound = options.get("clip_c", 0.0), options.get("clip_h", 0.0)
    peepholes = (
        iter(given["peephole"].chunk(2 if options.get("coupled") else 3))
        if ("peephole" in given)
        else iter((0, 0, 0))
    )
    p_i = next(peepholes)
    p_f = 0 if options.get("coupled") else next(peepholes)
    p_o = next(peepholes)

    def normal(v: Any, gain: Any, bias: Any = None) -> Any:
        return F.layer_norm(v, v.shape[-1:], gain, bias)

    def product(which: int, v: Any, w: Any) -> Any:
        found = F.linear(v, w)
        return normal(found, given["ln_gates"][which]) if "ln_gates" in given else found

    def lstm(x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        entering = h if mask is None else h * torch.tensor(mask)
        a = product(0, x, given["w_ih"]) + product(1, entering, given["w_hh"]) + given["b"]
        a_i, *a_f, a_g, a_o = a.chunk(3 if options.get("coupled") else 4, 1)
        i = torch.sigmoid(a_i + p_i * c)
        f = torch.sigmoid(a_f[0] + p_f * c) if a_f else 1 - i
        c = f * c + i * torch.tanh(a_g)
        c = c.clamp(-limit, limit) if limit else c
        seen = normal(c, *given["ln_cell"]) if "ln_cell" in given else c
        c = seen if options.get("norm_state") else c
        h = torch.sigmoid(a_o + p_o * c) * torch.tanh(seen)
        h = F.linear(h, given["w_hr"]) if "w_hr" in given else h
        return h, c

    def gru(x: Any, h: Any) -> Any:
        entering = h if mask is None else h * torch.tensor(mask)
        x_r, x_z, x_n = (product(0, x, given["w_ih"]) + given["b"]).chunk(3, 1)
        h_r, h_z, h_n = product(1, entering, given["w_hh"]).chunk(3, 1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        if "b_hn" in given:
            n = torch.tanh(x_n + r * (h_n + given["b_hn"]))
        else:
            n = torch.tanh(x_n + F.linear(r * entering, given["w_hh"].chunk(3)[2]))
        return (1 - z) * n + z * h

    def rnn(x: Any, h: Any) -> Any:
        entering = h if mask is None else h * torch.tensor(mask)
        a = product(0, x, given["w_ih"]) + product(1, entering, given["w_hh"]) + given["b"]
        return torch.tanh(a) if options["nonlinearity"] == "tanh" else torch.relu(a)

    h, c, steps = given["h0"], given.get("c0"), []
    for x in given["x"]:
        if c is not None:
            h, c = lstm(x, h, c)
        else:
            h = (gru if case.kernel == "gru" else rnn)(x, h)
        h = h.clamp(-bound, bound) if bound else h
        steps.append(h)
    outputs = {"y": torch.stack(steps), "h_last": h} | ({} if c is None else {"c_last": c})
    return _finish(outputs, upstream, given)


def _linear(case: Case, inputs: Named, upstream: Named) -> Named:
    torch = import_module("torch")
    given = _tensors(inputs)
    y = torch.nn.functional.linear(given["x"], given["w"], given.get("b"))
    return _finish({"y": y}, upstream, given)


def _xent(case: Case, inputs: Named, upstream: Named) -> Named:
    torch = import_module("torch")
    given = _tensors(inputs)
    dtype = inputs["h"].dtype
    targets = torch.tensor(arguments("xent_forward", case, dtype)["targets"].astype(np.int64))
    logits = torch.nn.functional.linear(given["h"], given["w"], given.get("b"))
    logits = logits / case.options.get("temperature", 1.0)
    smoothing = case.options.get("label_smoothing", 0.0)
    loss = torch.nn.functional.cross_entropy(
        logits, targets, reduction="none", label_smoothing=smoothing
    )
    if "z_loss" in case.options:
        loss = loss + case.options["z_loss"] * torch.logsumexp(logits, 1) ** 2
    return _finish({"loss": loss}, upstream, given)


def _embedding(case: Case, inputs: Named, upstream: Named) -> Named:
    torch = import_module("torch")
    given = _tensors(inputs)
    ids = torch.tensor(arguments("embedding_forward", case, np.float64)["ids"].astype(np.int64))
    return _finish({"y": torch.nn.functional.embedding(ids, given["w"])}, upstream, given)


_PEERS = {
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn": _recurrent,
    "linear": _linear,
    "xent": _xent,
    "embedding": _embedding,
}
