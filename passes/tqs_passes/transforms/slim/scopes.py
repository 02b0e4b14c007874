"""What the slimming passes share: a copy to edit, and the renaming of reads in a graph and its bodies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from tqs_passes.files.model import without_initializers
from tqs_passes.graph.scope import bodies, defined_names


def editable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model, for a pass to edit."""
    copy = without_initializers(proto)
    copy.graph.initializer.extend(proto.graph.initializer)
    return copy


def is_standard(node: onnx.NodeProto) -> bool:
    """Return whether a node's operator is one of ONNX's own."""
    return node.domain in ("", "ai.onnx")


def read_names(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node may read: its inputs, and all that its bodies read or return."""
    yield from (name for name in node.input if name)
    for _, body in bodies(node):
        for inner in body.node:
            yield from read_names(inner)
        yield from (value.name for value in body.output)


def hidden_names(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the names that a body defines again although an enclosing graph defines them."""
    found: set[str] = set()
    _collect_hidden(graph, frozenset(), found)
    return frozenset(found)


def _collect_hidden(graph: onnx.GraphProto, outer: frozenset[str], found: set[str]) -> None:
    own = defined_names(graph)
    found |= own & outer
    for node in graph.node:
        for _, body in bodies(node):
            _collect_hidden(body, outer | own, found)


def rename_reads(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    """Let a node and its bodies read other names; no name involved may be hidden (see `hidden_names`)."""
    for index, name in enumerate(node.input):
        if name in renamed:
            node.input[index] = renamed[name]
    for _, body in bodies(node):
        for inner in body.node:
            rename_reads(inner, renamed)
