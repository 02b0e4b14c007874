"""Removes what no runtime reads: documentation strings, metadata of nodes, and types that the runtime infers itself.

A type that a graph declares for an inner value goes if ONNX's inference, on which runtimes build, finds the same
without it, or if nothing of that name exists. One that says more stays: a runtime may use it to choose a kernel. What
the model says about itself (its own documentation and metadata) stays, and so does everything about inputs and outputs
but their documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs
from tqs_passes.graph.scope import defined_names
from tqs_passes.graph_pass import PassResult
from tqs_passes.transforms.slim.scopes import editable
from tqs_passes.transforms.slim.shapes import inferred

_Holder = onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto | onnx.GraphProto | onnx.FunctionProto


@dataclass(frozen=True, slots=True)
class DropNotes:
    """The pass (see the module docstring)."""

    name: ClassVar[str] = "drop-notes"

    def apply(self, model: Model) -> PassResult:
        """Return the model without notes, or the model itself if it has none."""
        proto = editable(model.proto)
        for graph in iter_graphs(proto.graph):
            for holder in _holders(graph):
                _clear(holder)
            for node in graph.node:
                for attribute in node.attribute:
                    attribute.ClearField("doc_string")
        for function in proto.functions:
            for holder in (function, *function.node, *function.value_info):
                _clear(holder)
        _drop_types(proto)
        changed = proto.ByteSize() < model.proto.ByteSize()
        return PassResult(replace(model, proto=proto), ("notes",)) if changed else PassResult(model)


def _holders(graph: onnx.GraphProto) -> Iterator[_Holder]:
    yield graph
    yield from graph.node
    yield from graph.initializer
    for values in (graph.value_info, graph.input, graph.output):
        yield from values


def _clear(holder: _Holder) -> None:
    holder.ClearField("doc_string")
    del holder.metadata_props[:]


def _drop_types(proto: onnx.ModelProto) -> None:
    """Remove the declared types that add nothing to the inferred ones."""
    if not any(graph.value_info for graph in iter_graphs(proto.graph)):
        return
    graphs = list(iter_graphs(proto.graph))
    found = inferred(proto)
    types = [{} for _ in graphs] if found is None else [_types(graph) for graph in iter_graphs(found.graph)]
    for graph, known in zip(graphs, types, strict=True):
        defined = defined_names(graph)
        kept = [v for v in graph.value_info if v.name in defined and _says_more(v, known.get(v.name))]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _types(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    return {value.name: value for value in (*graph.value_info, *graph.output)}


def _says_more(declared: onnx.ValueInfoProto, known: onnx.ValueInfoProto | None) -> bool:
    """Return whether a declared type holds anything that the inferred one lacks."""
    if known is None or not declared.type.HasField("tensor_type"):
        return True
    ours, theirs = declared.type.tensor_type, known.type.tensor_type
    if ours.elem_type != theirs.elem_type:
        return True
    if not ours.HasField("shape"):
        return False
    if not theirs.HasField("shape") or len(ours.shape.dim) != len(theirs.shape.dim):
        return True
    return any(
        a.HasField("dim_value") and a != b for a, b in zip(ours.shape.dim, theirs.shape.dim, strict=True)
    )
