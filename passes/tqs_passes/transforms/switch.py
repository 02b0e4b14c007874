"""Puts a switch before readers that may round their input to 8 bits: one graph rolls out with and without.

Before → after, for a reader of the weight w ::

    x ─▶ MatMul(w)          x ─▶ If(switch) ─▶ MatMul(w)         switch (bool, graph input)
                                 then  DynamicQuantizeLinear ─▶ DequantizeLinear
                                 else  Identity

The rounding is the one that the form `dynamic` computes with (`tqs_passes.encode.dynamic`), so a rollout with a switch
on measures the effect of that reader's activations, step after step, in the same compiled graph as the nominal rollout.
An `If` that is off costs one copy of x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx
from onnx import helper

from tqs_passes.encode.dynamic import DYNAMIC_OPSET
from tqs_passes.files.model import Model
from tqs_passes.graph.names import opset_of
from tqs_passes.graph_pass import PassResult, Skip

_PREFIX = "tqs_switch"


@dataclass(frozen=True, slots=True)
class Switch:
    """The pass that puts a switch before the readers of weights.

    Parameters
    ----------
    weights : tuple of str
        Initializers or inputs of the main graph, each read by one MatMul or Gemm as its second input.
    """

    weights: tuple[str, ...]

    name: ClassVar[str] = "switch"

    def apply(self, model: Model) -> PassResult:
        """Return a model with one more input for each weight, in the given order; see `switch_names`."""
        if opset_of(model.proto) < DYNAMIC_OPSET:
            why = f"the model's opset has no DynamicQuantizeLinear, which needs {DYNAMIC_OPSET}"
            return PassResult(model, (), tuple(Skip(name, why) for name in self.weights))
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        graph = proto.graph
        inputs = switch_names(self.weights)
        nodes: list[onnx.NodeProto] = []
        found: set[str] = set()
        for node in graph.node:
            weight = node.input[1] if node.op_type in ("MatMul", "Gemm") and len(node.input) > 1 else ""
            if weight in inputs and not node.domain:
                nodes.append(_switched(node.input[0], inputs[weight]))
                node.input[0] = nodes[-1].output[0]
                found.add(weight)
            nodes.append(node)
        changed = tuple(name for name in self.weights if name in found)
        for name in changed:
            graph.input.append(helper.make_tensor_value_info(inputs[name], onnx.TensorProto.BOOL, []))
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        skipped = tuple(Skip(n, "no MatMul or Gemm reads it") for n in self.weights if n not in found)
        return PassResult(replace(model, proto=proto), changed, skipped)


def switch_names(weights: tuple[str, ...]) -> dict[str, str]:
    """Return the name of the graph input that switches the rounding before each weight's reader."""
    return {name: f"{_PREFIX}.{i}" for i, name in enumerate(weights)}


def _switched(x: str, switch: str) -> onnx.NodeProto:
    made = helper.make_tensor_value_info
    names = [f"{switch}.{end}" for end in "qsz"]
    on, off = f"{switch}.on", f"{switch}.off"
    then = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", [x], names),
            helper.make_node("DequantizeLinear", names, [on]),
        ],
        "on",
        [],
        [made(on, onnx.TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", [x], [off])], "off", [], [made(off, onnx.TensorProto.FLOAT, None)]
    )
    return helper.make_node("If", [switch], [f"{switch}.x"], then_branch=then, else_branch=other)
