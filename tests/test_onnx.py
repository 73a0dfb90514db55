"""pynlm.onnx: weights and layers there and back, the operator's inputs and outputs, errors."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

import pynlm.onnx
from pynlm.layers import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    Context,
    Parameters,
    Recurrent,
    RecurrentOptions,
    Reversed,
)
from pynlm.onnx import from_onnx, run, to_onnx, weights_from_onnx, weights_to_onnx
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM

T, B, I, H = 5, 4, 3, 2
CELLS: dict[str, type[Recurrent]] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
# Rows of pynlm's gates in the operator's, by the letters of the specification.
THEIRS = {"LSTM": "iofc", "GRU": "zrh", "RNN": "i"}
OURS = {"LSTM": "ifco", "GRU": "rzh", "RNN": "i"}
PEEPHOLES = {"peephole": True}
LAYERS: list[tuple[str, RecurrentOptions, dict[str, str]]] = [
    ("LSTM", RecurrentOptions(), {}),
    ("LSTM", RecurrentOptions(**PEEPHOLES), {}),
    ("LSTM", RecurrentOptions(weight_drop=0.5, recurrent_dropout=0.5), {}),
    ("LSTM", RecurrentOptions(coupled_gates=True), {}),
    ("LSTM", RecurrentOptions(coupled_gates=True, **PEEPHOLES), {}),
    ("GRU", RecurrentOptions(), {}),
    ("GRU", RecurrentOptions(reset_before=True), {}),
    ("RNN", RecurrentOptions(), {}),
    ("RNN", RecurrentOptions(), {"nonlinearity": "relu"}),
]
DIRECTIONS = ["forward", "reverse", "bidirectional"]
directions = pytest.mark.parametrize("direction", DIRECTIONS)


def node_inputs(op: str, ways: int = 2, dtype: Any = np.float64, **only: int) -> dict[str, Any]:
    """W, R, B and for LSTM P of a node, all elements different."""
    g, rng = len(THEIRS[op]), np.random.default_rng(0)
    shapes = {"W": (g * H, I), "R": (g * H, H), "B": (2 * g * H,), "P": (3 * H,)}
    names = "WRBP" if op == "LSTM" else "WRB"
    return {name: rng.standard_normal((ways, *shapes[name])).astype(dtype) for name in names}


def make(
    op: str, options: RecurrentOptions, settings: dict[str, str], direction: str
) -> Recurrent | Reversed | Bidirectional:
    cell = CELLS[op]
    specs = [s for way in "ab" for s in cell.specs(way, I, H, options=options)]
    parameters = Parameters(specs, np.float64)
    rng = np.random.default_rng(0)
    for p in parameters.values():
        p.data[...] = rng.standard_normal(p.data.shape)
    a, b = (
        cell(parameters, way, options=options, index=k, **settings) for k, way in enumerate("ab")
    )
    return {"forward": a, "reverse": Reversed(b), "bidirectional": Bidirectional(a, b)}[direction]


def states(layer: Recurrent | Reversed | Bidirectional) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(2)
    return tuple(rng.standard_normal((B, H)) for _ in range(layer.states))


@pytest.mark.parametrize("module", [pynlm.onnx.layers, pynlm.onnx.weights, pynlm.onnx.export])
def test_examples(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


@pytest.mark.parametrize("op", CELLS)
@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("reset", [0, 1])
def test_gates_are_where_the_specification_says(op: str, ways: int, reset: int) -> None:
    a = node_inputs(op, ways)
    reset = reset if op == "GRU" else 0
    found = weights_from_onnx(op, **a, linear_before_reset=reset)
    assert len(found) == ways
    for d, ours in enumerate(found):
        for place, gate in enumerate(OURS[op]):
            there = THEIRS[op].index(gate)
            mine, theirs = slice(place * H, (place + 1) * H), slice(there * H, (there + 1) * H)
            assert_same_bits(ours["w_ih"][mine], a["W"][d, theirs], what=f"w_ih {gate}")
            assert_same_bits(ours["w_hh"][mine], a["R"][d, theirs], what=f"w_hh {gate}")
            b_w, b_r = a["B"][d].reshape(2, -1, H)[:, there]
            if gate == "h" and reset:
                assert_same_bits(ours["b"][mine], b_w, what="b h")
                assert_same_bits(ours["b_hn"], b_r, what="b_hn")
            else:
                assert_same_bits(ours["b"][mine], b_w + b_r, what=f"b {gate}")
        assert ("b_hn" in ours) == bool(reset)
        if op == "LSTM":
            i, o, f = a["P"][d].reshape(3, H)
            assert_same_bits(ours["peephole"], np.concatenate([i, f, o]), what="peephole")
        assert not any(np.shares_memory(x, y) for x in ours.values() for y in a.values())


def test_coupled_have_no_forget_gate() -> None:
    a = node_inputs("LSTM")
    for d, ours in enumerate(weights_from_onnx("LSTM", **a, input_forget=1)):
        i, o, _, c = a["W"][d].reshape(4, H, I)
        assert_same_bits(ours["w_ih"], np.concatenate([i, c, o]), what="w_ih")
        i, o, _ = a["P"][d].reshape(3, H)
        assert_same_bits(ours["peephole"], np.concatenate([i, o]), what="peephole")
        assert ours["w_hh"].shape == (3 * H, H) and ours["b"].shape == (3 * H,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("LSTM", {}),
        ("LSTM", {"input_forget": 1}),
        ("GRU", {}),
        ("GRU", {"linear_before_reset": 1}),
        ("RNN", {}),
    ],
)
def test_weights_there_and_back(op: str, attributes: dict[str, int], ways: int, dtype: str) -> None:
    a = node_inputs(op, ways, dtype)
    ours = weights_from_onnx(op, **a, **attributes)
    back = weights_to_onnx(op, ours)
    assert back.keys() == a.keys()
    again = weights_from_onnx(op, **back, **attributes)
    for one, two in zip(ours, again, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert one[name].dtype == np.dtype(dtype)
            assert_same_bits(two[name], one[name], what=name)
    g = len(THEIRS[op])
    effective = np.ones(g * H, bool)
    if attributes.get("input_forget"):
        effective[2 * H : 3 * H] = False
        assert not back["W"][:, ~effective].any() and not back["P"][:, 2 * H :].any()
    for name in "WR":
        assert_same_bits(back[name][:, effective], a[name][:, effective], what=name)
    halves, given = (x["B"].reshape(ways, 2, g * H)[..., effective] for x in (back, a))
    if attributes.get("linear_before_reset"):
        assert_same_bits(halves[:, :, 2 * H :], given[:, :, 2 * H :], what="B of h")
        halves, given = halves[:, :, : 2 * H], given[:, :, : 2 * H]
    assert_same_bits(halves[:, 0], given.sum(axis=1), what="B")
    assert not halves[:, 1].any()


def test_what_is_left_out_is_zero() -> None:
    a = node_inputs("LSTM")
    (plain, _) = weights_from_onnx("LSTM", a["W"], a["R"])
    assert not plain["b"].any() and "peephole" not in plain
    (_, other) = weights_from_onnx("LSTM", **a)
    back = weights_to_onnx("LSTM", [plain, other])
    assert_same_bits(back["P"][1], a["P"][1], what="P of the direction that has it")
    assert not back["P"][0].any()


@directions
@pytest.mark.parametrize(("op", "options", "settings"), LAYERS)
def test_layers_there_and_back(
    op: str, options: RecurrentOptions, settings: dict[str, str], direction: str
) -> None:
    layer = make(op, options, settings, direction)
    node = to_onnx(layer)
    assert node.op == op and node.attributes["direction"] == direction
    # As an ONNX file gives them: bytes, and read-only arrays.
    attributes = {
        name: value.encode() if isinstance(value, str) else value
        for name, value in node.attributes.items()
    }
    for x in node.inputs.values():
        x.flags.writeable = False
    again = from_onnx(node.op, **node.inputs, **attributes)
    assert type(again) is type(layer)
    x, ctx = np.random.default_rng(1).standard_normal((T, B, I)), Context(train=False)
    (y, end), _ = layer(x, states(layer), ctx, [3, 0, 5, 1])
    (y2, end2), _ = again(x, states(layer), ctx, [3, 0, 5, 1])
    for got, want in zip((y2, *end2), (y, *end), strict=True):
        assert_same_bits(got, want, what="outputs")
    twice = to_onnx(again)
    assert twice.attributes == node.attributes
    for name, want in node.inputs.items():
        assert_same_bits(twice.inputs[name], want, what=name)


@directions
@pytest.mark.parametrize("op", CELLS)
def test_run_is_the_layer_with_other_axes(op: str, direction: str) -> None:
    layer = make(op, RecurrentOptions(), {}, direction)
    ways, kinds = (2 if direction == "bidirectional" else 1), (2 if op == "LSTM" else 1)
    x, lengths = np.random.default_rng(1).standard_normal((T, B, I)), [3, 0, 5, 1]
    start = states(layer)
    (y, end), _ = layer(x, start, Context(train=False), lengths)
    # [kind, D, B, H]: h, and of an LSTM c
    packed = np.stack(start).reshape(ways, kinds, B, H).swapaxes(0, 1)
    given = dict(zip(("initial_h", "initial_c"), packed, strict=False))
    Y, *ends = run(layer, x, sequence_lens=lengths, **given)
    assert Y.shape == (T, ways, B, H) and len(ends) == kinds
    for way in range(ways):
        assert_same_bits(Y[:, way], y[..., way * H : (way + 1) * H], what="Y")
        for kind in range(kinds):
            assert_same_bits(ends[kind][way], end[way * kinds + kind], what="states")
    batchwise = {name: value.swapaxes(0, 1) for name, value in given.items()}
    Y1, *ends1 = run(layer, x.swapaxes(0, 1), sequence_lens=lengths, layout=1, **batchwise)
    assert_same_bits(Y1, Y.transpose(2, 0, 1, 3), what="Y batchwise")
    for one, other in zip(ends1, ends, strict=True):
        assert_same_bits(one, other.swapaxes(0, 1), what="states batchwise")
    from_zero, *_ = run(layer, x)
    explicit, *_ = run(layer, x, **{name: np.zeros_like(value) for name, value in given.items()})
    assert_same_bits(from_zero, explicit, what="Y from no state")


def test_bidirectional_sums_export_but_do_not_run_as_a_node() -> None:
    both = make("GRU", RecurrentOptions(), {}, "bidirectional")
    assert isinstance(both, Bidirectional)
    summed = Bidirectional(both.forward_layer, both.backward_layer, "sum")
    for name, want in to_onnx(both).inputs.items():
        assert_same_bits(to_onnx(summed).inputs[name], want, what=name)
    with pytest.raises(ValueError, match="run: layer must have merge='concat', got 'sum'"):
        run(summed, np.ones((T, B, I)))


def test_activations_that_are_known() -> None:
    a = node_inputs("RNN")
    layer = from_onnx("RNN", **a, direction="bidirectional", activations=[b"Relu", b"tanh"])
    assert isinstance(layer, Bidirectional)
    assert [layer.forward_layer.nonlinearity, layer.backward_layer.nonlinearity] == ["relu", "tanh"]
    one = node_inputs("RNN", 1)
    # The specification's default has two entries for one direction too.
    assert from_onnx("RNN", **one, activations=["Tanh", "Tanh"]).nonlinearity == "tanh"
    three = ["Sigmoid", "Tanh", "TANH"]
    from_onnx("LSTM", **node_inputs("LSTM"), direction="bidirectional", activations=three * 2)
    from_onnx("GRU", **node_inputs("GRU", 1), activations=three[:2], linear_before_reset=1)


@pytest.mark.parametrize(
    ("op", "attributes", "error", "message"),
    [
        ("LSTM", {"clip": 3.0}, NotImplementedError, "clip=3.0 is not implemented"),
        (
            "LSTM",
            {"activations": ["HardSigmoid", "Tanh", "Tanh"]},
            NotImplementedError,
            r"activations \['HardSigmoid', 'Tanh', 'Tanh'\] of LSTM are not implemented",
        ),
        ("RNN", {"activations": ["Sigmoid"]}, NotImplementedError, r"\['Sigmoid'\] of RNN are not"),
        ("GRU", {"activations": ["Relu", "Tanh"]}, NotImplementedError, "Relu.* of GRU are not"),
        ("RNN", {"activation_alpha": [0.1]}, NotImplementedError, "activation_alpha and"),
        ("RNN", {"activation_beta": [0.1]}, NotImplementedError, "activation_beta belong"),
        ("LSTM", {"activations": ["Tanh"]}, ValueError, r"activations must be 3 for LSTM, got \['"),
        (
            "LSTM",
            {"direction": "backward"},
            ValueError,
            "forward, reverse or bidirectional, got 'b",
        ),
        (
            "LSTM",
            {"direction": "bidirectional"},
            ValueError,
            r"W must have 2 direction\(s\) .*got 1",
        ),
        ("LSTM", {"hidden_size": 7}, ValueError, "hidden_size must be H=2 as in R, got 7"),
        ("LSTM", {"layout": 2}, ValueError, "layout must be 0 or 1, got 2"),
        ("LSTM", {"linear_before_reset": 1}, ValueError, "linear_before_reset is for GRU, got op"),
        ("GRU", {"input_forget": 1}, ValueError, "input_forget is for LSTM, got op 'GRU'"),
        (
            "GRU",
            {"linear_before_reset": 2},
            ValueError,
            "linear_before_reset must be 0 or 1, got 2",
        ),
        ("LSTM", {"W": np.ones((1, 8, 3, 3))}, ValueError, r"W must be float64 \[D=1, 4H=8, I\]"),
        ("LSTM", {"W": np.ones((2, 8, 3))}, ValueError, r"W must be float64 \[D=1, 4H=8, I\]"),
        ("LSTM", {"W": None}, TypeError, r"W must be float64 \[D=1, 4H=8, I\], got NoneType"),
        ("LSTM", {"R": np.ones((1, 8, 3))}, ValueError, r"R must be float64 \[D=1, 4H=8, H=2\]"),
        ("LSTM", {"B": np.ones((1, 8))}, ValueError, r"B must be float64 \[D=1, 8H=16\]"),
        ("LSTM", {"B": np.ones((1, 16), np.float32)}, TypeError, "B must be float64"),
        ("LSTM", {"R": np.ones((1, 8, 2), np.float16)}, TypeError, "R must be float32 or float64"),
        ("LSTM", {"P": np.ones((1, 4))}, ValueError, r"P must be float64 \[D=1, 3H=6\]"),
        ("GRU", {"P": np.ones((1, 6))}, ValueError, "P is for LSTM, GRU has no peepholes"),
        ("lstm", {}, ValueError, "op must be LSTM, GRU or RNN, got 'lstm'"),
    ],
)
def test_import_errors(
    op: str, attributes: dict[str, Any], error: type[Exception], message: str
) -> None:
    if op == "GRU":
        attributes = {"linear_before_reset": 1, **attributes}
    with pytest.raises(error, match=f"from_onnx: .*{message}"):
        from_onnx(op, **{**node_inputs(op if op in CELLS else "LSTM", 1), **attributes})


def test_three_directions() -> None:
    with pytest.raises(ValueError, match="W must have 1 or 2 directions, got 3"):
        weights_from_onnx("RNN", **node_inputs("RNN", 3))


@pytest.mark.parametrize(
    "option",
    [
        {"zoneout": 0.1},
        {"zoneout_cell": 0.1},
        {"cell_clip": 1.0},
        {"layer_norm": True},
        {"projection": 3},
    ],
    ids=lambda option: next(iter(option)),
)
@directions
def test_options_that_onnx_does_not_know(option: dict[str, float], direction: str) -> None:
    layer = make("LSTM", RecurrentOptions(**option), {}, direction)
    (name,) = option
    with pytest.raises(ValueError, match=f"to_onnx: ONNX has nothing like {name}="):
        to_onnx(layer)


def test_export_errors() -> None:
    with pytest.raises(TypeError, match="to_onnx: layer must be an LSTM, GRU or RNN, got list"):
        to_onnx([])  # type: ignore[arg-type]
    w = {"w_ih": np.ones((6, I)), "w_hh": np.ones((6, H)), "b": np.ones(6)}
    b_hn = {**w, "b_hn": np.ones(H)}
    four = {"w_ih": np.ones((8, I)), "w_hh": np.ones((8, H)), "b": np.ones(8)}
    for op, weights, error, message in (
        ("gru", [w], ValueError, "op must be LSTM, GRU or RNN, got 'gru'"),
        ("GRU", [], ValueError, "weights must be of 1 or 2 directions, got 0"),
        ("GRU", [w, w, w], ValueError, "weights must be of 1 or 2 directions, got 3"),
        (
            "GRU",
            [{"b": w["b"]}],
            ValueError,
            "GRU has the weights w_ih, w_hh, b, perhaps b_hn, got",
        ),
        ("RNN", [b_hn], ValueError, "RNN has the weights w_ih, w_hh, b, got w_ih, w_hh, b, b_hn"),
        ("GRU", [{**w, "b": np.ones(7)}], ValueError, r"b must be float64 \[3H=6\], got .*\[7\]"),
        ("GRU", [{**w, "b": [1.0] * 6}], TypeError, r"b must be float64 \[3H=6\], got list"),
        ("GRU", [w, b_hn], ValueError, "both directions or none must have b_hn"),
        ("LSTM", [w, four], ValueError, "both directions or none must have coupled gates"),
        ("LSTM", [{**w, "peephole": np.ones(6)}], ValueError, r"peephole must be .* \[2H=4\]"),
    ):
        with pytest.raises(error, match=f"weights_to_onnx: .*{message}"):
            weights_to_onnx(op, weights)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layout": 2}, ValueError, "layout must be 0 or 1, got 2"),
        ({"X": np.ones((T, B))}, ValueError, r"X must have 3 dimensions, got \[5, 4\]"),
        (
            {"initial_h": np.ones((1, 7, H))},
            ValueError,
            r"initial_h must be \[D=1, B=4, H=2\], got",
        ),
        ({"initial_c": np.ones((1, B, H))}, ValueError, "initial_c is for LSTM, got one for GRU a"),
        (
            {"layout": 1, "X": np.ones((B, T, I)), "initial_h": np.ones((1, B, H))},
            ValueError,
            r"initial_h must be \[B=4, D=1, H=2\], got \[1, 4, 2\]",
        ),
    ],
)
def test_run_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    layer = make("GRU", RecurrentOptions(), {}, "forward")
    with pytest.raises(error, match=f"run: {message}"):
        run(layer, **{"X": np.ones((T, B, I)), **change})


def test_imported_layers_train() -> None:
    layer = from_onnx("LSTM", **node_inputs("LSTM"), direction="bidirectional")
    x = np.random.default_rng(1).standard_normal((T, B, I))
    (y, _), backprop = layer(x, layer.initial_state(B), Context(train=True))
    assert backprop is not None and backprop(y).shape == x.shape
    assert isinstance(layer, Bidirectional)
    assert layer.forward_layer.w_ih.state == layer.backward_layer.w_ih.state == "dense"
    (scored, _), _ = layer(x, layer.initial_state(B), Context(train=False))
    assert_close(scored, y, CLOSED_FORM, what="y")


@pytest.mark.parametrize("word", ["Relu", b"Relu"])
def test_activations_are_a_list(word: str | bytes) -> None:
    message = "from_onnx: activations must be names in a list, got (str 'Relu'|bytes) alone"
    with pytest.raises(TypeError, match=message):
        from_onnx("RNN", **node_inputs("RNN", 1), activations=word)  # type: ignore[arg-type]
