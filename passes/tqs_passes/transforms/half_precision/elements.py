"""Infers the element type of every value of the main graph with ONNX's shape inference, without the stored values."""

from __future__ import annotations

import onnx

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_n_bytes

#: Smaller tensors are shapes and axes, whose values the inference reads.
_LEAST_BYTES = 1024


def element_types(model: Model) -> dict[str, int]:
    """Return the element type of each value of the main graph whose type is known.

    Big stored tensors are presented to the inference as graph inputs, so that their size does not matter.
    """
    graph = model.proto.graph
    stub = onnx.ModelProto(ir_version=model.proto.ir_version)
    stub.opset_import.extend(model.proto.opset_import)
    stub.functions.extend(model.proto.functions)
    stub.graph.name = "types"
    stub.graph.node.extend(graph.node)
    stub.graph.input.extend(graph.input)
    stub.graph.output.extend(graph.output)
    found = {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    known = {info.name for info in graph.input}
    for tensor in graph.initializer:
        small = tensor.data_type == onnx.TensorProto.STRING or tensor_n_bytes(tensor) < _LEAST_BYTES
        if small and tensor.data_location != onnx.TensorProto.EXTERNAL:
            stub.graph.initializer.append(tensor)
        elif tensor.name not in known:
            stub.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    try:
        inferred = onnx.shape_inference.infer_shapes(stub).graph
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return found  # the graph is inconsistent: undeclared types stay unknown
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        if info.type.HasField("tensor_type") and info.type.tensor_type.elem_type:
            found.setdefault(info.name, int(info.type.tensor_type.elem_type))
    return found
