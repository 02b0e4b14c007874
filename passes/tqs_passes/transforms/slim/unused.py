"""Removes what nothing reads: nodes, optional outputs, stored tensors, local functions, imported operator sets.

Before → after ::

    x ─▶ LSTM ─▶ Y, Y_h, Y_c ;  Shape(x) ─▶ …        x ─▶ LSTM ─▶ Y          only Y is read

Inputs and outputs of the graph stay, and so do the weights, also one that nothing reads: a plan names every weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx
from onnx import defs

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_nodes
from tqs_passes.graph.names import opset_of
from tqs_passes.graph.scope import bodies
from tqs_passes.graph_pass import PassResult
from tqs_passes.transforms.slim.scopes import editable, is_standard, read_names


@dataclass(frozen=True, slots=True)
class DropUnused:
    """The pass (see the module docstring).

    Parameters
    ----------
    weights : frozenset of str
        Initializers to keep.
    """

    weights: frozenset[str]

    name: ClassVar[str] = "drop-unused"

    def apply(self, model: Model) -> PassResult:
        """Return the model without what nothing reads, or the model itself if everything is read."""
        proto = editable(model.proto)
        gone: list[str] = []
        _prune(proto.graph, opset_of(proto), model.stored_names(self.weights), gone)
        _prune_functions(proto, gone)
        return PassResult(replace(model, proto=proto), tuple(gone)) if gone else PassResult(model)


def _prune(graph: onnx.GraphProto, opset: int, kept: frozenset[str], gone: list[str]) -> None:
    needed = {value.name for value in graph.output}
    live: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if node.output and not needed.intersection(filter(None, node.output)):
            gone.extend(name for name in node.output if name)
            continue
        for _, body in bodies(node):
            _prune(body, opset, frozenset(), gone)
        _drop_outputs(node, needed, opset, gone)
        needed.update(read_names(node))
        live.append(node)
    if len(live) < len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(live)]
        del graph.node[:]
        graph.node.extend(copies)
    given = {value.name for value in graph.input}
    for stored in (graph.initializer, graph.sparse_initializer):
        for index in reversed(range(len(stored))):
            tensor = stored[index]
            name = tensor.name if isinstance(tensor, onnx.TensorProto) else tensor.values.name
            if name not in needed and name not in kept and name not in given:
                gone.append(name)
                del stored[index]


def _drop_outputs(node: onnx.NodeProto, needed: Iterable[str], opset: int, gone: list[str]) -> None:
    """Blank the optional outputs that nothing reads, and cut those at the end."""
    read = frozenset(needed)
    unread = [i for i, name in enumerate(node.output) if name and name not in read]
    if not unread or not is_standard(node):
        return
    try:
        formal = defs.get_schema(node.op_type, opset, "").outputs
    except defs.SchemaError:
        return
    for index in unread:
        if index < len(formal) and formal[index].option == defs.OpSchema.FormalParameterOption.Optional:
            gone.append(node.output[index])
            node.output[index] = ""
    while node.output and not node.output[-1]:
        del node.output[-1]


def _prune_functions(proto: onnx.ModelProto, gone: list[str]) -> None:
    """Remove the functions that nothing calls, then the operator sets that nothing uses."""
    while True:
        called = {(n.domain, n.op_type) for n in iter_nodes(proto)}
        unused = [i for i, f in enumerate(proto.functions) if (f.domain, f.name) not in called]
        if not unused:
            break
        for index in reversed(unused):
            gone.append(f"{proto.functions[index].domain}.{proto.functions[index].name}")
            del proto.functions[index]
    domains = {n.domain for n in iter_nodes(proto)} | {f.domain for f in proto.functions}
    for index in reversed(range(len(proto.opset_import))):
        domain = proto.opset_import[index].domain
        if domain not in domains and domain not in ("", "ai.onnx"):
            gone.append(domain)
            del proto.opset_import[index]
