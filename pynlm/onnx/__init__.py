"""Language models as ONNX models, and recurrent operators of ONNX as pynlm layers and back.

`lm_to_onnx` makes an ONNX model of a `RecurrentLM`, with the package onnx. The rest needs NumPy
only.

`from_onnx` makes a layer of an LSTM, GRU or RNN node, `to_onnx` says what such a node needs to
compute what a layer computes, and `run` computes a layer on the operator's own inputs.
`weights_from_onnx` and `weights_to_onnx` convert the arrays alone.

None of these reads or writes files: the `onnx` package does that. A node of a model becomes a layer
by::

    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    places = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    # A node ends early, or has an empty name, where an input is left out.
    given = {place: name for place, name in zip(places, node.input) if name}
    weights = {place: arrays[given[place]] for place in "WRBP" if place in given}
    layer = pynlm.onnx.from_onnx(node.op_type, **weights, **attributes)

What else is in `given` goes to `run`: X, sequence_lens, initial_h and initial_c, as a rule inputs
of the model (a constant one is in `arrays`), and `layout`, if it is among the attributes.
"""

from pynlm.onnx.export import lm_to_onnx
from pynlm.onnx.layers import OnnxNode, from_onnx, run, to_onnx
from pynlm.onnx.weights import weights_from_onnx, weights_to_onnx

__all__ = [
    "OnnxNode",
    "from_onnx",
    "lm_to_onnx",
    "run",
    "to_onnx",
    "weights_from_onnx",
    "weights_to_onnx",
]
