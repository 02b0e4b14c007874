"""Build an ONNX graph node by node, with its constants and its weights.

Constants become `Constant` nodes, as PyTorch's first exporter writes them. Weights become initializers: first those
with their own name, then those of folded matrices and tables (`onnx::MatMul_7`), each group in the order in which they
are read. pangu_weather_6.onnx has the same layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Shape = Sequence[int]


class Nodes:
    """A graph under construction; every method that adds a node returns the name of its first output."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._named: list[onnx.TensorProto] = []
        self._folded: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: int | float | Shape) -> str:
        """Add a node with one output."""
        made = out or f"/{kind}_{len(self._nodes)}"
        node = helper.make_node(kind, inputs, [made], f"/{kind}_{len(self._nodes)}")
        node.attribute.extend(helper.make_attribute(k, v) for k, v in sorted(attributes.items()))
        self._nodes.append(node)
        return made

    def constant(self, value: NDArray[np.generic]) -> str:
        """Add a Constant node."""
        made = f"/Constant_{len(self._nodes)}"
        node = helper.make_node("Constant", [], [made], made, value=numpy_helper.from_array(value))
        self._nodes.append(node)
        return made

    def ints(self, *values: int) -> str:
        """Add a Constant node with int64 values."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """Add a Constant node with one float32 value."""
        return self.constant(np.array(value, np.float32))

    def weight(self, name: str, value: NDArray[np.float32]) -> str:
        """Add a weight under its own name."""
        self._named.append(numpy_helper.from_array(value, name))
        return name

    def folded(self, reader: str, value: NDArray[np.float32]) -> str:
        """Add a weight under the name that the exporter gives to a folded constant."""
        name = f"onnx::{reader}_{len(self._nodes)}"
        self._folded.append(numpy_helper.from_array(value, name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        """Add a Reshape."""
        return self.op("Reshape", x, self.ints(*shape))

    def transpose(self, x: str, *order: int) -> str:
        """Add a Transpose."""
        return self.op("Transpose", x, perm=order)

    def cut(self, x: str, axis: int, start: int, stop: int) -> str:
        """Add a Slice along one axis."""
        return self.op("Slice", x, self.ints(start), self.ints(stop), self.ints(axis))

    def pad(self, x: str, ends: Shape) -> str:
        """Add a Pad with zeros after the end of each axis; add nothing if there is nothing to pad."""
        if not any(ends):
            return x
        return self.op("Pad", x, self.ints(*([0] * len(ends)), *ends))

    def roll(self, x: str, shifts: Shape, sides: Shape) -> str:
        """Add Slices and Concats that roll `x` forward by `shifts[i]` along axis i, whose length is `sides[i]`."""
        for axis, (shift, side) in enumerate(zip(shifts, sides, strict=True)):
            if shift % side:
                split = side - shift % side
                x = self.op("Concat", self.cut(x, axis, split, side), self.cut(x, axis, 0, split), axis=axis)
        return x

    def model(
        self, inputs: dict[str, Shape], outputs: dict[str, Shape], *, opset: int, properties: dict[str, str]
    ) -> onnx.ModelProto:
        """Return the model; all inputs and outputs are float32."""

        def ports(shapes: dict[str, Shape]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in shapes.items()]

        weights = [*self._named, *self._folded]
        graph = helper.make_graph(self._nodes, "main", ports(inputs), ports(outputs), weights)
        imports = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="tqs_models")
        helper.set_model_props(model, properties)
        return model
