"""Computes equal values once: merges nodes with equal operator, inputs and attributes, equal constants, and Identity.

Before → after ::

    Shape(x) ─▶ a ;  Shape(x) ─▶ b              Shape(x) ─▶ a, read instead of b
    one (int64 [1]) ;  axis (int64 [1])         one, read instead of axis
    Identity(x) ─▶ y                            x, read instead of y

Values of an enclosing graph also replace those of a body. Outputs of a graph keep their names. Nodes that draw random
numbers, have bodies or are of other operator sets than ONNX's and onnxruntime's are left alone, and weights are not
merged: a plan names every weight.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, field, replace
from typing import ClassVar

import onnx
from onnx.external_data_helper import uses_external_data

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.graph.random_ops import draws, false_names
from tqs_passes.graph.scope import bodies
from tqs_passes.graph_pass import PassResult
from tqs_passes.transforms.slim.scopes import editable, hidden_names, is_standard, rename_reads

#: Larger constants are not compared.
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class MergeRepeats:
    """The pass (see the module docstring).

    Parameters
    ----------
    weights : frozenset of str
        Initializers that are not merged.
    """

    weights: frozenset[str]

    name: ClassVar[str] = "merge-repeats"

    def apply(self, model: Model) -> PassResult:
        """Return the model in which equal values are computed once, or the model itself if there are none."""
        proto = editable(model.proto)
        hidden = hidden_names(proto.graph)
        work = _Work(model, model.stored_names(self.weights), hidden, false_names(proto.graph) - hidden)
        work.merge(proto.graph, {}, ChainMap())
        return (
            PassResult(replace(model, proto=proto), tuple(work.merged)) if work.merged else PassResult(model)
        )


@dataclass(slots=True)
class _Work:
    model: Model
    weights: frozenset[str]
    hidden: frozenset[str]
    false: frozenset[str]
    merged: list[str] = field(default_factory=list[str])

    def merge(
        self, graph: onnx.GraphProto, renamed: dict[str, str], seen: ChainMap[object, tuple[str, ...]]
    ) -> None:
        """Merge the repeats of a graph and its bodies; `renamed` maps merged values to those read instead."""
        fixed = {value.name for value in graph.output} | {value.name for value in graph.input} | self.hidden
        self._merge_constants(graph, fixed, renamed, seen)
        gone: list[int] = []
        for index, node in enumerate(graph.node):
            rename_reads(node, renamed)
            for _, body in bodies(node):
                self.merge(body, dict(renamed), seen.new_child())
            if self._is_identity(node) and node.output[0] not in fixed and node.input[0] not in self.hidden:
                self._replace(node.output[0], node.input[0], renamed)
                gone.append(index)
                continue
            key = _key(node, self.false)
            if key is None or self.hidden.intersection(node.output):
                continue
            first = seen.setdefault(key, tuple(node.output))
            if first != tuple(node.output) and not fixed.intersection(node.output):
                for old, new in zip(node.output, first, strict=True):
                    self._replace(old, new, renamed)
                gone.append(index)
        for index in reversed(gone):
            del graph.node[index]

    def _merge_constants(
        self,
        graph: onnx.GraphProto,
        fixed: set[str],
        renamed: dict[str, str],
        seen: ChainMap[object, tuple[str, ...]],
    ) -> None:
        gone: list[int] = []
        for index, tensor in enumerate(graph.initializer):
            if tensor.name in self.weights or tensor.name in fixed or uses_external_data(tensor):
                continue
            if tensor.data_type == onnx.TensorProto.STRING or tensor.ByteSize() > _MOST_BYTES:
                continue
            values = tensor_array(tensor, self.model.folder)
            key = (tensor.data_type, tuple(tensor.dims), values.tobytes())
            first = seen.setdefault(key, (tensor.name,))
            if first != (tensor.name,):
                self._replace(tensor.name, first[0], renamed)
                gone.append(index)
        for index in reversed(gone):
            del graph.initializer[index]

    def _is_identity(self, node: onnx.NodeProto) -> bool:
        return is_standard(node) and node.op_type == "Identity" and bool(node.input[0])

    def _replace(self, old: str, new: str, renamed: dict[str, str]) -> None:
        renamed[old] = renamed.get(new, new)
        self.merged.append(old)


def _may_draw(node: onnx.NodeProto, false: frozenset[str]) -> bool:
    """Return whether a node may draw random numbers; `false` are the names of constants that are false."""
    if is_standard(node):
        return draws(node, false)
    return node.domain != "com.microsoft" or "Dropout" in node.op_type or node.op_type == "Sampling"


def _key(node: onnx.NodeProto, false: frozenset[str]) -> object:
    """Return what two nodes of equal values share; None when a node is not compared."""
    if _may_draw(node, false) or any(True for _ in bodies(node)):
        return None
    attributes = sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.attribute)
    shown = tuple(bool(name) for name in node.output)
    return (node.domain, node.op_type, node.overload, tuple(node.input), tuple(attributes), shown)
