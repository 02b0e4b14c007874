"""Builds the skeleton of a model: the content of an emitted file besides its planned weights."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from tqs_passes.files.debug_notes import drop_debug_notes
from tqs_passes.files.model import Model, without_initializers


def skeleton(
    model: Model, planned: frozenset[str], metadata: Mapping[str, str], version: str
) -> onnx.ModelProto:
    """Return the lifted model without its planned weights, with debug notes dropped and metadata added."""
    proto = without_initializers(model.proto)
    graph = model.proto.graph
    proto.graph.initializer.extend(t for t in graph.initializer if t.name not in planned)
    drop_debug_notes(proto)
    if proto.producer_name != "tqs-onnx":
        _set_metadata(
            proto, "tqs_onnx.source_producer", f"{proto.producer_name} {proto.producer_version}".strip()
        )
    proto.producer_name, proto.producer_version = "tqs-onnx", version
    for key in sorted(metadata):
        _set_metadata(proto, key, metadata[key])
    return proto


def _set_metadata(proto: onnx.ModelProto, key: str, value: str) -> None:
    for entry in proto.metadata_props:
        if entry.key == key:
            entry.value = value
            return
    proto.metadata_props.add(key=key, value=value)
