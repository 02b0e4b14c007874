"""Infers the types of a model's values from its inputs and operators alone; what the file declares is not believed."""

from __future__ import annotations

import onnx
from google.protobuf.message import EncodeError

from tqs_passes.files.tensors import iter_graphs

#: Larger stored tensors are shown to the inference by their shape alone.
_MOST_BYTES = 1024


def inferred(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a model of the same graphs with the inferred types of their values; None if inference fails.

    It holds no stored tensor of more than 1 kB.
    """
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    graph = proto.graph
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.output)
    given = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.ByteSize() <= _MOST_BYTES and not tensor.external_data:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(kind)
    for sparse in graph.sparse_initializer:
        light.graph.sparse_initializer.append(sparse)
    for inner in iter_graphs(light.graph):
        del inner.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except (onnx.shape_inference.InferenceError, EncodeError, ValueError, RuntimeError):
        return None
