"""Finds the Transposes in float16 on which onnxruntime's CPU provider crashes.

onnxruntime fuses a Transpose into the MatMul that reads it, with or without a Cast between them. If the Transpose moves
the first axis behind all others but the last two, or to the end (perm 1,0,2 or 1,2,0 of three axes, 1,2,0,3 or 1,2,3,0
of four), and the other operand is a matrix, release 1.31 crashes with a segmentation fault while loading the model. The
same Transpose in float32, between casts, works; so does one that swaps the last two axes.
"""

from __future__ import annotations

import onnx

#: Operators that the runtime ignores in this match, removes, or moves the Transpose behind.
_BETWEEN = frozenset({"Cast", "Identity", "Slice"})


def fused_transposes(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the outputs of the Transposes of a graph that must not compute in float16."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return frozenset(
        node.output[0]
        for node in graph.node
        if node.op_type == "Transpose" and _moves_the_first_axis(node) and _reaches_a_product(node, readers)
    )


def _moves_the_first_axis(node: onnx.NodeProto) -> bool:
    order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
    n = len(order)
    return n >= 3 and order[: n - 2] == list(range(1, n - 1)) and 0 in order[n - 2 :]


def _reaches_a_product(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    queue, seen = [node.output[0]], set[str]()
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        for reader in readers.get(name, []):
            if reader.op_type == "MatMul":
                return True
            if reader.op_type in _BETWEEN:
                queue.append(reader.output[0])
    return False
