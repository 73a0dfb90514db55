"""Nodes of ONNX's recurrent operators as layers, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from pynlm.arrays import Array, describe
from pynlm.layers import (
    GRU,
    LSTM,
    RNN,
    SCORING,
    Bidirectional,
    Context,
    Parameters,
    Recurrent,
    RecurrentOptions,
    Reversed,
)
from pynlm.layers.convert import as_exact_floats
from pynlm.onnx.weights import weights_from_onnx, weights_to_onnx

Layer = Recurrent | Reversed | Bidirectional

_CELLS: dict[str, type[Recurrent]] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
_DIRECTIONS: dict[str, tuple[str, ...]] = {
    "forward": ("forward",),
    "reverse": ("reverse",),
    "bidirectional": ("forward", "reverse"),
}
_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}
# Options that a node's attributes and inputs say, and what scoring does not know of.
_EXPORTED = {"recurrent_dropout", "weight_drop", "peephole", "coupled_gates", "reset_before"}


class OnnxNode(NamedTuple):
    """What an ONNX node needs: `from_onnx(node.op, **node.inputs, **node.attributes)` reads it.

    Attributes
    ----------
    op
        "LSTM", "GRU" or "RNN".
    inputs
        Arrays of the inputs W, R, B and (with peepholes) P, by these names.
    attributes
        As `onnx.helper.make_node` takes them.
    """

    op: str
    inputs: dict[str, Array]
    attributes: dict[str, Any]


def from_onnx(
    op: str,
    W: Any,
    R: Any,
    B: Any = None,
    P: Any = None,
    *,
    direction: str | bytes = "forward",
    hidden_size: int | None = None,
    activations: Iterable[str | bytes] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    input_forget: int = 0,
    linear_before_reset: int = 0,
    layout: int = 0,
) -> Layer:
    """The layer that computes what an ONNX LSTM, GRU or RNN node computes.

    Parameters
    ----------
    op, W, R, B, P
        As for `weights_from_onnx`. The weights are copied; their dtype becomes the layer's.
    direction, hidden_size, activations, ... , layout
        The operator's attributes. `layout` is about X, Y and the states only: `run` takes it.

    Returns
    -------
    layer
        "forward": LSTM, GRU or RNN. "reverse": Reversed. "bidirectional": Bidirectional, its two
        outputs side by side in y [T, B, 2H], where the operator's Y is [T, 2, B, H]. `run` gives
        the latter.

    Raises
    ------
    NotImplementedError
        What the operator can do and pynlm cannot: activations other than the default (and Relu of
        RNN), `clip` (ONNX clips what enters the activations; `cell_clip` is another thing), and
        so on, by name.
    TypeError, ValueError
        Arrays or attributes that the operator does not have either.

    Examples
    --------
    >>> W, R = np.full((1, 12, 2), 0.1, np.float32), np.full((1, 12, 3), 0.1, np.float32)
    >>> layer = from_onnx("LSTM", W, R, hidden_size=3)
    >>> Y, Y_h, Y_c = run(layer, np.array([[[1, 2], [3, 4], [5, 6]]], np.float32))
    >>> Y_h[0, :, 0].round(3)
    array([0.095, 0.256, 0.403], dtype=float32)
    """
    func = "from_onnx"
    ways = _DIRECTIONS.get(_text(direction))
    if ways is None:
        raise ValueError(
            f"{func}: direction must be forward, reverse or bidirectional, got {direction!r}"
        )
    each = weights_from_onnx(
        op, W, R, B, P, linear_before_reset=linear_before_reset, input_forget=input_forget
    )
    if len(each) != len(ways):
        raise ValueError(
            f"{func}: W must have {len(ways)} direction(s) [D, G*H, I] for direction "
            f"{_text(direction)}, got {len(each)}"
        )
    size, input_size = each[0]["w_hh"].shape[1], each[0]["w_ih"].shape[1]
    if hidden_size not in (None, size):
        raise ValueError(f"{func}: hidden_size must be H={size} as in R, got {hidden_size}")
    if layout not in (0, 1):
        raise ValueError(f"{func}: layout must be 0 or 1, got {layout!r}")
    if clip is not None:
        raise NotImplementedError(f"{func}: clip={clip} is not implemented")
    extra = _settings(op, activations, len(ways))
    if len(activation_alpha) or len(activation_beta):
        raise NotImplementedError(
            f"{func}: activation_alpha and activation_beta belong to activations that are not "
            "implemented"
        )
    options = RecurrentOptions(
        peephole=P is not None,
        coupled_gates=bool(input_forget),
        reset_before=op == "GRU" and not linear_before_reset,
    )
    cell = _CELLS[op]
    specs = [s for way in ways for s in cell.specs(way, input_size, size, options=options)]
    parameters = Parameters(specs, each[0]["w_ih"].dtype)
    parameters.load_state_dict(
        {f"{way}.{name}": x for way, one in zip(ways, each, strict=True) for name, x in one.items()}
    )
    layers = [
        cell(parameters, way, options=options, index=index, **settings)
        for index, (way, settings) in enumerate(zip(ways, extra, strict=True))
    ]
    if len(layers) == 2:
        return Bidirectional(layers[0], layers[1])
    return layers[0] if ways == ("forward",) else Reversed(layers[0])


def to_onnx(layer: Layer) -> OnnxNode:
    """What an ONNX node needs to compute what `layer` computes when scoring.

    Parameters
    ----------
    layer
        LSTM, GRU or RNN, alone, Reversed or in a Bidirectional (however that merges its outputs:
        the operator's Y [T, 2, B, H] holds them apart). Dropout of states and weights is left out,
        as in scoring.

    Returns
    -------
    OnnxNode
        Copies of the weights, and the attributes.

    Raises
    ------
    TypeError
        Another layer.
    ValueError
        An option that the operator does not have, by name.

    Examples
    --------
    >>> layer = GRU(Parameters(GRU.specs("gru", input_size=3, hidden_size=5)), "gru")
    >>> node = to_onnx(layer)
    >>> node.op, node.inputs["W"].shape, node.attributes["linear_before_reset"]
    ('GRU', (1, 15, 3), 1)
    """
    func = "to_onnx"
    if isinstance(layer, Bidirectional):
        direction, layers = "bidirectional", [layer.forward_layer, layer.backward_layer]
    elif isinstance(layer, Reversed):
        direction, layers = "reverse", [layer.layer]
    else:
        direction, layers = "forward", [layer]
    op = next((op for op, cell in _CELLS.items() if type(layers[0]) is cell), None)
    if op is None:
        raise TypeError(f"{func}: layer must be an LSTM, GRU or RNN, got {type(layer).__name__}")
    for one in layers:
        name = beyond_onnx(one.options)
        if name is not None:
            value = getattr(one.options, name)
            raise ValueError(f"{func}: ONNX has nothing like {name}={value} of {one.name}")
    weights = [_weights(one) for one in layers]
    inputs = weights_to_onnx(op, weights)
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": layers[0].hidden_size}
    if op == "GRU":
        attributes["linear_before_reset"] = int("b_hn" in weights[0])
    if layers[0].options.coupled_gates:
        attributes["input_forget"] = 1
    if op == "RNN":
        attributes["activations"] = [one.nonlinearity.title() for one in layers]  # type: ignore[attr-defined]
    return OnnxNode(op, inputs, attributes)


def beyond_onnx(options: RecurrentOptions) -> str | None:
    """The first option that is set and that ONNX's recurrent operators do not have."""
    plain = RecurrentOptions()
    for field in fields(options):
        name = field.name
        if name not in _EXPORTED and getattr(options, name) != getattr(plain, name):
            return name
    return None


def run(
    layer: Layer,
    X: Any,
    *,
    sequence_lens: object = None,
    initial_h: Any = None,
    initial_c: Any = None,
    layout: int = 0,
    ctx: Context = SCORING,
) -> tuple[Array, ...]:
    """Run a layer on inputs of the ONNX operator, giving its outputs.

    Parameters
    ----------
    layer
        LSTM, GRU or RNN, alone, Reversed or in a Bidirectional with merge="concat".
    X
        [T, B, I] of the layer's dtype.
    sequence_lens
        Integers [B] in [0, T]; None: all T.
    initial_h, initial_c
        [D, B, H], with D directions; None: 0. initial_c is for LSTM.
    layout
        1: X is [B, T, I], the states are [B, D, H] and Y is [B, T, D, H].
    ctx
        As of a layer's call, but no backprop is returned.

    Returns
    -------
    Y, Y_h, and for LSTM Y_c
        Y [T, D, B, H], zero beyond a row's length; Y_h and Y_c [D, B, H], after the last step that
        each direction takes.

    Raises
    ------
    TypeError, ValueError
        Wrong kinds or shapes.

    Examples
    --------
    >>> layer = RNN(Parameters(RNN.specs("rnn", input_size=3, hidden_size=5)), "rnn")
    >>> Y, Y_h = run(layer, np.ones((2, 7, 3), np.float32), layout=1)
    >>> Y.shape, Y_h.shape
    ((2, 7, 1, 5), (2, 1, 5))
    """
    func = "run"
    if layout not in (0, 1):
        raise ValueError(f"{func}: layout must be 0 or 1, got {layout!r}")
    if isinstance(layer, Bidirectional) and layer.merge != "concat":
        raise ValueError(f"{func}: layer must have merge='concat', got {layer.merge!r}")
    x = as_exact_floats(X, layer.dtype, func=func, name="X")
    if x.ndim != 3:
        raise ValueError(f"{func}: X must have 3 dimensions, got {list(x.shape)}")
    if layout == 1:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
    time, batch, _ = x.shape
    ways = 2 if isinstance(layer, Bidirectional) else 1
    kinds = layer.states // ways
    state = list(layer.initial_state(batch))
    for kind, (name, given) in enumerate((("initial_h", initial_h), ("initial_c", initial_c))):
        if given is None:
            continue
        if kind >= kinds:
            raise ValueError(f"{func}: {name} is for LSTM, got one for {layer.name}")
        start = as_exact_floats(given, layer.dtype, func=func, name=name)
        start = start.swapaxes(0, 1) if layout == 1 and start.ndim == 3 else start
        width = state[kind].shape[1]
        if start.shape != (ways, batch, width):
            want = f"[D={ways}, B={batch}, H={width}]"
            if layout == 1:
                want = f"[B={batch}, D={ways}, H={width}]"
            raise ValueError(f"{func}: {name} must be {want}, got {list(np.shape(given))}")
        for way in range(ways):
            state[way * kinds + kind] = start[way]
    (y, last), _ = layer(x, state, ctx, sequence_lens)
    y = y.reshape(time, batch, ways, y.shape[2] // ways).transpose(0, 2, 1, 3)
    ends = [np.stack(last[kind::kinds]) for kind in range(kinds)]
    if layout == 1:
        y, ends = y.transpose(2, 0, 1, 3), [end.swapaxes(0, 1) for end in ends]
    return tuple(np.ascontiguousarray(a) for a in (y, *ends))


def _text(value: str | bytes) -> str:
    """Attributes come out of ONNX files as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _settings(
    op: str, activations: Iterable[str | bytes] | None, ways: int
) -> list[dict[str, str]]:
    """Arguments of the layers, one a direction, that the activations stand for."""
    if activations is None:
        return [{} for _ in range(ways)]
    if isinstance(activations, (str, bytes)):  # which would be taken letter by letter
        raise TypeError(
            f"from_onnx: activations must be names in a list, got {describe(activations)} alone"
        )
    names = [_text(name) for name in activations]
    each = len(_ACTIVATIONS.get(op, ("",)))
    # RNN's default has two entries whatever the direction, and files repeat it.
    if op == "RNN" and len(names) == 2:
        names = names[:ways]
    if len(names) != ways * each:
        raise ValueError(f"from_onnx: activations must be {ways * each} for {op}, got {names}")
    lower = [name.lower() for name in names]
    if op == "RNN" and set(lower) <= {"tanh", "relu"}:
        return [{"nonlinearity": name} for name in lower]
    if lower != list(_ACTIVATIONS.get(op, ())) * ways:
        raise NotImplementedError(f"from_onnx: activations {names} of {op} are not implemented")
    return [{} for _ in range(ways)]


def _weights(layer: Recurrent) -> dict[str, Array]:
    found = {"w_ih": layer.w_ih, "w_hh": layer.w_hh, "b": layer.b, **layer.extra}
    return {name: parameter.data for name, parameter in found.items()}
