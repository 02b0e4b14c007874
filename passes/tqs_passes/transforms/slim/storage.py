"""Stores small tensors in the fewest bytes: as initializers rather than Constant nodes, each in its shortest form.

Before → after ::

    Constant(value = int64 [1]) ─▶ c      45 bytes        c, an initializer with int64_data      14 bytes
    raw_data of 8 bytes an integer                        int64_data of 1 byte a small integer
    Gemm(alpha = 1.0, transB = 1)                         Gemm(transB = 1): 1.0 is the default

Names inside attributes say nothing and go.
The values are unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
from onnx import defs, numpy_helper
from onnx.external_data_helper import uses_external_data

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs, shortest, tensor_array
from tqs_passes.graph.names import opset_of
from tqs_passes.graph_pass import PassResult
from tqs_passes.transforms.slim.scopes import editable, is_standard

#: Larger tensors stay as they are stored.
_MOST_BYTES = 1 << 16
_LEAST_IR = 4
_INTEGERS = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL})
_ATTRIBUTES = {"value_int", "value_ints", "value_float", "value_floats"}


@dataclass(frozen=True, slots=True)
class StoreCompactly:
    """The pass (see the module docstring).

    Parameters
    ----------
    weights : frozenset of str
        Initializers to leave alone.
    """

    weights: frozenset[str]

    name: ClassVar[str] = "store-compactly"

    def apply(self, model: Model) -> PassResult:
        """Return the model with its small tensors in fewer bytes, or the model itself if none is saved."""
        proto = editable(model.proto)
        changed: list[str] = []
        if proto.ir_version >= _LEAST_IR:
            for graph in iter_graphs(proto.graph):
                _constants_to_initializers(graph, changed)
        opset = opset_of(proto)
        for graph in iter_graphs(proto.graph):
            for node in graph.node:
                _drop_defaults(node, opset, changed)
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.TENSOR:
                        attribute.t.ClearField("name")
            for tensor in _small(graph, model.stored_names(self.weights)):
                smaller = shortest(tensor_array(tensor, model.folder), tensor.name)
                if smaller.ByteSize() < tensor.ByteSize():
                    changed.append(tensor.name)
                    tensor.CopyFrom(smaller)
        saved = proto.ByteSize() < model.proto.ByteSize()
        return PassResult(replace(model, proto=proto), tuple(changed)) if saved else PassResult(model)


def _small(graph: onnx.GraphProto, weights: frozenset[str]) -> Iterator[onnx.TensorProto]:
    """Yield the stored tensors and those in attributes that may be stored in another form."""
    tensors = [t for t in graph.initializer if t.name not in weights]
    tensors += [a.t for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.TENSOR]
    for tensor in tensors:
        if (
            tensor.data_type in _INTEGERS
            and not uses_external_data(tensor)
            and tensor.ByteSize() <= _MOST_BYTES
        ):
            yield tensor


def _constants_to_initializers(graph: onnx.GraphProto, changed: list[str]) -> None:
    gone: list[int] = []
    returned = {value.name for value in graph.output}
    for index, node in enumerate(graph.node):
        tensor = constant_of(node)
        if tensor is None or node.output[0] in returned:
            continue
        stored = graph.initializer.add()
        stored.CopyFrom(tensor)
        stored.name = node.output[0]
        changed.append(stored.name)
        gone.append(index)
    for index in reversed(gone):
        del graph.node[index]


def constant_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the numeric tensor of a Constant node; None for any other node or value."""
    if not is_standard(node) or node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value" and attribute.t.data_type != onnx.TensorProto.STRING:
        tensor: onnx.TensorProto = attribute.t
        return tensor
    if attribute.name in _ATTRIBUTES:
        kind = np.float32 if "float" in attribute.name else np.int64
        return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), kind))
    return None


def _drop_defaults(node: onnx.NodeProto, opset: int, changed: list[str]) -> None:
    """Remove the attributes that equal the operator's default."""
    if not is_standard(node):
        return
    try:
        known = defs.get_schema(node.op_type, opset, "").attributes
    except defs.SchemaError:
        return
    for index in reversed(range(len(node.attribute))):
        attribute = node.attribute[index]
        default = known[attribute.name].default_value if attribute.name in known else None
        if default is None or default.type == onnx.AttributeProto.UNDEFINED or attribute.type != default.type:
            continue
        if onnx.helper.get_attribute_value(attribute) == onnx.helper.get_attribute_value(default):
            changed.extend(node.output[:1])
            del node.attribute[index]
