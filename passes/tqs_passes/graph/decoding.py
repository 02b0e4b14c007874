"""Extract the part of an emitted file that decodes its weights.

`decoding` extracts the nodes that compute given tensors from stored ones. Running that model shows the weights that a
runtime actually computes with.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from tqs_passes.errors import InputError
from tqs_passes.files.checker import checker_complaint
from tqs_passes.files.model import Model, serialize
from tqs_passes.graph.scope import bodies, defined_names


def decoding(model: Model, names: Iterable[str], fed: onnx.ValueInfoProto | None = None) -> onnx.ModelProto:
    """Return a model that computes only the named tensors, which must depend on stored tensors alone.

    A tensor that is `fed` becomes the model's only input, whichever node produces it in the file.

    Raises
    ------
    InputError
        A named tensor depends on a graph input or on nothing.
    """
    graph = model.proto.graph
    producers = {out: (i, node) for i, node in enumerate(graph.node) for out in node.output if out}
    stored = {t.name: t for t in graph.initializer}
    keep: dict[int, onnx.NodeProto] = {}
    used: dict[str, onnx.TensorProto] = {}
    wanted = list(names)
    queue = list(wanted)
    while queue:
        name = queue.pop()
        if fed is not None and name == fed.name:
            continue
        if name in stored:
            used.setdefault(name, stored[name])
        elif name in producers:
            index, node = producers[name]
            if index not in keep:
                keep[index] = node
                queue.extend(_read_names(node))
        else:
            raise InputError(
                "the file does not compute this weight from stored tensors alone",
                where=name,
                todo="Emit the file again",
            )
    out = onnx.ModelProto(ir_version=model.proto.ir_version)
    out.opset_import.extend(model.proto.opset_import)
    out.graph.name = "decoding"
    out.graph.node.extend(keep[i] for i in sorted(keep))
    out.graph.initializer.extend(used[n] for n in sorted(used))
    if fed is not None:
        out.graph.input.append(fed)
    out.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted)
    return onnx.shape_inference.infer_shapes(out) if out.graph.node else out


def _read_names(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, including those that its bodies capture from outside."""
    names = {name for name in node.input if name}
    for _, body in bodies(node):
        inside = {output.name for output in body.output}
        for inner in body.node:
            inside |= _read_names(inner)
        names |= inside - defined_names(body)
    return names


__all__ = ["checker_complaint", "decoding", "serialize"]
