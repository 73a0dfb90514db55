"""An ONNX graph that is put together node by node."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from pynlm.arrays import Array
from pynlm.layers import Parameter

# Old enough for any ONNX Runtime that runs on a Python we support.
OPSET, IR_VERSION = 14, 8


class Graph:
    """Nodes and constants, which get names of their own.

    Parameters
    ----------
    dtype
        Of the model's floating-point numbers.
    outer
        The graph around this one, if it is the body of a node: constants stand there.
    """

    def __init__(self, dtype: np.dtype[Any], outer: Graph | None = None) -> None:
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {} if outer is None else outer.constants
        self._numbers: count[int] = count() if outer is None else outer._numbers

    @property
    def element(self) -> int:
        """ONNX's number for the dtype."""
        return int(helper.np_dtype_to_tensor_dtype(self.dtype))

    def __call__(self, op: str, *inputs: str | Parameter | Array, **attributes: Any) -> str:
        """Add a node with one output, whose name is returned; arrays become constants."""
        return self.several(op, 1, *inputs, **attributes)[0]

    def several(
        self, op: str, outputs: int, *inputs: str | Parameter | Array, **attributes: Any
    ) -> list[str]:
        """Add a node with so many outputs, whose names are returned."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        given = [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, names, given, **attributes))
        return given

    def constant(self, value: Parameter | Array, name: str = "") -> str:
        """The name of a constant; a parameter keeps its own and is stored once."""
        if isinstance(value, Parameter):
            name, value = value.name, value.data
        name = name or self.name("constant")
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def number(self, value: float) -> Array:
        """A constant number of the model's dtype."""
        return np.asarray(value, self.dtype)

    def name(self, kind: str) -> str:
        """A name that no other value has."""
        return f"{kind}_{next(self._numbers)}"

    def rename(self, old: str, new: str) -> str:
        """A value under a name that the caller chooses."""
        self.nodes.append(helper.make_node("Identity", [old], [new]))
        return new


def whole(*values: int) -> Array:
    """Integers as ONNX's operators take shapes, axes and places."""
    return np.array(values, np.int64)
