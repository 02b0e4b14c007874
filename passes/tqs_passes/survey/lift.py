"""Moves every stored float tensor to the initializers of the main graph, so that later passes see one kind of weight.

Before → after::

    Constant(value = float[3, 4]) → c                    initializer c
    If(then_branch = { initializer w; MatMul(x, w) })    initializer "<node>/then_branch/w"; MatMul(x, that)
    local function with Constants                        inlined, then as above
    initializer w that is also a graph input (IR 3)      initializer w only: its default is the weight

Only float tensors of two values or more are moved. The model computes the same results, bit for bit: a body may read
any name of the main graph, and every new name is unique in the whole model. External tensors still refer to their file;
no data are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
from onnx import numpy_helper

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs
from tqs_passes.graph.scope import bodies, defined_names, node_label
from tqs_passes.graph_pass import PassResult, Skip
from tqs_passes.weights import Origin

#: Element types of weights.
FLOAT_TYPES = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    }
)
_STANDARD = ("", "ai.onnx")
_FUNCTION_MARK = "tqs.lift.function"
_FIRST_IR_WITHOUT_INPUTS = 4


@dataclass(frozen=True, slots=True)
class Lifted(PassResult):
    """A lifted model, and the origins of its tensors.

    `changed` names the new initializers and the removed graph inputs, and `ir_version` if it rose; `skipped` names the
    stored float tensors that stay in place.

    Parameters
    ----------
    origins : Mapping of str to Origin
        Origin of each float initializer of two values or more.
    """

    origins: Mapping[str, Origin] = field(default_factory=dict[str, Origin])


@dataclass(frozen=True, slots=True)
class Lift:
    """The pass (see the module docstring)."""

    name: ClassVar[str] = "lift"

    def apply(self, model: Model) -> Lifted:
        """Return the lifted model and the origin of each of its float initializers; `model` is not mutated.

        Deterministic. Memory: one copy of the model's in-file tensors if anything is lifted.
        """
        return _lifted(model)


@dataclass(slots=True)
class _Work:
    main: onnx.GraphProto
    taken: set[str]
    origins: dict[str, Origin] = field(default_factory=dict[str, Origin])
    changed: list[str] = field(default_factory=list[str])
    skipped: list[Skip] = field(default_factory=list[Skip])

    def unique(self, wanted: str) -> str:
        name, n = wanted, 1
        while name in self.taken:
            n += 1
            name = f"{wanted}_{n}"
        self.taken.add(name)
        return name

    def store(self, tensor: onnx.TensorProto, name: str, origin: Origin) -> None:
        stored = self.main.initializer.add()
        stored.CopyFrom(tensor)
        stored.name = name
        self.origins[name] = origin
        self.changed.append(name)


def _lifted(model: Model) -> Lifted:
    skipped: list[Skip] = []
    proto = onnx.ModelProto()
    if _calls_functions(model.proto):
        proto = _inlined(model.proto, skipped)
    elif _has_work(model.proto):
        proto.CopyFrom(model.proto)
    else:
        skips = tuple(_stays(model.proto))
        stored = {t.name: Origin.INITIALIZER for t in model.proto.graph.initializer if is_weight_like(t)}
        return Lifted(model, (), skips, stored)
    taken: set[str] = set()
    for graph in iter_graphs(proto.graph):
        taken |= defined_names(graph)
    work = _Work(proto.graph, taken, skipped=skipped)
    work.origins.update({t.name: Origin.INITIALIZER for t in proto.graph.initializer if is_weight_like(t)})
    _lift_main_constants(work)
    for index, node in enumerate(proto.graph.node):
        origin = Origin.FUNCTION if _marked(node) else Origin.BODY
        for attribute, body in bodies(node):
            _hoist(body, f"{node_label(node, index)}/{attribute}", origin, work)
    _drop_initializer_inputs(proto, work)
    _unmark(proto)
    work.skipped.extend(_stays(proto))
    return Lifted(replace(model, proto=proto), tuple(work.changed), tuple(work.skipped), work.origins)


def is_weight_like(tensor: onnx.TensorProto) -> bool:
    """Return whether a stored tensor has a float type and two values or more."""
    return tensor.data_type in FLOAT_TYPES and math.prod(tensor.dims) >= 2


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the dense float tensor of two values or more in a `Constant` node, or None."""
    if (
        node.op_type != "Constant"
        or node.domain not in _STANDARD
        or len(node.output) != 1
        or not node.output[0]
    ):
        return None
    for attribute in node.attribute:
        if attribute.name == "value" and is_weight_like(attribute.t):
            tensor: onnx.TensorProto = attribute.t
            return tensor
        if attribute.name == "value_floats" and len(attribute.floats) >= 2:
            return numpy_helper.from_array(np.array(attribute.floats, np.float32))
    return None


def _has_work(proto: onnx.ModelProto) -> bool:
    graph = proto.graph
    stored = {t.name for t in graph.initializer}
    if any(value.name in stored for value in graph.input):
        return True
    if any(constant_tensor(node) is not None for inner in iter_graphs(graph) for node in inner.node):
        return True
    inner_graphs = (inner for inner in iter_graphs(graph) if inner is not graph)
    return any(is_weight_like(tensor) for inner in inner_graphs for tensor in inner.initializer)


def _calls_functions(proto: onnx.ModelProto) -> bool:
    functions = {(f.domain, f.name) for f in proto.functions}
    if not functions:
        return False
    return any((n.domain, n.op_type) in functions for graph in iter_graphs(proto.graph) for n in graph.node)


