"""Turn the outputs of one step into the inputs of the next, on the device.

From the spec one small ONNX model is built (opset 17, all dimensions dynamic). It runs on the same provider:

    fed   = cast(scale · expand(select(output)) + offset)
    next  = fed                                          replace
    next  = concat(current, fed)[last len(current)]      shift
    next  = concat(current, fed)                         grow, and fill with a constant block for fed
    next  = concat(base[:start], part, base[stop:])      into: base is this step's forcing, else current;
                                                         part is one of the above on current[start:stop]

A plain `replace` needs no graph: the output is bound as the next input. Never imports onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tqs_onnx.rollout.spec.signature import ModelSignature, Port
from tqs_onnx.rollout.spec.spec import Cut, Feedback, Fill, RolloutSpec

_OPSET = 17
_IR_VERSION = 8
_END = np.iinfo(np.int64).max
#: The CPU provider has no kernels that move bfloat16: such arrays pass through float32, which is exact.
_BFLOAT16 = "bfloat16"


@dataclass(frozen=True, slots=True)
class Update:
    """The operations between two steps.

    Parameters
    ----------
    direct : dict of str to str
        Maps an input to the output that is bound to it unchanged.
    model : bytes or None
        The serialized update graph; None when every update is direct.
    feeds : dict of str to tuple of (str, str)
        Maps an input of the update graph to its source: (`current` | `output` | `forcing`, name in the model).
    results : dict of str to str
        Maps an output of the update graph to the model input that it becomes.
    """

    direct: dict[str, str]
    model: bytes | None
    feeds: dict[str, tuple[str, str]]
    results: dict[str, str]


def build_update(spec: RolloutSpec, signature: ModelSignature) -> Update:
    """Build the update of a spec (see module docstring).

    Parameters
    ----------
    spec : RolloutSpec
    signature : ModelSignature
        Types and ranks of the inputs and outputs; `check_spec` has checked them against the spec.

    Raises
    ------
    InputError
        The model has no such input or output.
    """
    direct: dict[str, str] = {}
    graph = _Graph()
    for name in spec.inputs:
        feedbacks = [f for f in spec.feedback if f.input == name]
        fills = [f for f in spec.fill if f.input == name]
        target = signature.input(name)
        if not feedbacks and not fills:
            continue
        if len(feedbacks) == 1 and feedbacks[0].is_direct and _same_type(feedbacks[0], signature):
            direct[name] = feedbacks[0].output
            continue
        current = graph.feed("current", target)
        for fill in fills:
            graph.result(_filled(graph, fill, current, target), target)
        if feedbacks:
            value = graph.feed("forcing", target) if name in spec.forced else current
            for feedback in feedbacks:
                source = signature.output(feedback.output)
                fed = _fed(graph, feedback, graph.feed("output", source), source, target)
                value = _written(graph, feedback, value, current, fed)
            graph.result(value, target)
    serialized = graph.serialized()
    return Update(direct, serialized, graph.feeds, graph.results)


def _same_type(feedback: Feedback, signature: ModelSignature) -> bool:
    return signature.output(feedback.output).dtype == signature.input(feedback.input).dtype


class _Graph:
    """Nodes and constants under construction; names are numbers, because the model's own names may be arbitrary."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.feeds: dict[str, tuple[str, str]] = {}
        self.results: dict[str, str] = {}
        self._widened: dict[str, str] = {}
        self._n = 0

    def fresh(self) -> str:
        self._n += 1
        return f"v{self._n}"

    def node(self, op_type: str, inputs: Sequence[str], **attributes: int | onnx.TensorProto) -> str:
        node = helper.make_node(op_type, list(inputs), [self.fresh()])
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return str(node.output[0])

    def constant(self, array: NDArray[Any]) -> str:
        name = self.fresh()
        self.stored.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, values: Iterable[int]) -> str:
        return self.constant(np.array(list(values), np.int64))

    def feed(self, kind: str, port: Port) -> str:
        for name, known in self.feeds.items():
            if known == (kind, port.name):
                return self._widened[name]
        name = self.fresh()
        self.feeds[name] = (kind, port.name)
        self.inputs.append(_info(name, port))
        wide = self.node("Cast", [name], to=TensorProto.FLOAT) if port.dtype.name == _BFLOAT16 else name
        self._widened[name] = wide
        return wide

    def result(self, value: str, port: Port) -> None:
        # The Cast also gives a result its own name when it is a graph input.
        name = self.node("Cast", [value], to=element_type(port))
        self.outputs.append(_info(name, port))
        self.results[name] = port.name

    def slice(self, value: str, axis: int, start: str, stop: str) -> str:
        return self.node("Slice", [value, start, stop, self.integers([axis])])

    def cut(self, value: str, cut: Cut) -> str:
        """Take the range of a cut and keep its axis."""
        start, stop = cut.bounds
        return self.slice(
            value, cut.axis, self.integers([start]), self.integers([_END if stop is None else stop])
        )

    def size(self, value: str, axis: int) -> str:
        return self.node("Shape", [value], start=axis, end=axis + 1)

    def serialized(self) -> bytes | None:
        """Return the model without inputs that no node reads; None when there is nothing to do."""
        if not self.nodes:
            return None
        read = {name for node in self.nodes for name in node.input}
        self.inputs = [i for i in self.inputs if i.name in read]
        self.feeds = {name: source for name, source in self.feeds.items() if name in read}
        graph = helper.make_graph(self.nodes, "update", self.inputs, self.outputs, self.stored)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )
        return bytes(model.SerializeToString(deterministic=True))


