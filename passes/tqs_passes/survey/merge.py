"""Merges weights of equal content into one: its readers are those of all copies, and the file stores it once.

Before → after, for w1 and w2 of equal values ::

    w1 ─▶ MatMul        w2 ─▶ MatMul          w1 ─▶ MatMul, MatMul

Copies are rounded alike, so their errors are one error: the merged weight is perturbed everywhere at once, gets one
tier, and costs the bytes of one copy. The model computes the same results, bit for bit. A weight that a graph returns,
and one whose name a body defines again, stays apart. Reads only tensors of equal type and shape, and those completely
only if their first and last values agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx

from tqs_passes.files.model import Model, without_initializers
from tqs_passes.files.tensors import iter_graphs, tensor_array
from tqs_passes.graph import content
from tqs_passes.graph.content import Array
from tqs_passes.graph.scope import defined_names
from tqs_passes.graph_pass import PassResult, Skip


@dataclass(frozen=True, slots=True)
class Merged(PassResult):
    """A model in which equal weights are one; `changed` names the copies, which are gone.

    Parameters
    ----------
    copies : Mapping of str to tuple of str
        The copies merged into each weight that has any, in initializer order.
    """

    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


@dataclass(frozen=True, slots=True)
class MergeEqual:
    """The pass (see the module docstring).

    Parameters
    ----------
    weights : frozenset of str
        Initializers of the lifted model that may be merged.
    """

    weights: frozenset[str]

    name: ClassVar[str] = "merge-equal"

    def apply(self, model: Model) -> Merged:
        """Return the model with every weight stored once; `model` is not mutated."""
        apart = _apart(model.proto.graph)
        skipped: list[Skip] = []
        copies: dict[str, tuple[str, ...]] = {}
        for group in _equal(model, self.weights):
            free = [name for name in group if name not in apart]
            skipped += [Skip(name, apart[name]) for name in group if name in apart]
            if len(free) > 1:
                copies[free[0]] = tuple(free[1:])
        if not copies:
            return Merged(model, (), tuple(skipped))
        first_of = {copy: first for first, found in copies.items() for copy in found}
        return Merged(
            replace(model, proto=_renamed(model.proto, first_of)), tuple(first_of), tuple(skipped), copies
        )


def _apart(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the names that must stay apart, each with the reason."""
    found: dict[str, str] = {}
    for inner in iter_graphs(graph):
        if inner is not graph:
            found.update(dict.fromkeys(defined_names(inner), "a body defines the same name again"))
    for inner in iter_graphs(graph):
        found.update({value.name: "it is an output of a graph" for value in inner.output})
    return found


def _equal(model: Model, names: frozenset[str]) -> Iterable[list[str]]:
    """Yield the names of equal tensors, for each content that occurs more than once, by first tensor."""
    alike: dict[tuple[object, ...], list[onnx.TensorProto]] = {}
    for tensor in model.proto.graph.initializer:
        if tensor.name in names:
            alike.setdefault((tensor.data_type, *tensor.dims), []).append(tensor)
    found: dict[tuple[object, ...], list[str]] = {}
    for shape, group in alike.items():
        by_head: dict[bytes, list[onnx.TensorProto]] = {}
        for tensor in group if len(group) > 1 else ():
            by_head.setdefault(content.head(_values(tensor, model)), []).append(tensor)
        for twins in (t for t in by_head.values() if len(t) > 1):
            for tensor in twins:
                key = (*shape, content.digest(_values(tensor, model)))
                found.setdefault(key, []).append(tensor.name)
    return [group for group in found.values() if len(group) > 1]


def _values(tensor: onnx.TensorProto, model: Model) -> Array:
    return np.asanyarray(tensor_array(tensor, model.folder))


def _renamed(source: onnx.ModelProto, first_of: Mapping[str, str]) -> onnx.ModelProto:
    """Return the model whose nodes, in the main graph and in bodies, read the first of equal tensors."""
    proto = without_initializers(source)
    graph = proto.graph
    graph.initializer.extend(t for t in source.graph.initializer if t.name not in first_of)
    for inner in iter_graphs(graph):
        for node in inner.node:
            for index, name in enumerate(node.input):
                if name in first_of:
                    node.input[index] = first_of[name]
    stale = [i for i, value in enumerate(graph.value_info) if value.name in first_of]
    for index in reversed(stale):
        del graph.value_info[index]
    return proto