def _inlined(proto: onnx.ModelProto, skipped: list[Skip]) -> onnx.ModelProto:
    marked = onnx.ModelProto()
    marked.CopyFrom(proto)
    for function in marked.functions:
        for node in function.node:
            node.metadata_props.add(key=_FUNCTION_MARK, value="1")
    try:
        marked = onnx.inliner.inline_local_functions(marked)
    except (RuntimeError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        why = f"they cannot be inlined ({type(error).__name__}); weights inside them are not seen"
        skipped.append(Skip("local functions", why))
        return marked
    left = {(f.domain, f.name) for f in marked.functions}
    calls = [n for graph in iter_graphs(marked.graph) for n in graph.node if (n.domain, n.op_type) in left]
    for domain, name in sorted({(n.domain, n.op_type) for n in calls}):
        why = (
            "local function of another opset than the model's is not inlined; weights inside it are not seen"
        )
        skipped.append(Skip(f"{domain}.{name}", why))
    return marked


def _marked(node: onnx.NodeProto) -> bool:
    return any(entry.key == _FUNCTION_MARK for entry in node.metadata_props)


def _unmark(proto: onnx.ModelProto) -> None:
    nodes = [n for graph in iter_graphs(proto.graph) for n in graph.node]
    nodes += [n for function in proto.functions for n in function.node]
    for node in nodes:
        if _marked(node):
            kept = [entry for entry in node.metadata_props if entry.key != _FUNCTION_MARK]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)


def _lift_main_constants(work: _Work) -> None:
    stored = {tensor.name for tensor in work.main.initializer}
    lifted: list[int] = []
    for index, node in enumerate(work.main.node):
        tensor = constant_tensor(node)
        if tensor is None or node.output[0] in stored:
            continue
        work.store(tensor, node.output[0], Origin.FUNCTION if _marked(node) else Origin.CONSTANT)
        stored.add(node.output[0])
        lifted.append(index)
    for index in reversed(lifted):
        del work.main.node[index]


def _hoist(body: onnx.GraphProto, path: str, origin: Origin, work: _Work) -> None:
    """Move the float tensors of a body, and of the bodies inside it, to the main graph."""
    inputs = {value.name for value in body.input}
    renamed: dict[str, str] = {}
    stored: list[int] = []
    for index, tensor in enumerate(body.initializer):
        if not is_weight_like(tensor):
            continue
        if tensor.name in inputs:
            work.skipped.append(Skip(f"{path}/{tensor.name}", "it is the default of an input of the body"))
            continue
        renamed[tensor.name] = work.unique(f"{path}/{tensor.name}")
        work.store(tensor, renamed[tensor.name], origin)
        stored.append(index)
    constants: list[int] = []
    for index, node in enumerate(body.node):
        tensor = constant_tensor(node)
        if tensor is None or node.output[0] in renamed or node.output[0] in inputs:
            continue
        renamed[node.output[0]] = work.unique(f"{path}/{node.output[0]}")
        work.store(tensor, renamed[node.output[0]], Origin.FUNCTION if _marked(node) else origin)
        constants.append(index)
    for index in reversed(stored):
        del body.initializer[index]
    for index in reversed(constants):
        del body.node[index]
    _rename(body, renamed)
    for index, node in enumerate(body.node):
        inner_origin = Origin.FUNCTION if _marked(node) else origin
        for attribute, inner in bodies(node):
            _hoist(inner, f"{path}/{node_label(node, index)}/{attribute}", inner_origin, work)


def _rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Rename the values that a body reads; a body's own output keeps its name through an Identity."""
    if not renamed:
        return
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]
        for _, inner in bodies(node):
            hidden = defined_names(inner)
            _rename(inner, {old: new for old, new in renamed.items() if old not in hidden})
    returned = {value.name for value in graph.output} & renamed.keys()
    for name in sorted(returned):
        graph.node.append(onnx.helper.make_node("Identity", [renamed[name]], [name]))
    stale = [
        i for i, value in enumerate(graph.value_info) if value.name in renamed and value.name not in returned
    ]
    for index in reversed(stale):
        del graph.value_info[index]


def _drop_initializer_inputs(proto: onnx.ModelProto, work: _Work) -> None:
    stored = {tensor.name for tensor in proto.graph.initializer}
    doubled = [index for index, value in enumerate(proto.graph.input) if value.name in stored]
    known = set(work.changed)
    work.changed.extend(n for i in doubled if (n := proto.graph.input[i].name) not in known)
    for index in reversed(doubled):
        del proto.graph.input[index]
    if proto.ir_version < _FIRST_IR_WITHOUT_INPUTS:
        proto.ir_version = _FIRST_IR_WITHOUT_INPUTS
        work.changed.append("ir_version")


def _stays(proto: onnx.ModelProto) -> list[Skip]:
    """Return the stored tensors that no pass can treat as weights."""
    skips: list[Skip] = []
    for graph in iter_graphs(proto.graph):
        for sparse in graph.sparse_initializer:
            skips.append(Skip(sparse.values.name, "sparse initializer: stored unchanged"))
        for index, node in enumerate(graph.node):
            if node.op_type != "Constant":
                continue
            kinds = {attribute.name for attribute in node.attribute}
            strings = any(
                a.name == "value" and a.t.data_type == onnx.TensorProto.STRING for a in node.attribute
            )
            what = node.output[0] if node.output else node_label(node, index)
            if "sparse_value" in kinds:
                skips.append(Skip(what, "sparse constant: stored unchanged"))
            elif strings or kinds & {"value_string", "value_strings"}:
                skips.append(Skip(what, "constant of strings: not a weight"))
    return skips
