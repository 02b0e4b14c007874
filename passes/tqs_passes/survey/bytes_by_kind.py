"""Counts the bytes of a model by what they are for: weights, scales, tables, constants, graph and names.

weights     values of the planned weights: floats, or integer codes
scales      their scales, and the order of row tiers
tables      look-up tables and shapes that decoded weights share
constants   all other stored tensors
names       of values and nodes, wherever they are written
graph       the rest: nodes, attributes, types, metadata, and protobuf's own bytes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx.external_data_helper import uses_external_data

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs, tensor_n_bytes


@dataclass(frozen=True, slots=True)
class BytesByKind:
    """The bytes of a model (see the module docstring)."""

    weights: int
    scales: int
    tables: int
    constants: int
    names: int
    graph: int

    @property
    def total(self) -> int:
        """All bytes: those of the file, or of the file and its external data."""
        return self.weights + self.scales + self.tables + self.constants + self.names + self.graph

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        kinds = ("weights", "scales", "tables", "constants", "names", "graph")
        return {kind: getattr(self, kind) for kind in kinds}


def bytes_by_kind(
    model: Model, weights: frozenset[str], parts: Mapping[str, str] | None = None
) -> BytesByKind:
    """Count the bytes of a model.

    Parameters
    ----------
    model : Model
    weights : frozenset of str
        Stored tensors that are weights.
    parts : mapping of str to str, optional
        Kind of further stored tensors, `weights`, `scales` or `tables`, by name; default: all others are constants.
    """
    counts: dict[str, int] = dict.fromkeys(("weights", "scales", "tables", "constants"), 0)
    outside = 0
    for tensor in model.proto.graph.initializer:
        n_bytes = _value_bytes(tensor)
        counts["weights" if tensor.name in weights else (parts or {}).get(tensor.name, "constants")] += (
            n_bytes
        )
        outside += tensor_n_bytes(tensor) if uses_external_data(tensor) else 0
    for graph in iter_graphs(model.proto.graph):
        if graph is not model.proto.graph:
            counts["constants"] += sum(_value_bytes(t) for t in graph.initializer)
        for node in graph.node:
            counts["constants"] += sum(
                _value_bytes(a.t) for a in node.attribute if a.type == onnx.AttributeProto.TENSOR
            )
    names = bytes_of_names(model.proto)
    rest = model.proto.ByteSize() + outside - sum(counts.values()) - names
    return BytesByKind(**counts, names=names, graph=rest)


def bytes_of_names(proto: onnx.ModelProto) -> int:
    """Return the bytes that the names of values and nodes take in a model."""
    n_bytes = 0
    for graph in iter_graphs(proto.graph):
        for node in graph.node:
            n_bytes += len(node.name.encode())
            n_bytes += sum(len(name.encode()) for name in (*node.input, *node.output))
        for values in (graph.initializer, graph.value_info):
            n_bytes += sum(len(value.name.encode()) for value in values)
    return n_bytes


def _value_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of a tensor's values as they are stored."""
    if uses_external_data(tensor):
        return tensor_n_bytes(tensor)
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    size: int = tensor.ByteSize() - bare.ByteSize()
    return size
