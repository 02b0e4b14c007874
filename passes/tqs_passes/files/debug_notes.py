"""Remove exporters' debug metadata: stack traces, scopes and source locations on every node.

They can take more bytes than a small model, and no runtime reads them. The model's own metadata are kept.
"""

from __future__ import annotations

import onnx
from onnx.external_data_helper import uses_external_data

from tqs_passes.files.tensors import iter_graphs, tensor_n_bytes
from tqs_passes.files.wire import field_size

#: Key prefixes of debug metadata.
DEBUG_PREFIXES = ("pkg.torch.", "pkg.onnxscript.", "namespace")

_Holder = (
    onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto | onnx.GraphProto
)  # everything besides the model that carries metadata


def drop_debug_notes(proto: onnx.ModelProto) -> None:
    """Remove exporters' per-node stack traces and scopes, in place; keep the model's own metadata."""
    for graph in iter_graphs(proto.graph):
        rest: list[_Holder] = [*graph.value_info, *graph.initializer, *graph.input, *graph.output, graph]
        for holder in (*graph.node, *rest):
            _strip(holder)
        for node in graph.node:
            node.ClearField("doc_string")


def bare(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of a node as `drop_debug_notes` leaves it; the metadata inside its bodies stay."""
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


def kept_size(tensor: onnx.TensorProto) -> int:
    """Return the serialized bytes of an unchanged tensor after `drop_debug_notes` and `save_model`."""
    if uses_external_data(tensor):
        bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        header: int = bare.ByteSize()
        return header + field_size(tensor_n_bytes(tensor))
    notes = [e for e in tensor.metadata_props if e.key.startswith(DEBUG_PREFIXES)]
    size: int = tensor.ByteSize()
    return size - sum(1 + field_size(e.ByteSize()) for e in notes)
