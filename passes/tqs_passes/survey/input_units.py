"""Read the units of a model input from the graph: the mean and deviation by which the model normalises it.

Every element of a tensor behind the input is tracked as ``gain · input[index] + offset`` while only its place or its
affine map changes ::

    input ─Sub mean─▶─Div deviation─▶─Gather, Transpose, Reshape …─▶ anything else
    y = (x - m) / d          gain = 1 / d, offset = -m / d           mean m, deviation d of those elements

What the model feeds to its first learned operator is taken to have mean 0 and deviation 1; a BatchNormalization states
both itself. An input whose own mean the model subtracts (a reversible instance normalisation, LayerNormalization …) may
come at any scale.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array

Floats = NDArray[np.float64]

_OWN = frozenset(
    {"InstanceNormalization", "LayerNormalization", "GroupNormalization", "MeanVarianceNormalization"}
)
#: Inputs with more values than this are not tracked.
_MOST_VALUES = 1 << 24
_MOST_NODES = 200


@dataclass(frozen=True, slots=True, eq=False)
class InputUnits:
    """The units of one input.

    Parameters
    ----------
    mean, deviation : float64 array
        Of the shape asked for; 0 and 1 where the graph states nothing.
    is_stated : bool
        Whether the graph states them for at least one element.
    is_free : bool
        Whether the model normalises the input by its own statistics, so that any scale will do.
    """

    mean: Floats
    deviation: Floats
    is_stated: bool
    is_free: bool


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """Elements of the input: y = gain · input[index] + offset; `is_scaled` once that states units."""

    index: NDArray[np.int64]
    gain: Floats
    offset: Floats
    is_scaled: bool = False

    def moved(self, index: tuple[slice | NDArray[Any], ...]) -> _View:
        return _View(self.index[index], self.gain[index], self.offset[index], self.is_scaled)


def input_units(model: Model, name: str, shape: tuple[int, ...]) -> InputUnits:
    """Return the units of an input (see the module docstring).

    Parameters
    ----------
    model : Model
        Only its main graph is read.
    name : str
        A float input.
    shape : tuple of int
        Its shape, with the batch axis if it has one.
    """
    mean, deviation = np.zeros(shape), np.ones(shape)
    n = int(np.prod(shape, dtype=np.int64))
    if not 0 < n <= _MOST_VALUES:
        return InputUnits(mean, deviation, False, False)
    graph = _Graph(model)
    known = np.zeros(n, bool)
    is_free = False
    start = _View(np.arange(n).reshape(shape), np.ones(shape), np.zeros(shape))
    queue = deque([(name, start)])
    for _ in range(_MOST_NODES):
        if not queue:
            break
        tensor, view = queue.popleft()
        is_free = is_free or (not view.is_scaled and graph.normalises(tensor))
        ends = False
        for node in graph.readers[tensor]:
            stated = graph.stated_by(node, tensor, view)
            following = {} if stated is not None else graph.followed(node, tensor, view)
            queue.extend(following.items())
            ends = ends or (stated is None and not following)
            if stated is not None:
                _fill(stated, known, mean, deviation)
        if ends and view.is_scaled:
            _fill((view.index, -view.offset, np.ones_like(view.gain), view.gain), known, mean, deviation)
    return InputUnits(mean, deviation, bool(known.any()), is_free)


_Stated = tuple[NDArray[np.int64], Floats, Floats, Floats]


def _fill(stated: _Stated, known: NDArray[np.bool_], mean: Floats, deviation: Floats) -> None:
    """Set (mean, deviation) = (centre, spread) / gain for the elements that are not known yet."""
    index = stated[0].ravel()
    centre, spread, gain = (part.ravel() for part in stated[1:])
    usable = (gain != 0) & np.isfinite(gain) & np.isfinite(centre) & ~known[index]
    index, gain = index[usable], gain[usable]
    mean.reshape(-1)[index] = centre[usable] / gain
    deviation.reshape(-1)[index] = spread[usable] / np.abs(gain)
    known[index] = True


class _Graph:
    """The main graph of a model, by the tensors that its nodes read."""

    def __init__(self, model: Model) -> None:
        graph = model.proto.graph
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._tensors = {t.name: t for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
        self._folder = model.folder

    def constant(self, name: str) -> NDArray[Any] | None:
        if name not in self._tensors:
            return None
        array = tensor_array(self._tensors[name], self._folder)
        return array.astype(np.float64) if array.dtype.kind in "fV" else array

    def normalises(self, tensor: str) -> bool:
        """Whether a tensor's own statistics are subtracted from it."""
        for node in self.readers[tensor]:
            if node.op_type in _OWN and node.input[0] == tensor:
                return True
            if node.op_type == "ReduceMean":
                means = {node.output[0]}
                if any(r.op_type == "Sub" and r.input[0] == tensor for m in means for r in self.readers[m]):
                    return True
        return False

    def stated_by(self, node: onnx.NodeProto, tensor: str, view: _View) -> _Stated | None:
        """Return what a BatchNormalization that reads the view states of it: its running mean and variance."""
        if node.op_type != "BatchNormalization" or node.input[0] != tensor or view.index.ndim < 2:
            return None
        mean, variance = self.constant(node.input[3]), self.constant(node.input[4])
        if mean is None or variance is None or mean.shape != view.index.shape[1:2]:
            return None
        shape = (1, -1, *([1] * (view.index.ndim - 2)))
        spread = np.sqrt(np.maximum(variance, 0) + _attribute(node, "epsilon", 1e-5)).reshape(shape)
        centre = mean.reshape(shape) - view.offset
        return view.index, centre, np.broadcast_to(spread, view.gain.shape), view.gain

    def followed(self, node: onnx.NodeProto, tensor: str, view: _View) -> dict[str, _View]:
        """Return the views behind a node, by output; empty if the node does more than move and scale."""
        op, domain = node.op_type, node.domain
        if domain not in ("", "ai.onnx"):
            return {}
        if op in ("Add", "Sub", "Mul", "Div"):
            found = self._affine(node, tensor, view)
        elif node.input[0] != tensor:
            return {}
        elif op == "Split":
            return self._split(node, view)
        else:
            try:
                found = self._moved(node, view)
            except (ValueError, IndexError):  # a shape that holds only for other sizes of the input
                return {}
        return {} if found is None else {node.output[0]: found}

    def _affine(self, node: onnx.NodeProto, tensor: str, view: _View) -> _View | None:
        first, second = node.input
        swapped = second == tensor
        other = self.constant(first if swapped else second)
        if first == second or other is None or other.dtype.kind not in "fiu":
            return None
        try:
            c = np.broadcast_to(other.astype(np.float64), view.gain.shape)
        except ValueError:
            return None
        index, gain, offset = view.index, view.gain, view.offset
        if node.op_type == "Add":
            return _View(index, gain, offset + c, view.is_scaled)
        if node.op_type == "Sub":
            return _View(index, -gain, c - offset, True) if swapped else _View(index, gain, offset - c, True)
        # A vector that only scales may be a learned gate; one number, or a scale behind a centre, is a unit.
        is_scaled = view.is_scaled or bool(c.size and (c == c.flat[0]).all())
        if node.op_type == "Mul":
            return _View(index, gain * c, offset * c, is_scaled)
        if swapped or not c.all():
            return None
        return _View(index, gain / c, offset / c, is_scaled)

    def _split(self, node: onnx.NodeProto, view: _View) -> dict[str, _View]:
        axis = int(_attribute(node, "axis", 0))
        sizes = _integers(node, "split")
        if len(node.input) > 1 and node.input[1]:
            given = self.constant(node.input[1])
            if given is None:
                return {}
            sizes = given.tolist()
        size, n = view.index.shape[axis], len(node.output)
        sizes = sizes or [-(-size // n)] * n
        ends = np.minimum(np.cumsum(sizes), size)
        parts = np.split(np.arange(size), ends[:-1])
        places = (slice(None),) * (axis % view.index.ndim)
        return {name: view.moved((*places, part)) for name, part in zip(node.output, parts, strict=False)}

    def _moved(self, node: onnx.NodeProto, view: _View) -> _View | None:
        op, rank = node.op_type, view.index.ndim
        if op in ("Identity", "Dropout") or (op == "Cast" and _attribute(node, "to", 1) in (1, 10, 11, 16)):
            return view
        if op == "Transpose":
            order = _integers(node, "perm") or list(range(rank))[::-1]
            return _shaped(view, lambda a: a.transpose(order))
        if op == "Flatten":
            axis = int(_attribute(node, "axis", 1))
            rows = int(np.prod(view.index.shape[:axis], dtype=np.int64))
            return _shaped(view, lambda a: a.reshape(rows, -1))
        if op in ("Squeeze", "Unsqueeze", "Reshape", "Gather", "Slice"):
            operands = [self.constant(name) if name else None for name in node.input[1:]]
            if any(o is None and name for o, name in zip(operands, node.input[1:], strict=True)):
                return None
            return _with_operands(node, view, operands)
        return None


def _with_operands(node: onnx.NodeProto, view: _View, operands: list[NDArray[Any] | None]) -> _View | None:
    op, rank = node.op_type, view.index.ndim
    first = operands[0] if operands else None
    if op == "Reshape":
        if first is None:
            return None
        wanted = [view.index.shape[i] if s == 0 else int(s) for i, s in enumerate(first.ravel())]
        return _shaped(view, lambda a: a.reshape(wanted))
    if op == "Gather":
        if first is None:
            return None
        axis = int(_attribute(node, "axis", 0)) % rank
        return view.moved((*(slice(None),) * axis, first))
    if op == "Slice":
        return _sliced(node, view, operands)
    axes = [int(a) for a in (first.ravel() if first is not None else _integers(node, "axes"))]
    if op == "Squeeze":
        chosen = tuple(axes) or tuple(i for i, s in enumerate(view.index.shape) if s == 1)
        return _shaped(view, lambda a: a.squeeze(chosen))
    return _shaped(view, lambda a: np.expand_dims(a, tuple(axes)))


def _sliced(node: onnx.NodeProto, view: _View, operands: list[NDArray[Any] | None]) -> _View | None:
    if not operands:  # opset 9: attributes
        starts, stops, axes = (_integers(node, key) for key in ("starts", "ends", "axes"))
        steps: list[int] = []
    else:
        starts, stops, axes, steps = (
            [] if o is None else [int(v) for v in o.ravel()]
            for o in (*operands, *[None] * (4 - len(operands)))
        )
    cuts = [slice(None)] * view.index.ndim
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        step = steps[i] if steps else 1
        if step < 0:
            return None
        cuts[axes[i] if axes else i] = slice(start, stop, step)
    return view.moved(tuple(cuts))


def _shaped(view: _View, change: Callable[[NDArray[Any]], NDArray[Any]]) -> _View:
    return _View(change(view.index), change(view.gain), change(view.offset), view.is_scaled)


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for a in node.attribute:
        if a.name == name:
            return float(a.i if a.type == onnx.AttributeProto.INT else a.f)
    return default


def _integers(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), [])
