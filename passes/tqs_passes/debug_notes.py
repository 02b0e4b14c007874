"""Notes that exporters leave for people: stack traces, scopes and sources on every node.

They may outweigh a small model, and no runtime reads them. A model's own metadata stay.
"""

from __future__ import annotations

import onnx

from tqs_passes.model_io import iter_graphs

#: What the keys of such notes start with.
DEBUG_PREFIXES = ("pkg.torch.", "pkg.onnxscript.", "namespace")

_Holder = (
    onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto | onnx.GraphProto
)  # what carries metadata besides the model


def drop_debug_notes(proto: onnx.ModelProto) -> None:
    """Remove exporters' per-node stack traces and scopes, in place; the model's own metadata stay."""
    for graph in iter_graphs(proto.graph):
        rest: list[_Holder] = [*graph.value_info, *graph.initializer, *graph.input, *graph.output, graph]
        for holder in (*graph.node, *rest):
            _strip(holder)
        for node in graph.node:
            node.ClearField("doc_string")


def bare(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of a node as `drop_debug_notes` leaves it (its bodies aside)."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _strip(copy)
    copy.ClearField("doc_string")
    return copy


def _strip(holder: _Holder) -> None:
    kept = [e for e in holder.metadata_props if not e.key.startswith(DEBUG_PREFIXES)]
    if len(kept) != len(holder.metadata_props):
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
