"""Appends tensors to the graph outputs, so that a session returns the inputs of readers.

Before → after ::

    h ─▶ MatMul ─▶ y          h ─▶ MatMul ─▶ y
                              └──▶ Identity ─▶ tqs_capture.0 (graph output)

An Identity is inserted because a graph input cannot be a graph output directly, and because the tensor may already be
an output. Only the main graph is searched. Existing nodes and outputs are unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs
from tqs_passes.graph_pass import PassResult, Skip

_PREFIX = "tqs_capture"


@dataclass(frozen=True, slots=True)
class Capture:
    """The pass that makes tensors visible as outputs.

    Parameters
    ----------
    tensors : tuple of str
        Names of tensors of the main graph.
    """

    tensors: tuple[str, ...]

    name: ClassVar[str] = "capture"

    def apply(self, model: Model) -> PassResult:
        """Return a model with one more output for each tensor, in the given order; see `captured_names`.

        An output is declared without a type if the graph declares none for the tensor; runtimes infer it.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        graph = proto.graph
        declared = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
        there = {*declared, *(o for n in graph.node for o in n.output), *(t.name for t in graph.initializer)}
        outputs = captured_names(model, self.tensors)
        changed: list[str] = []
        skipped: list[Skip] = []
        for name in self.tensors:
            if name not in there:
                skipped.append(Skip(name, "no such tensor in the main graph"))
                continue
            graph.node.add(op_type="Identity", input=[name], output=[outputs[name]], name=outputs[name])
            value = graph.output.add(name=outputs[name])
            if name in declared and declared[name].HasField("type"):
                value.type.CopyFrom(declared[name].type)
            changed.append(name)
        return PassResult(replace(model, proto=proto), tuple(changed), tuple(skipped))


def captured_names(model: Model, tensors: tuple[str, ...]) -> dict[str, str]:
    """Return the name of the output that carries each tensor."""
    taken = {
        name
        for graph in iter_graphs(model.proto.graph)
        for name in (*(o for n in graph.node for o in n.output), *(i.name for i in graph.input))
    }
    prefix = _PREFIX
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    return {name: f"{prefix}.{i}" for i, name in enumerate(dict.fromkeys(tensors))}
