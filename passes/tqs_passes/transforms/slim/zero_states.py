"""Leaves out the initial states of recurrent operators that are zero, which is what an absent state means.

Before → after ::

    Shape(x) ─▶ Gather ─▶ Concat ─▶ ConstantOfShape ─▶ LSTM.initial_h        LSTM(X, W, R, B)
    Shape(x) ─▶ … ─▶ Expand(0) ─▶ Unsqueeze ─▶ GRU.initial_h                 GRU(X, W, R, B)

Exporters compute the zeros from the batch size of the input. `DropUnused` then removes the nodes that made them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
from onnx.external_data_helper import uses_external_data

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.graph.scope import bodies
from tqs_passes.graph_pass import PassResult
from tqs_passes.transforms.slim.scopes import editable, hidden_names, is_standard
from tqs_passes.transforms.slim.storage import constant_of

#: Inputs of recurrent operators that mean zero when they are absent.
_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
#: Operators whose output is zero where their first input is: they move, repeat or pick values.
_MOVES = frozenset(
    {"Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Split"}
)
_MOST_VALUES = 1 << 16


@dataclass(frozen=True, slots=True)
class DropZeroStates:
    """The pass (see the module docstring).

    Parameters
    ----------
    weights : frozenset of str
        Initializers that may get other values.
    """

    weights: frozenset[str]

    name: ClassVar[str] = "drop-zero-states"

    def apply(self, model: Model) -> PassResult:
        """Return the model without zero initial states, or the model itself if there are none."""
        proto = editable(model.proto)
        changed: list[str] = []
        unknown = model.stored_names(self.weights) | hidden_names(proto.graph)
        _drop(proto.graph, model, unknown, frozenset(), changed)
        return PassResult(replace(model, proto=proto), tuple(changed)) if changed else PassResult(model)


def _drop(
    graph: onnx.GraphProto, model: Model, unknown: frozenset[str], outer: frozenset[str], changed: list[str]
) -> None:
    given = {value.name for value in graph.input}
    zeros = set(outer)
    for tensor in graph.initializer:
        if tensor.name not in unknown and tensor.name not in given and _is_zero(tensor, model):
            zeros.add(tensor.name)
    for node in graph.node:
        for _, body in bodies(node):
            _drop(body, model, unknown, frozenset(zeros), changed)
        if not is_standard(node):
            continue
        for index in _STATES.get(node.op_type, ()):
            if index < len(node.input) and node.input[index] in zeros:
                changed.append(node.input[index])
                node.input[index] = ""
        while node.input and not node.input[-1] and node.op_type in _STATES:
            del node.input[-1]
        if _makes_zero(node, zeros, model):
            zeros.update(name for name in node.output if name and name not in unknown)


def _makes_zero(node: onnx.NodeProto, zeros: set[str], model: Model) -> bool:
    if node.op_type == "ConstantOfShape":
        return all(_is_zero(a.t, model) for a in node.attribute if a.name == "value")
    tensor = constant_of(node)
    if tensor is not None:
        return _is_zero(tensor, model)
    if node.op_type == "Concat":
        return all(name in zeros for name in node.input)
    return node.op_type in _MOVES and node.input[0] in zeros


def _is_zero(tensor: onnx.TensorProto, model: Model) -> bool:
    if uses_external_data(tensor) or tensor.data_type == onnx.TensorProto.STRING:
        return False
    n = int(np.prod(tensor.dims)) if tensor.dims else 1
    if not 0 < n <= _MOST_VALUES or tensor.data_type not in (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
    ):
        return False
    values = tensor_array(tensor, model.folder)
    return not values.tobytes().strip(b"\0")
