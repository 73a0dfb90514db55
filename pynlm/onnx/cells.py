"""Recurrent layers of a model as ONNX nodes: the operator, or a loop over its equations.

ONNX's LSTM, GRU and RNN know few of the variants, and ONNX Runtime computes them in float32 only.
All else is a Scan whose body is the equations of `pynlm.reference`, with the product of the input
for all steps before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from pynlm.arrays import Array
from pynlm.layers import GRU, LSTM, RNN, Parameter, Recurrent
from pynlm.onnx.graph import Graph, whole
from pynlm.onnx.layers import beyond_onnx, to_onnx

Names = list[str]


def add_layer(g: Graph, layer: Recurrent, x: str, state: Sequence[str]) -> tuple[str, Names]:
    """Nodes that compute what `layer` computes when scoring.

    Parameters
    ----------
    g
        Where they go.
    x, state
        Names of the input [T, B, I] and of the state's arrays [B, H].

    Returns
    -------
    y, last
        Names of the output [T, B, H] and of the new state's arrays.
    """
    if g.dtype == np.float32 and beyond_onnx(layer.options) is None:
        return _operator(g, layer, x, state)
    return _scan(g, layer, x, state)


def _operator(g: Graph, layer: Recurrent, x: str, state: Sequence[str]) -> tuple[str, Names]:
    node = to_onnx(layer)
    prefix = layer.w_ih.name.removesuffix("w_ih")
    weights = {name: g.constant(a, prefix + name) for name, a in node.inputs.items()}
    starts = [g("Unsqueeze", s, whole(0)) for s in state]
    inputs = [x, weights["W"], weights["R"], weights["B"], "", *starts]
    if "P" in weights:
        inputs.append(weights["P"])
    y, *ends = g.several(node.op, 1 + len(starts), *inputs, **node.attributes)
    # Outputs have an axis for the direction.
    return g("Squeeze", y, whole(1)), [g("Squeeze", end, whole(0)) for end in ends]


def _scan(g: Graph, layer: Recurrent, x: str, state: Sequence[str]) -> tuple[str, Names]:
    step = next(step for cell, step in _STEPS.items() if isinstance(layer, cell))
    from_x = _normalised(g, layer, 0, g("MatMul", x, _transposed(g, layer.w_ih)))
    from_x = g("Add", from_x, layer.b)
    body = Graph(g.dtype, outer=g)
    names = [body.name("state") for _ in state]
    entering, y = body.name("input"), body.name("output")
    new = step(body, layer, entering, names)
    # The first state is the output, too, and a graph gives each value once.
    body.rename(new[0], y)
    widths = [*layer.state_sizes, layer.gates * layer.hidden_size]
    given = [
        helper.make_tensor_value_info(name, g.element, ["B", width])
        for name, width in zip([*names, entering], widths, strict=True)
    ]
    made = [
        helper.make_tensor_value_info(name, g.element, ["B", width])
        for name, width in zip([*new, y], [*layer.state_sizes, layer.output_size], strict=True)
    ]
    graph = helper.make_graph(body.nodes, body.name("body"), given, made)
    outputs = len(new) + 1
    *last, above = g.several("Scan", outputs, *state, from_x, body=graph, num_scan_inputs=1)
    return above, last


def _lstm(g: Graph, layer: Recurrent, from_x: str, state: Names) -> Names:
    h, c = state
    options, extra = layer.options, layer.extra
    a = g("Add", from_x, _normalised(g, layer, 1, g("MatMul", h, _transposed(g, layer.w_hh))))
    a_i, *a_f, a_g, a_o = g.several("Split", layer.gates, a, axis=1)
    p_i: Array | None = None
    p_f: Array | None = None
    p_o: Array | None = None
    if options.peephole:
        p_i, *rest, p_o = np.split(extra["peephole"].data, layer.gates - 1)
        p_f = rest[0] if rest else None
    i = g("Sigmoid", _see(g, a_i, p_i, c))
    f = g("Sub", g.number(1), i) if not a_f else g("Sigmoid", _see(g, a_f[0], p_f, c))
    new = g("Add", g("Mul", f, c), g("Mul", i, g("Tanh", a_g)))
    new = seen = _clip(g, new, options.cell_clip)
    if options.layer_norm:
        gain, bias = extra["ln_cell"].data
        seen = g("Add", g("Mul", _normalise(g, new), gain), bias)
        new = seen if options.layer_norm_state else new
    o = g("Sigmoid", _see(g, a_o, p_o, new))
    out = g("Mul", o, g("Tanh", seen))
    if options.projection:
        out = g("MatMul", out, _transposed(g, extra["w_hr"]))
    out = _clip(g, out, options.state_clip)
    return [_mix(g, options.zoneout, h, out), _mix(g, options.zoneout_cell, c, new)]


def _gru(g: Graph, layer: Recurrent, from_x: str, state: Names) -> Names:
    (h,) = state
    options, size = layer.options, layer.hidden_size
    x_r, x_z, x_n = g.several("Split", 3, from_x, axis=1)
    w_hh = layer.w_hh.data
    if options.reset_before:
        own = g("MatMul", h, _transposed(g, layer.w_hh, slice(0, 2 * size)))
        u_r, u_z = g.several("Split", 2, own, axis=1)
    else:
        own = _normalised(g, layer, 1, g("MatMul", h, _transposed(g, layer.w_hh)))
        u_r, u_z, u_n = g.several("Split", 3, own, axis=1)
    r, z = g("Sigmoid", g("Add", x_r, u_r)), g("Sigmoid", g("Add", x_z, u_z))
    if options.reset_before:
        before = g("Mul", r, h)
        inner = g("MatMul", before, _transposed(g, layer.w_hh, slice(2 * size, len(w_hh))))
    else:
        inner = g("Mul", r, g("Add", u_n, layer.extra["b_hn"]))
    n = g("Tanh", g("Add", x_n, inner))
    new = g("Add", g("Mul", g("Sub", g.number(1), z), n), g("Mul", z, h))
    return [_mix(g, options.zoneout, h, _clip(g, new, options.state_clip))]


def _rnn(g: Graph, layer: Recurrent, from_x: str, state: Names) -> Names:
    (h,) = state
    assert isinstance(layer, RNN)
    own = _normalised(g, layer, 1, g("MatMul", h, _transposed(g, layer.w_hh)))
    a, bound = g("Add", from_x, own), layer.options.state_clip
    if layer.nonlinearity == "relu" and bound:
        # One node: ONNX Runtime would fuse a Relu with a Clip, and fails to in float64.
        new = g("Clip", a, g.number(0), g.number(bound))
    else:
        new = _clip(g, g(layer.nonlinearity.title(), a), bound)
    return [_mix(g, layer.options.zoneout, h, new)]


_STEPS = {LSTM: _lstm, GRU: _gru, RNN: _rnn}


def _transposed(g: Graph, weight: Parameter, rows: slice = slice(None)) -> str:
    """The rows of a weight as a product with states from the left takes them."""
    part = "" if rows == slice(None) else f".{rows.start}-{rows.stop}"
    return g.constant(weight.data[rows].T, f"{weight.name}{part}.transposed")


def _normalised(g: Graph, layer: Recurrent, which: int, v: str) -> str:
    """What layer norm makes of the product with x (which = 0) or h (1); v itself without it."""
    if not layer.options.layer_norm:
        return v
    return g("Mul", _normalise(g, v), layer.extra["ln_gates"].data[which])


def _normalise(g: Graph, v: str) -> str:
    """(v - mean(v)) / sqrt(var(v) + 1e-5) over the last axis."""
    centred = g("Sub", v, g("ReduceMean", v, axes=[-1]))
    variance = g("ReduceMean", g("Mul", centred, centred), axes=[-1])
    return g("Div", centred, g("Sqrt", g("Add", variance, g.number(1e-5))))


def _see(g: Graph, a: str, p: Array | None, c: str) -> str:
    """a + p c."""
    return a if p is None else g("Add", a, g("Mul", c, p))


def _clip(g: Graph, x: str, bound: float) -> str:
    return g("Clip", x, g.number(-bound), g.number(bound)) if bound else x


def _mix(g: Graph, d: float, previous: str, new: str) -> str:
    """What zoneout makes of two states when scoring."""
    if not d:
        return new
    # A product times 1 - d would be fused into one whose factor is a float32 in any case.
    return g("Add", new, g("Mul", g("Sub", previous, new), g.number(d)))
