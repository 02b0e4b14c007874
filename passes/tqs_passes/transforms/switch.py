"""Puts a switch before readers that may round their input to 8 bits: one graph rolls out with and without.

Before → after, for a reader of the weight w ::

    x ─▶ MatMul(w)          x ─▶ If(switch) ─▶ MatMul(w)         switch (bool, graph input)
                                 then  DynamicQuantizeLinear ─▶ DequantizeLinear
                                 else  Identity

With ranges that are fixed in advance, `then` holds QuantizeLinear ─▶ DequantizeLinear, whose scale and zero point are
graph inputs too, so that several ranges can be tried; a Conv has a second one after its output, or after the Relu that
alone reads that. An LSTM also rounds its
state at every step (`tqs_passes.transforms.rounded_lstm`). The rounding is the one
that the forms `dynamic` and `static` compute with (`tqs_passes.encode`), so a rollout with a switch on measures the
effect of that reader's activations, step after step, in the same compiled graph as the nominal rollout. An `If` that is
off costs one copy of x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tqs_passes.encode.dynamic import DYNAMIC_OPSET
from tqs_passes.encode.static import STATIC_OPSET, Kind, Range
from tqs_passes.files.model import Model
from tqs_passes.graph.names import opset_of
from tqs_passes.graph.readers import followers_in, has_one_direction
from tqs_passes.graph_pass import PassResult, Skip
from tqs_passes.transforms.rounded_lstm import switched_lstm

_PREFIX = "tqs_switch"
_ELEMENTS = {"uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8}


@dataclass(frozen=True, slots=True)
class SwitchInputs:
    """The graph inputs that switch the rounding of one reader.

    Parameters
    ----------
    name : str
    kind : {"uint8", "int8"} or None
        Integers of ranges that are fixed in advance; None: the range is that of every call.
    n_ranges : int
        Number of ranges: 1, and 2 for a Conv; 0 if there are none.
    """

    name: str
    kind: Kind | None = None
    n_ranges: int = 0

    def off(self) -> dict[str, NDArray[np.generic]]:
        """Return the values with which nothing is rounded."""
        unused = () if self.kind is None else (Range(kind=self.kind, scale=1.0),) * self.n_ranges
        return self._values(np.array(False), unused)

    def on(self, ranges: tuple[Range, ...] = ()) -> dict[str, NDArray[np.generic]]:
        """Return the values with which the input, and the output of a Conv, are rounded."""
        return self._values(np.array(True), ranges)

    def _values(self, switch: NDArray[np.bool_], ranges: tuple[Range, ...]) -> dict[str, NDArray[np.generic]]:
        if len(ranges) != self.n_ranges:
            raise ValueError(f"{self.name} needs {self.n_ranges} ranges, not {len(ranges)}")
        found: dict[str, NDArray[np.generic]] = {self.name: switch}
        for i, chosen in enumerate(ranges):
            found |= zip(self.parameters(i), chosen.arrays(), strict=True)
        return found

    def parameters(self, i: int) -> tuple[str, str]:
        """Return the names of the scale and the zero point of a range."""
        return f"{self.name}.s{i}", f"{self.name}.z{i}"


@dataclass(frozen=True, slots=True)
class Switch:
    """The pass that puts a switch before the readers of weights.

    Parameters
    ----------
    weights : tuple of str
        Initializers or inputs of the main graph, each read by one MatMul, Gemm or LSTM (`has_one_direction`) as its
        second input; with ranges fixed in advance, by a Conv instead of an LSTM.
    kind : {"uint8", "int8"} or None
        Integers of ranges that are fixed in advance; None: the range is that of every call.
    """

    weights: tuple[str, ...]
    kind: Kind | None = None

    name: ClassVar[str] = "switch"

    def apply(self, model: Model) -> PassResult:
        """Return a model with more inputs for each weight, in the given order; see `switch_inputs`."""
        needs = DYNAMIC_OPSET if self.kind is None else STATIC_OPSET
        opset = opset_of(model.proto)
        if opset < needs:
            why = f"the model's opset has no operator that rounds to 8 bits, which needs {needs}"
            return PassResult(model, (), tuple(Skip(name, why) for name in self.weights))
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        graph = proto.graph
        readers = ("MatMul", "Gemm", "LSTM") if self.kind is None else ("MatMul", "Gemm", "Conv")
        wanted = {name: f"{_PREFIX}.{i}" for i, name in enumerate(self.weights)}
        nodes: list[onnx.NodeProto] = []
        found: dict[str, SwitchInputs] = {}
        followers = followers_in(graph)
        last: dict[str, SwitchInputs] = {}
        for node in graph.node:
            weight = node.input[1] if node.op_type in readers and len(node.input) > 1 else ""
            if (
                weight not in wanted
                or node.domain
                or (node.op_type == "LSTM" and not has_one_direction(node))
            ):
                nodes.append(node)
                if node.output and node.output[0] in last:
                    nodes.append(_rounded_output(node, last[node.output[0]]))
                continue
            convolves = node.op_type == "Conv"
            inputs = SwitchInputs(wanted[weight], self.kind, 0 if self.kind is None else 1 + convolves)
            found[weight] = inputs
            if node.op_type == "LSTM":
                nodes.append(switched_lstm(node, inputs.name, opset))
                continue
            nodes.append(_switched(node.input[0], f"{inputs.name}.x", inputs, 0))
            node.input[0] = nodes[-1].output[0]
            nodes.append(node)
            if convolves and node.output[0] in followers:
                last[followers[node.output[0]].output[0]] = inputs
            elif convolves:
                nodes.append(_rounded_output(node, inputs))
        changed = tuple(name for name in self.weights if name in found)
        for name in changed:
            graph.input.extend(_ports(found[name]))
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        skipped = tuple(
            Skip(n, f"no {' or '.join(readers)} reads it") for n in self.weights if n not in found
        )
        return PassResult(replace(model, proto=proto), changed, skipped)


def switch_inputs(proto: onnx.ModelProto, weights: tuple[str, ...]) -> dict[str, SwitchInputs]:
    """Return the inputs that `Switch(weights)` gave a model, by weight."""
    elements = {i.name: i.type.tensor_type.elem_type for i in proto.graph.input}
    kinds: dict[int, Kind] = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.INT8: "int8"}
    found: dict[str, SwitchInputs] = {}
    for i, weight in enumerate(weights):
        name = f"{_PREFIX}.{i}"
        zeros = [elements[f"{name}.z{k}"] for k in range(2) if f"{name}.z{k}" in elements]
        if name in elements:
            found[weight] = SwitchInputs(name, kinds[zeros[0]] if zeros else None, len(zeros))
    return found


def _ports(inputs: SwitchInputs) -> list[onnx.ValueInfoProto]:
    made = helper.make_tensor_value_info
    ports = [made(inputs.name, onnx.TensorProto.BOOL, [])]
    for i in range(inputs.n_ranges):
        scale, zero = inputs.parameters(i)
        kind = int(_ELEMENTS[inputs.kind or "uint8"])
        ports += [made(scale, onnx.TensorProto.FLOAT, []), made(zero, kind, [])]
    return ports


def _rounded_output(node: onnx.NodeProto, inputs: SwitchInputs) -> onnx.NodeProto:
    """Return the If that rounds the output of a node, which gets another name."""
    y = node.output[0]
    node.output[0] = f"{inputs.name}.raw"
    return _switched(node.output[0], y, inputs, 1)


def _switched(x: str, out: str, inputs: SwitchInputs, i: int) -> onnx.NodeProto:
    """Return the If that rounds x: with the i-th range, if ranges are fixed in advance."""
    made = helper.make_tensor_value_info
    here = f"{inputs.name}.{i}"
    levels, on, off = f"{here}.q", f"{here}.on", f"{here}.off"
    if inputs.kind is None:
        names = [levels, f"{here}.s", f"{here}.z"]
        rounding = [helper.make_node("DynamicQuantizeLinear", [x], names)]
    else:
        names = [levels, *inputs.parameters(i)]
        rounding = [helper.make_node("QuantizeLinear", [x, *names[1:]], [levels])]
    rounding.append(helper.make_node("DequantizeLinear", names, [on]))
    then = helper.make_graph(rounding, "on", [], [made(on, onnx.TensorProto.FLOAT, None)])
    other = helper.make_graph(
        [helper.make_node("Identity", [x], [off])], "off", [], [made(off, onnx.TensorProto.FLOAT, None)]
    )
    return helper.make_node("If", [inputs.name], [out], then_branch=then, else_branch=other)