def _info(name: str, port: Port) -> onnx.ValueInfoProto:
    """Declare the rank only: sizes may change from step to step."""
    rank = None if port.shape is None else [None] * len(port.shape)
    return helper.make_tensor_value_info(name, element_type(port), rank)


def element_type(port: Port) -> int:
    """Return the ONNX element type of a port."""
    return int(helper.np_dtype_to_tensor_dtype(port.dtype))


def _fed(graph: _Graph, feedback: Feedback, value: str, source: Port, target: Port) -> str:
    for cut in feedback.select:
        value = graph.cut(value, cut)
    dropped = [c.axis for c in feedback.select if c.index is not None]
    if dropped:
        value = graph.node("Squeeze", [value, graph.integers(dropped)])
    if feedback.expand:
        value = graph.node("Unsqueeze", [value, graph.integers(feedback.expand)])
    if feedback.is_scaled:
        wide = TensorProto.DOUBLE if source.dtype == np.float64 else TensorProto.FLOAT
        value = graph.node("Cast", [value], to=wide)
        value = graph.node("Mul", [value, _factor(graph, feedback, feedback.scale, value, wide)])
        value = graph.node("Add", [value, _factor(graph, feedback, feedback.offset, value, wide)])
    narrow = target.dtype.name == _BFLOAT16
    value = graph.node("Cast", [value], to=TensorProto.BFLOAT16 if narrow else element_type(target))
    return graph.node("Cast", [value], to=TensorProto.FLOAT) if narrow else value


def _factor(graph: _Graph, feedback: Feedback, numbers: tuple[float, ...], value: str, wide: int) -> str:
    """Store a scalar, or a vector along the last axis or `along`, followed by the axes of 1 that it needs."""
    array = np.array(numbers, np.float64 if wide == TensorProto.DOUBLE else np.float32)
    if len(numbers) == 1:
        return graph.constant(array.reshape(()))
    factor = graph.constant(array)
    if feedback.along is None:
        return factor
    behind = graph.node("Shape", [graph.node("Shape", [value], start=feedback.along + 1)])
    one = numpy_helper.from_array(np.ones(1, np.int64))
    ones = graph.node("ConstantOfShape", [behind], value=one)
    shape = graph.node("Concat", [graph.integers([len(numbers)]), ones], axis=0)
    return graph.node("Reshape", [factor, shape])


def _appended(graph: _Graph, current: str, block: str, axis: int, mode: str) -> str:
    whole = graph.node("Concat", [current, block], axis=axis)
    if mode == "grow":
        return whole
    return graph.slice(whole, axis, graph.size(block, axis), graph.integers([_END]))


def _filled(graph: _Graph, fill: Fill, current: str, target: Port) -> str:
    before = graph.node("Shape", [current], start=0, end=fill.axis)
    behind = graph.node("Shape", [current], start=fill.axis + 1)
    shape = graph.node("Concat", [before, graph.integers([fill.length]), behind], axis=0)
    wide = np.dtype(np.float32) if target.dtype.name == _BFLOAT16 else target.dtype
    block = graph.node("Expand", [graph.constant(np.array(fill.value, wide)), shape])
    return _appended(graph, current, block, fill.axis, fill.mode)


def _written(graph: _Graph, feedback: Feedback, base: str, current: str, fed: str) -> str:
    """Write the fed array into `base`, into which other feedbacks of the same input may have written before."""
    into = feedback.into
    if into is None:
        return fed if feedback.axis is None else _appended(graph, current, fed, feedback.axis, feedback.mode)
    if into.index is not None:
        fed = graph.node("Unsqueeze", [fed, graph.integers([into.axis])])
    if feedback.axis is not None:
        fed = _appended(graph, graph.cut(current, into), fed, feedback.axis, feedback.mode)
    start, stop = into.bounds
    pieces = [fed]
    if start != 0:
        pieces.insert(0, graph.cut(base, Cut(axis=into.axis, start=0, stop=start)))
    if stop is not None:
        pieces.append(graph.cut(base, Cut(axis=into.axis, start=stop)))
    return graph.node("Concat", pieces, axis=into.axis)
