"""Split a model at the nodes where some of its inputs first matter, so that the part before is computed once.

    inputs ─▶ head ─▶ cut ─▶ tail ─▶ outputs          head: everything that `moved` inputs do not influence
       └───────────────────────▲                      tail: everything they influence; reads inputs, `moved`, the cut

Values that depend on constants alone are computed in both parts. They are folded there and never belong to the cut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx

from tqs_passes.files.tensors import iter_graphs


@dataclass(frozen=True, slots=True)
class Halves:
    """The two parts of a model.

    Parameters
    ----------
    head, tail : ModelProto
        The head's outputs are the cut, then those model outputs that it computes. The tail has all inputs of
        the model, then the cut.
    cut : tuple of str
    """

    head: onnx.ModelProto
    tail: onnx.ModelProto
    cut: tuple[str, ...]


def value_types(proto: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the types that ONNX's shape inference finds for the node outputs of the main graph."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    return {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.output)}


def split(
    proto: onnx.ModelProto, moved: Collection[str], types: Mapping[str, onnx.ValueInfoProto]
) -> Halves | None:
    """Split a model at the nodes where the `moved` inputs first matter.

    Parameters
    ----------
    proto : ModelProto
    moved : collection of str
        Inputs that change while the others stay constant.
    types : dict of str to ValueInfoProto
        Result of `value_types` for the same graph.

    Returns
    -------
    Halves or None
        None when no node comes before the split, when an output is an input or a constant, or when the type of a cut
        value is unknown.
    """
    graph = proto.graph
    stored = {t.name for t in graph.initializer}
    early = {i.name for i in graph.input if i.name not in moved and i.name not in stored}
    late = set(moved)
    sides: list[tuple[onnx.NodeProto, frozenset[str], str]] = []
    for node in graph.node:
        read = frozenset(reads(node))
        side = "late" if read & late else "early" if read & early else "fixed"
        if side != "fixed":
            (late if side == "late" else early).update(node.output)
        sides.append((node, read, side))
    computed = {o for node, _, side in sides for o in node.output if side == "early" and o}
    wanted = {n for _, read, side in sides if side == "late" for n in read}
    cut = tuple(n for node, _, _ in sides for n in node.output if n in wanted and n in computed)
    produced = {o for node in graph.node for o in node.output}
    typed = all(n in types and types[n].type.tensor_type.elem_type for n in cut)
    if not cut or not typed or any(o.name not in produced for o in graph.output):
        return None
    heads = [o for o in graph.output if o.name in computed]
    tails = [o for o in graph.output if o.name not in computed]
    ends = [types[n] for n in cut if n not in {o.name for o in heads}]
    head_inputs = [i for i in graph.input if i.name not in moved]
    head = _part(proto, [s for s in sides if s[2] != "late"], head_inputs, [*ends, *heads])
    entries = [types[n] for n in cut]
    tail = _part(proto, [s for s in sides if s[2] != "early"], [*graph.input, *entries], tails)
    return Halves(head, tail, cut)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads: its inputs, and all names that its bodies may capture."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for graph in iter_graphs(body):
                for inner in graph.node:
                    yield from (name for name in inner.input if name)
                yield from (o.name for o in graph.output)


def _part(
    proto: onnx.ModelProto,
    sides: list[tuple[onnx.NodeProto, frozenset[str], str]],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Return a model of these nodes; drop the constant nodes and constants that nothing reads."""
    needed = {o.name for o in outputs}
    nodes: list[onnx.NodeProto] = []
    for node, read, side in reversed(sides):
        if side != "fixed" or needed & set(node.output):
            nodes.append(node)
            needed |= read
    part = onnx.ModelProto(ir_version=proto.ir_version)
    part.opset_import.extend(proto.opset_import)
    part.functions.extend(proto.functions)
    part.graph.name = proto.graph.name
    part.graph.node.extend(reversed(nodes))
    part.graph.input.extend(inputs)
    part.graph.output.extend(outputs)
    part.graph.initializer.extend(t for t in proto.graph.initializer if t.name in needed)
    part.graph.sparse_initializer.extend(t for t in proto.graph.sparse_initializer if t.values.name in needed)
    return part
