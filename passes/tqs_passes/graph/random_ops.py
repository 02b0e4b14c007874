"""List operators that draw random numbers: two rollouts through such an operator cannot be compared."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from tqs_passes.files.tensors import iter_graphs, iter_nodes

#: Operators of ONNX that draw random numbers.
RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)


def random_operators(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Return ``operator 'node name'`` of each node in the graph, its bodies and functions that draws random numbers."""
    false = false_names(proto.graph)
    return tuple(f"{n.op_type} {n.name!r}" for n in iter_nodes(proto) if draws(n, false))


def draws(node: onnx.NodeProto, false: frozenset[str]) -> bool:
    """Return whether an operator of ONNX draws random numbers; `false`: see `false_names`.

    Dropout draws if its third input is true (ONNX Dropout-12); one that is not a constant may be true.
    """
    if node.domain not in ("", "ai.onnx"):
        return False
    training = node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])
    return node.op_type in RANDOM or (training and node.input[2] not in false)


def false_names(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the names of constants in a graph and its bodies that hold one false value and that no caller may set."""
    given = {value.name for value in graph.input}
    return frozenset(name for name, tensor in _constants(graph) if name not in given and _is_false(tensor))


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for inner in iter_graphs(graph):
        yield from ((tensor.name, tensor) for tensor in inner.initializer)
        for node in inner.node:
            if node.op_type == "Constant":
                yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def _is_false(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor is one false value; its shape is not trusted, because nothing has checked it yet."""
    is_one = tensor.data_type == onnx.TensorProto.BOOL and len(tensor.raw_data) + len(tensor.int32_data) == 1
    return is_one and not any(tensor.raw_data) and not any(tensor.int32_data)
