"""Find the only reader of a weight, and classify how it reads the weight.

A weight with exactly one known reader can be stored for that reader: as the packed operand of another operator, or as
rows of codes of which only the gathered ones are decoded (`tqs_passes.encode.nbits`, `tqs_passes.encode.gathered`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

import onnx

from tqs_passes.files.debug_notes import bare
from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs
from tqs_passes.weights import Weight


class Way(StrEnum):
    """How a weight is read, as far as this decides how fast a form runs.

    ``matrix``: B ``[K, N]`` of MatMul, or of a plain Gemm (alpha = beta = 1, A not transposed) · ``turned``: B
    ``[N, K]`` of a Gemm that is plain except for transB = 1 · ``table``: rows ``[V, D]`` gathered along axis 0 ·
    ``moved``: reached through nodes that move its values (Transpose …) · ``body``: inside If, Loop or Scan ·
    ``other``: all other cases.
    """

    MATRIX = "matrix"
    TURNED = "turned"
    TABLE = "table"
    MOVED = "moved"
    BODY = "body"
    OTHER = "other"


def sole_readers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Map each stored tensor with exactly one reading node input to that node, as it will be written.

    The node has one output, or is an LSTM. Tensors that bodies read, or that are graph outputs, are not in the map. The
    cost is linear in the graph.
    """
    stored = {t.name for t in graph.initializer}
    uses = Counter(name for g in iter_graphs(graph) for node in g.node for name in node.input)
    uses.update(output.name for g in iter_graphs(graph) for output in g.output)
    found: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        alone = [name for name in node.input if name in stored and uses[name] == 1]
        if alone and (len(node.output) == 1 or node.op_type == "LSTM"):
            found |= dict.fromkeys(alone, bare(node))
    return found


def readers_in(model: Model) -> dict[str, onnx.NodeProto]:
    """Return `sole_readers` of a model, by the names that the lifted model gives the stored tensors."""
    found = sole_readers(model.proto.graph)
    before = {now: old for old, now in model.stored.items()}
    return {before.get(name, name): node for name, node in found.items()}


def followers_in(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Map each tensor that a Conv or MatMul makes to the node that can be computed with it, as it will be written.

    That is the Relu behind a Conv, or the Add of a stored vector behind a MatMul of two axes, if nothing else reads the
    tensor. (Adds behind products of more axes stay: onnxruntime fuses them with what follows.) The cost is linear in
    the graph.
    """
    uses = Counter(name for g in iter_graphs(graph) for node in g.node for name in node.input)
    uses.update(output.name for g in iter_graphs(graph) for output in g.output)
    standard = [node for node in graph.node if node.domain in ("", "ai.onnx")]
    convolved = {node.output[0] for node in standard if node.op_type == "Conv"}
    vectors = {t.name for t in graph.initializer if len(t.dims) == 1}
    shaped = [v for v in (*graph.value_info, *graph.input) if v.type.tensor_type.HasField("shape")]
    more_axes = {v.name for v in shaped if len(v.type.tensor_type.shape.dim) > 2}
    multiplied = {node.output[0]: node.input[0] for node in standard if node.op_type == "MatMul"}
    found: dict[str, onnx.NodeProto] = {}
    for node in standard:
        if node.op_type == "Relu" and node.input[0] in convolved and uses[node.input[0]] == 1:
            found[node.input[0]] = bare(node)
        elif node.op_type == "Add":
            for x, b in (node.input, reversed(node.input)):
                deep = more_axes & {x, multiplied.get(x, "")}
                if x in multiplied and uses[x] == 1 and b in vectors and not deep:
                    found[x] = bare(node)
    return found


def multiplied(weight: Weight, readers: Mapping[str, onnx.NodeProto]) -> bool:
    """Return whether the only reader of a weight is a MatMul or plain Gemm that multiplies by the stored matrix."""
    return way_of(weight, readers) in (Way.MATRIX, Way.TURNED)


def convolved(weight: Weight, readers: Mapping[str, onnx.NodeProto]) -> bool:
    """Return whether the only reader of a weight is a Conv in the main graph that it is the filter of."""
    node = readers.get(weight.name)
    if node is None or node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    direct = len(weight.readers) == 1 and not weight.readers[0].in_body and not weight.readers[0].through
    return direct and weight.readers[0].input_index == 1 and weight.dtype == "float32"


def recurs(weight: Weight, readers: Mapping[str, onnx.NodeProto]) -> bool:
    """Return whether the only reader of a weight is an LSTM of one direction that it is the W or R of."""
    node = readers.get(weight.name)
    if node is None or not has_one_direction(node) or len(weight.readers) != 1 or weight.dtype != "float32":
        return False
    reader = weight.readers[0]
    matrix = reader.input_index in (1, 2) and len(weight.shape) == 3 and weight.shape[0] == 1
    return matrix and not reader.in_body and not reader.through


def has_one_direction(node: onnx.NodeProto) -> bool:
    """Return whether an LSTM reads one direction, in the usual layout, without lengths: what this form can replace."""
    values = {a.name: a for a in node.attribute}
    both = "direction" in values and values["direction"].s == b"bidirectional"
    turned = "layout" in values and values["layout"].i != 0
    lengths = len(node.input) > 4 and bool(node.input[4])
    return node.op_type == "LSTM" and node.domain in ("", "ai.onnx") and not (both or turned or lengths)


def way_of(weight: Weight, readers: Mapping[str, onnx.NodeProto]) -> Way:
    """Return how a weight is read, given the result of `sole_readers`."""
    if any(r.in_body for r in weight.readers):
        return Way.BODY
    if any(r.through for r in weight.readers):
        return Way.MOVED
    node = readers.get(weight.name)
    if node is None or len(weight.readers) != 1 or len(weight.shape) != 2 or weight.dtype != "float32":
        return Way.OTHER
    reader = weight.readers[0]
    at = reader.input_index
    if node.domain not in ("", "ai.onnx"):
        return Way.OTHER
    if node.op_type == "MatMul" and at == 1:
        return Way.MATRIX
    if node.op_type == "Gemm" and at == 1 and _plain(node):
        return Way.TURNED if _value(node, "transB", 0) else Way.MATRIX
    if node.op_type == "Gather" and at == 0 and len(node.input) == 2 and _value(node, "axis", 0) in (0, -2):
        return Way.TABLE
    return Way.OTHER


def _value(node: onnx.NodeProto, name: str, default: float) -> float:
    for a in node.attribute:
        if a.name == name:
            return float(a.i if a.type == onnx.AttributeProto.INT else a.f)
    return default


def _plain(node: onnx.NodeProto) -> bool:
    return not _value(node, "transA", 0) and _value(node, "alpha", 1) == 1 and _value(node, "beta", 1) == 1
