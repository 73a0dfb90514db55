"""Agreement with the onnx package: all its cases of LSTM, GRU and RNN, and its own evaluator."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest

import pynlm.onnx
from pynlm.onnx import from_onnx, run
from pynlm.testing import assert_close
from pynlm.testing.tolerances import onnx_tolerance

with warnings.catch_warnings():
    # The cases of all operators are built, which warns of overflows and the like.
    warnings.simplefilter("ignore")
    import onnx
    from onnx import helper
    from onnx.backend.test.case.node import collect_testcases
    from onnx.reference import ReferenceEvaluator

    CASES = {
        case.name: case
        for case in collect_testcases(None)
        if {node.op_type for node in case.model.graph.node} & {"LSTM", "GRU", "RNN"}
    }

T, B, I, H = 5, 4, 3, 2
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def attributes_of(node: Any) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def compute(op: str, given: dict[str, Any], attributes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Outputs of a node by pynlm."""
    weights = {name: given.get(name) for name in "WRBP"}
    layer = from_onnx(op, **weights, **attributes)
    rest = {name: value for name, value in given.items() if name not in weights}
    found = run(layer, rest.pop("X"), layout=attributes.get("layout", 0), **rest)
    return dict(zip(("Y", "Y_h", "Y_c"), found, strict=False))


def test_cases_are_there() -> None:
    """At least those that there were when this was written."""
    operators = [case.model.graph.node[0].op_type for case in CASES.values()]
    assert all(operators.count(op) >= 6 for op in GATES)
    covered = {
        (node.op_type, attributes_of(node).get("direction", b"forward"))
        for case in CASES.values()
        for node in case.model.graph.node
    }
    assert covered == {(op, direction.encode()) for op in GATES for direction in DIRECTIONS}


@pytest.mark.parametrize("name", sorted(CASES))
def test_case(name: str) -> None:
    case = CASES[name]
    (node,) = case.model.graph.node
    assert case.data_sets
    for inputs, outputs in case.data_sets:
        given = dict(zip([n for n in node.input if n], inputs, strict=True))
        found = compute(node.op_type, given, attributes_of(node))
        for place, want in zip([n for n in node.output if n], outputs, strict=True):
            assert found[place].dtype == want.dtype
            assert_close(
                found[place], want, onnx_tolerance(want.dtype), what=place, case=name, terms=T
            )


def random_node(op: str, direction: str, dtype: str) -> dict[str, np.ndarray]:
    """All inputs, every element different: the package's cases have constant weights."""
    g, d, rng = GATES[op], DIRECTIONS[direction], np.random.default_rng(0)
    shapes = {
        "X": (T, B, I),
        "W": (d, g * H, I),
        "R": (d, g * H, H),
        "B": (d, 2 * g * H),
        "initial_h": (d, B, H),
    }
    if op == "LSTM":
        shapes |= {"initial_c": (d, B, H), "P": (d, 3 * H)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def evaluate(op: str, given: dict[str, np.ndarray], attributes: dict[str, Any]) -> list[np.ndarray]:
    """Outputs of a node by the onnx package, which has no code for sequence_lens."""
    order = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    names = [name if name in given else "" for name in order]
    while not names[-1]:
        names.pop()
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, names, outputs, hidden_size=H, **attributes)
    return list(ReferenceEvaluator(node).run(None, given))


# RNN's Relu is missing: the evaluator does not know it.
NODES = [
    ("LSTM", {}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"linear_before_reset": 0}),
    ("RNN", {}),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("op", "attributes"), NODES)
def test_agrees_with_the_evaluator(
    op: str, attributes: dict[str, Any], direction: str, dtype: str
) -> None:
    attributes = {**attributes, "direction": direction}
    given = random_node(op, direction, dtype)
    found = compute(op, given, attributes)
    for (place, got), want in zip(found.items(), evaluate(op, given, attributes), strict=True):
        assert_close(got, want, onnx_tolerance(dtype), what=f"{op} {place}", terms=T)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("op", "attributes"), NODES)
def test_ragged_rows_agree_with_the_evaluator(
    op: str, attributes: dict[str, Any], direction: str
) -> None:
    """Row by row, each as long as it is."""
    attributes = {**attributes, "direction": direction}
    given, lengths = random_node(op, direction, "float64"), np.array([3, 5, 1, 4], np.int32)
    found = compute(op, {**given, "sequence_lens": lengths}, attributes)
    for b, n in enumerate(lengths):
        row = {**given, "X": given["X"][:n, b : b + 1]}
        row |= {k: v[:, b : b + 1] for k, v in given.items() if k.startswith("initial")}
        Y, *ends = evaluate(op, row, attributes)
        assert_close(found["Y"][:n, :, b], Y[:, :, 0], onnx_tolerance("float64"), what="Y", terms=T)
        assert not found["Y"][n:, :, b].any()
        for place, want in zip(("Y_h", "Y_c"), ends, strict=False):
            assert_close(
                found[place][:, b], want[:, 0], onnx_tolerance("float64"), what=place, terms=T
            )


def test_the_recipe_of_the_documentation() -> None:
    """A node out of a file, as `pynlm.onnx` says."""
    given = random_node("LSTM", "reverse", "float32")
    arrays = [onnx.numpy_helper.from_array(given[name], name) for name in "WRB"]
    node = helper.make_node(
        "LSTM", ["X", "W", "R", "B"], ["Y", "Y_h"], hidden_size=H, direction="reverse"
    )
    x = helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, [T, B, I])
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * n)
        for name, n in (("Y", 4), ("Y_h", 3))
    ]
    model = helper.make_model(helper.make_graph([node], "g", [x], outputs, arrays))
    onnx.checker.check_model(model)

    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    (node,) = model.graph.node
    W, R, b = (tensors[name] for name in node.input[1:4])
    layer = from_onnx(node.op_type, W, R, b, **attributes_of(node))
    found = run(layer, given["X"])[:2]
    expected = ReferenceEvaluator(model).run(None, {"X": given["X"]})
    for got, want in zip(found, expected, strict=True):
        assert_close(got, want, onnx_tolerance("float32"), what="outputs", terms=T)


def example() -> str:
    """The code in the package's docstring."""
    assert pynlm.onnx.__doc__ is not None
    after = pynlm.onnx.__doc__.split("::\n\n")[1]
    return inspect.cleandoc("\n" + after.split("\n\n")[0])


@pytest.mark.parametrize(
    ("op", "left_out"), [("LSTM", ""), ("LSTM", "B"), ("LSTM", "P"), ("GRU", "B"), ("RNN", "B")]
)
def test_example_reads_nodes_that_leave_inputs_out(op: str, left_out: str) -> None:
    given = random_node(op, "forward", "float64")
    given.pop(left_out, None)
    order = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    names = [f"the_{name}" if name in given else "" for name in order]
    if left_out == "B" and op != "LSTM":
        names = names[:3]
    while not names[-1]:
        names.pop()
    node = helper.make_node(op, names, ["Y"], hidden_size=H)
    weights = [onnx.numpy_helper.from_array(given[n], f"the_{n}") for n in "WRBP" if n in given]
    graph = helper.make_graph([node], "g", [], [], weights)
    names_of = {"onnx": onnx, "pynlm": pynlm, "model": helper.make_model(graph), "node": node}
    exec(example(), names_of)
    want = from_onnx(op, **{n: given.get(n) for n in "WRBP"}, hidden_size=H)
    for mine, theirs in zip(run(names_of["layer"], given["X"]), run(want, given["X"]), strict=True):
        assert_close(mine, theirs, onnx_tolerance("float64"), what=op, terms=T)
