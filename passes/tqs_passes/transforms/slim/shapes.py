"""Infers the types of a model's values from its inputs and operators alone; what the file declares is not believed."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from google.protobuf.message import EncodeError

from tqs_passes.files.tensors import iter_graphs

#: Larger stored tensors are shown to the inference by their shape alone.
_MOST_BYTES = 1024


def inferred(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a model of the same graphs with the inferred types of their values; None if inference fails.

    Only the inputs of the main graph keep their declared sizes, which the runtime enforces. What a body declares about
    its inputs and outputs it does not enforce: the state of a Loop may grow. No stored tensor has more than 1 kB.
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
    _distinguish(light.graph.input)
    _, *inner_graphs = iter_graphs(light.graph)
    for inner in inner_graphs:
        del inner.value_info[:]
        _forget_shapes((*inner.input, *inner.output))
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except (onnx.shape_inference.InferenceError, EncodeError, ValueError, RuntimeError):
        return None


def _distinguish(inputs: Iterable[onnx.ValueInfoProto]) -> None:
    """Give every symbolic size a symbol of its own, and remove negative sizes, by which exporters mean any size.

    The runtime does not enforce that sizes of one symbol are equal. With these, equal symbols come from the same axis.
    """
    for index, value in enumerate(inputs):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                dim.dim_param = f"{index}.{axis}"
            elif dim.dim_value < 0:
                dim.ClearField("dim_value")


def _forget_shapes(values: Iterable[onnx.ValueInfoProto]) -> None:
    """Remove the declared shapes, also those of the elements of sequences and optionals; element types stay."""
    for value in values:
        kind = value.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = getattr(kind, str(kind.WhichOneof("value"))).elem_type
        if kind.HasField("tensor_type"):
            kind.tensor_type.ClearField("shape")
