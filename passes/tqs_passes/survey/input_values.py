"""Read the values that a model input may take from the operators that read it: indices, choices and bounds.

Gather(table [n, …], x), OneHot(x, n)     whole numbers from 0 to n - 1
Equal(x, c)                               the numbers c that it is compared with
Clip(x, low, high)                        from low to high
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
import onnx

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs, tensor_array

_MOVERS = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
_MOST_NODES = 200


@dataclass(frozen=True, slots=True)
class InputValues:
    """What the readers of an input say about its values; None or empty where they say nothing.

    Parameters
    ----------
    below : int or None
        It is used as an index, whose values are 0 to below - 1.
    choices : tuple of float
        Numbers that it is compared with.
    low, high : float or None
        Bounds to which it is clipped.
    """

    below: int | None = None
    choices: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None


def input_values(model: Model, name: str) -> InputValues:
    """Return what the readers of an input say, also those inside bodies and behind nodes that only move values.

    Parameters
    ----------
    model : Model
    name : str
    """
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    tensors: dict[str, onnx.TensorProto] = {}
    for graph in iter_graphs(model.proto.graph):
        tensors |= {t.name: t for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                tensors[node.output[0]] = node.attribute[0].t
            for read in dict.fromkeys(node.input):
                readers[read].append(node)

    def numbers(tensor: str) -> list[float]:
        if tensor not in tensors:
            return []
        array = tensor_array(tensors[tensor], model.folder)
        return [float(v) for v in array.ravel()[:64]] if array.dtype.kind in "fiub" else []

    sizes: list[int] = []
    choices: dict[float, None] = {}
    lows: list[float] = []
    highs: list[float] = []
    queue, seen = deque([name]), {name}
    while queue and len(seen) <= _MOST_NODES:
        tensor = queue.popleft()
        for node in readers[tensor]:
            op, inputs = node.op_type, [*node.input, "", "", ""]
            if op in (*_MOVERS, "Gather") and inputs[0] == tensor:
                queue.extend(o for o in node.output if o not in seen)
                seen.update(node.output)
            elif op == "Gather" and inputs[1] == tensor and inputs[0] in tensors:
                shape = list(tensors[inputs[0]].dims)
                sizes.append(shape[_integer(node, "axis", 0)])
            elif op == "OneHot" and inputs[0] == tensor:
                sizes += [int(v) for v in numbers(inputs[1])]
            elif op == "Equal":
                other = inputs[1] if inputs[0] == tensor else inputs[0]
                choices |= dict.fromkeys(numbers(other))
            elif op == "Clip" and inputs[0] == tensor:
                bounds = {a.name: a.f for a in node.attribute}
                lows += numbers(inputs[1]) or ([bounds["min"]] if "min" in bounds else [])
                highs += numbers(inputs[2]) or ([bounds["max"]] if "max" in bounds else [])
    return InputValues(
        min((s for s in sizes if s > 0), default=None),
        tuple(c for c in choices if np.isfinite(c)),
        max((v for v in lows if np.isfinite(v)), default=None),
        min((v for v in highs if np.isfinite(v)), default=None),
    )


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
