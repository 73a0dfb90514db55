"""Recurrent layers in ONNX Runtime: forward only, one node a layer.

Weights are initialisers, so that a session packs them when it is made and not in a call. Input and
output are bound once: no call copies or allocates them (`run` does, and is 1 to 2 % slower).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bench.cases import Case, Recurrent
from bench.inputs import Inputs, RecurrentInputs
from bench.peers import ONNXRUNTIME
from bench.work import Work

Array = NDArray[Any]

# ONNX's order of the gates, by their places in ours: i,o,f,c from i,f,g,o and z,r,h from r,z,n.
_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
# Old enough for any ONNX Runtime that runs on a Python we support.
_OPSET, _IR = 14, 8

_threads = 1


def set_threads(n: int) -> None:
    """Let sessions made from now on use `n` threads, the caller's included."""
    global _threads
    _threads = n


def versions() -> dict[str, str]:
    """ONNX Runtime's version."""
    return {ONNXRUNTIME: ort.__version__}


def make(case: Case, inputs: Inputs) -> dict[str, Work]:
    """Plain recurrent layers without gradients."""
    if not isinstance(case, Recurrent) or case.train or case.variant:
        return {}
    assert isinstance(inputs, RecurrentInputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = _threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(model(case, inputs), options, providers=["CPUExecutionProvider"])
    y = np.empty((case.T, 1, case.B, case.H), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("x", inputs.x)
    if inputs.lengths is not None:
        binding.bind_cpu_input("lengths", inputs.lengths)
    bound = ort.OrtValue.ortvalue_from_numpy(y)
    binding.bind_ortvalue_output("y", bound)

    def run() -> None:
        session.run_with_iobinding(binding)

    def results() -> dict[str, Array]:
        run()
        return {"y": bound.numpy().reshape(case.T, case.B, case.H)}

    return {ONNXRUNTIME: Work(run, results)}


def model(case: Recurrent, inputs: RecurrentInputs) -> bytes:
    """An ONNX model of the layers, with their weights inside."""
    nodes: list[NodeProto] = []
    initialisers, below = [], "x"
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.T, case.B, case.I])]
    if inputs.lengths is not None:
        given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [case.B]))
    for layer, weights in enumerate(inputs.weights):
        if layer:
            # Outputs have an axis for the direction, inputs have none.
            axes = numpy_helper.from_array(np.array([1], np.int64), f"axes.{layer}")
            initialisers.append(axes)
            nodes.append(helper.make_node("Squeeze", [below, axes.name], [f"x.{layer}"]))
            below = f"x.{layer}"
        converted = {name: f"{name}.{layer}" for name in ("W", "R", "B")}
        initialisers += [
            numpy_helper.from_array(w, converted[name])
            for name, w in _converted(case.cell, weights).items()
        ]
        lengths = "" if inputs.lengths is None else "lengths"
        above = "y" if layer + 1 == case.layers else f"y.{layer}"
        # As torch does, the GRU applies the reset gate after the product.
        attributes: dict[str, Any] = {"hidden_size": case.H}
        if case.cell == "gru":
            attributes["linear_before_reset"] = 1
        entering = [below, *converted.values(), lengths]
        nodes.append(helper.make_node(case.cell.upper(), entering, [above], **attributes))
        below = above
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [case.T, 1, case.B, case.H])
    graph = helper.make_graph(nodes, case.cell, given, [y], initialisers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return bytes(made.SerializeToString())


def _converted(cell: str, weights: dict[str, Array]) -> dict[str, Array]:
    """W [1, G·H, I], R [1, G·H, H] and both biases B [1, 2·G·H] in ONNX's order of gates."""
    H = weights["w_hh"].shape[1]
    second = np.zeros_like(weights["b"])
    if "b_hn" in weights:
        second[-H:] = weights["b_hn"]

    def reordered(w: Array) -> Array:
        gates = w.reshape(len(_ORDER[cell]), H, *w.shape[1:])
        return gates[list(_ORDER[cell])].reshape(w.shape)

    biases = np.concatenate([reordered(weights["b"]), reordered(second)])
    return {
        "W": reordered(weights["w_ih"])[None],
        "R": reordered(weights["w_hh"])[None],
        "B": biases[None],
    }
