"""Find the normalisation that a graph begins with.

x ─▶ (Cast, Identity, Reshape, …) ─▶ Sub(mean) ─▶ Div(std) ─▶ …       scaled = (x − mean) / std
x ─▶ Mul(1 / std) ─▶ Add(−mean / std) ─▶ …                             the same
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array

#: Operators that hand on the values of their first input.
_SAME = frozenset({"Identity", "Cast", "Dropout", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Flatten"})
_WHERE = "rollout.toml windows.scaler"


def constants_behind(model: Model, name: str, n: int | None) -> tuple[list[float], list[float]]:
    """Return mean and std of the features of an input, as the graph stores them: one of each, or one a feature.

    Parameters
    ----------
    model : Model
    name : str
        The input.
    n : int or None
        Number of features; None: unknown.

    Raises
    ------
    InputError
        No subtraction or division by constants follows the input, or their sizes differ from `n`.
    """
    graph = model.proto.graph
    stored = {t.name: t for t in graph.initializer}
    stored |= {
        node.output[0]: a.t
        for node in graph.node
        if node.op_type == "Constant"
        for a in node.attribute
        if a.name == "value"
    }
    slope, shift = np.ones(1), np.zeros(1)
    moved = scaled = False
    value = name
    while True:
        readers = [node for node in graph.node if value in node.input and node.op_type != "Shape"]
        if len(readers) != 1:
            break
        node = readers[0]
        if node.op_type in _SAME and node.input[0] == value:
            value = node.output[0]
            continue
        constant = _constant(node, value, stored, model, n)
        if constant is None or (node.op_type in ("Sub", "Div") and node.input[0] != value):
            break
        if node.op_type in ("Sub", "Add") and not moved:
            shift = shift - constant if node.op_type == "Sub" else shift + constant
            moved = True
        elif node.op_type in ("Div", "Mul") and not scaled and (constant != 0).all():
            slope, shift = (
                (slope / constant, shift / constant)
                if node.op_type == "Div"
                else (slope * constant, shift * constant)
            )
            scaled = True
        else:
            break
        value = node.output[0]
    if not scaled:
        raise InputError(
            f"no constants of Sub and Div, or Mul and Add, follow input {name!r} in the graph",
            where=_WHERE,
            todo="Give mean and std, or the file of the scaler",
        )
    slope, shift = np.broadcast_arrays(slope, shift)
    return (-shift / slope).tolist(), (1 / slope).tolist()


def _constant(
    node: onnx.NodeProto, value: str, stored: dict[str, onnx.TensorProto], model: Model, n: int | None
) -> NDArray[np.float64] | None:
    """Return the constant operand of a node, as one number or one a feature; None if it has none."""
    if node.op_type not in ("Sub", "Add", "Div", "Mul"):
        return None
    others: Sequence[str] = [i for i in node.input if i != value]
    if len(others) != 1 or others[0] not in stored:
        return None
    array = tensor_array(stored[others[0]], model.folder).astype(np.float64).ravel()
    if array.size != 1 and n is not None and array.size != n:
        raise InputError(
            f"the graph scales the input by {array.size} numbers, but windows.columns names {n} columns",
            where=_WHERE,
            todo="Name the columns that the model was trained on, in their order",
        )
    return array
