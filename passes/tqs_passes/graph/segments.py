"""Cut a model into parts that run one after another, so that a change in one part leaves the earlier ones as they are.

    inputs ─▶ part 0 ─▶ values ─▶ part 1 ─▶ values ─▶ part 2 …        a value may skip parts

A part has what the kept tensors and the later parts need, and nothing else. Values that depend on constants alone are
computed in every part that reads them, as in `split_model`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from tqs_passes.graph.split_model import reads


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a model.

    Parameters
    ----------
    model : ModelProto
        Its inputs and outputs are `reads` and `makes`, in order.
    reads : tuple of str
        Inputs of the whole model, and values that earlier parts make.
    makes : tuple of str
        Values that later parts read, and kept tensors.
    """

    model: onnx.ModelProto
    reads: tuple[str, ...]
    makes: tuple[str, ...]


def segments(
    proto: onnx.ModelProto,
    cuts: Collection[int],
    kept: Collection[str],
    types: Mapping[str, onnx.ValueInfoProto],
) -> tuple[Segment, ...]:
    """Cut a model before these nodes of its main graph.

    Parameters
    ----------
    proto : ModelProto
    cuts : collection of int
        Positions of nodes. A cut that a value of unknown type would cross is left out, so there may be fewer parts.
    kept : collection of str
        Tensors of the main graph that some part has to make, apart from inputs and constants.
    types : mapping of str to ValueInfoProto
        Result of `split_model.value_types` for the same graph.

    Returns
    -------
    tuple of Segment
        One for each position that is cut and one before the first, also if a part has no nodes left.
    """
    graph = proto.graph
    stored = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    given = {i.name for i in graph.input if i.name not in stored}
    fixed = _fixed(graph, given, kept)
    needed = _needed(graph, kept)
    bounds = _bounds(graph, cuts, needed, fixed, types)
    made_in = {
        name: part
        for part in range(len(bounds) - 1)
        for i in range(bounds[part], bounds[part + 1])
        if i in needed and i not in fixed
        for name in graph.node[i].output
        if name
    }
    inputs = {i.name: i for i in graph.input}
    found: list[Segment] = []
    later: set[str] = set()
    for part in reversed(range(len(bounds) - 1)):
        own = [i for i in range(bounds[part], bounds[part + 1]) if i in needed and i not in fixed]
        nodes = _with_constants(graph, own, fixed)
        read = dict.fromkeys(name for i in nodes for name in reads(graph.node[i]))
        entries = tuple(n for n in read if n in given or made_in.get(n, part) < part)
        makes = tuple(n for i in own for n in graph.node[i].output if n in later or n in kept)
        model = onnx.ModelProto(ir_version=proto.ir_version)
        model.opset_import.extend(proto.opset_import)
        model.functions.extend(proto.functions)
        model.graph.name = graph.name
        model.graph.node.extend(graph.node[i] for i in nodes)
        model.graph.input.extend(inputs.get(n) or types[n] for n in entries)
        model.graph.output.extend(types.get(n) or onnx.ValueInfoProto(name=n) for n in makes)
        model.graph.initializer.extend(t for t in graph.initializer if t.name in read)
        model.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in read)
        found.append(Segment(model, entries, makes))
        later.update(entries)
    return tuple(reversed(found))


def _fixed(graph: onnx.GraphProto, given: Collection[str], kept: Collection[str]) -> set[int]:
    """Return the nodes that depend on constants alone and make no kept tensor."""
    moving, found = set(given), set[int]()
    for i, node in enumerate(graph.node):
        if moving.isdisjoint(reads(node)) and not any(o in kept for o in node.output):
            found.add(i)
        else:
            moving.update(node.output)
    return found


def _needed(graph: onnx.GraphProto, kept: Collection[str]) -> set[int]:
    """Return the nodes on which the kept tensors depend."""
    names, found = set(kept), set[int]()
    for i in reversed(range(len(graph.node))):
        if not names.isdisjoint(graph.node[i].output):
            found.add(i)
            names.update(reads(graph.node[i]))
    return found


def _bounds(
    graph: onnx.GraphProto,
    cuts: Collection[int],
    needed: Collection[int],
    fixed: Collection[int],
    types: Mapping[str, onnx.ValueInfoProto],
) -> Sequence[int]:
    """Return where the parts begin, and the number of nodes."""
    n_nodes = len(graph.node)
    first = {o: i for i in needed if i not in fixed for o in graph.node[i].output if o}
    last: dict[str, int] = {}
    for i in sorted(needed):
        last.update((name, i) for name in reads(graph.node[i]) if name in first)
    untyped = [
        (first[n], i) for n, i in last.items() if n not in types or not types[n].type.tensor_type.elem_type
    ]
    inner = (c for c in sorted(set(cuts)) if 0 < c < n_nodes and not any(a < c <= b for a, b in untyped))
    return [0, *inner, n_nodes]


def _with_constants(graph: onnx.GraphProto, own: Sequence[int], fixed: Collection[int]) -> list[int]:
    """Return the nodes of a part with those that make the constants that they read, in the order of the graph."""
    maker = {o: i for i in fixed for o in graph.node[i].output}
    found, waiting = set(own), list(own)
    while waiting:
        more = {maker[n] for n in reads(graph.node[waiting.pop()]) if n in maker} - found
        found |= more
        waiting += sorted(more)
    return sorted(found)
