"""Computes at once what the runtime would compute from shapes and constants alone, and stores the results.

Before → after, for x [batch, 60, 32] ::

    Shape(x) ─▶ Gather(1) ─▶ Unsqueeze ─▶ …              60, an initializer
    Shape(x) ─▶ Gather(0) ─▶ Concat(…, 4, 8) ─▶ Reshape   Reshape(x, [-1, 60, 4, 8])
    Shape(x) ─▶ Gather(0) ─▶ Concat(…, 32) ─▶ Expand      Expand(x, [1, 60, 32])

A shape argument with one unknown size gets -1 there (Reshape), or 1 where the size stays that of the operand (Expand).
Sizes come from the inputs and operators (`shapes.inferred`), not from what the file declares about inner values.
Integers and booleans are computed by ONNX's reference operators; floats only by operators whose results IEEE 754 fixes
(+ - × ÷ √ and conversions), and only few values, so that the runtime finds the same bits. Results that would take more
bytes than their node stay computed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs, shortest, tensor_array
from tqs_passes.graph.names import names_in, opset_of
from tqs_passes.graph.scope import bodies, defined_names
from tqs_passes.graph_pass import PassResult, Skip
from tqs_passes.transforms.slim.scopes import editable, hidden_names, is_standard
from tqs_passes.transforms.slim.shapes import inferred
from tqs_passes.transforms.slim.storage import constant_of

#: Operators computed on integers and booleans, and those on floats too.
_WHOLE = frozenset(
    {
        "And", "Cast", "Concat", "ConstantOfShape", "Equal", "Expand", "Gather", "Greater", "GreaterOrEqual",
        "Identity", "Less", "LessOrEqual", "Max", "Min", "Not", "Or", "Range", "ReduceProd", "Reshape", "Slice",
        "Squeeze", "Transpose", "Unsqueeze", "Where", "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Floor", "Ceil", "Sqrt",
    }
)  # fmt: skip
_FLOAT = frozenset(
    {
        "Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where",
        "Equal", "Greater", "Less", "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Floor", "Ceil", "Sqrt",
    }
)  # fmt: skip
#: Maximum number of values computed, of floats computed, and of values stored whatever their node takes.
_MOST_VALUES = 4096
_MOST_FLOATS = 64
_ALWAYS_STORED = 8
_TYPES = frozenset({"int64", "int32", "bool", "float32"})

Array = NDArray[np.generic]
Dims = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class FoldStatic:
    """The pass (see the module docstring).

    Parameters
    ----------
    weights : frozenset of str
        Initializers that may get other values.
    """

    weights: frozenset[str]

    name: ClassVar[str] = "fold-static"

    def apply(self, model: Model) -> PassResult:
        """Return the model with static results stored, or the model itself if there are none."""
        proto = editable(model.proto)
        shapes = inferred(proto)
        if shapes is None:
            return PassResult(model, (), (Skip("shapes", "ONNX cannot infer the shapes of this model"),))
        unknown = model.stored_names(self.weights) | hidden_names(proto.graph)
        work = _Work(model, unknown, opset_of(proto), names_in(model).namespace)
        work.dims = [_dims(graph) for graph in iter_graphs(shapes.graph)]
        work.fold(proto.graph, {}, {}, {})
        return (
            PassResult(replace(model, proto=proto), tuple(work.changed))
            if work.changed
            else PassResult(model)
        )


def _dims(graph: onnx.GraphProto) -> dict[str, Dims]:
    """Return the sizes of every value with a known rank: a number, a symbol, or None."""
    found: dict[str, Dims] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = tuple(
                int(d.dim_value) if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim
            )
    return found


@dataclass(slots=True)
class _Work:
    model: Model
    unknown: frozenset[str]
    opset: int
    space: str
    dims: list[dict[str, Dims]] = field(default_factory=list[dict[str, Dims]])
    scope: int = -1
    changed: list[str] = field(default_factory=list[str])
    arguments: dict[tuple[int, ...], str] = field(default_factory=dict[tuple[int, ...], str])

    def fold(
        self,
        graph: onnx.GraphProto,
        known: dict[str, Array],
        partly: dict[str, tuple[int | None, ...]],
        outer: Mapping[str, Dims],
    ) -> None:
        """Fold a graph and its bodies; `known` holds the values and `partly` the integer lists known so far."""
        self.scope += 1  # graphs are visited in the order of `iter_graphs`
        own = defined_names(graph)
        for name in own:  # they hide those of the enclosing graphs
            known.pop(name, None)
            partly.pop(name, None)
        scope = self.scope
        dims = {name: sizes for name, sizes in outer.items() if name not in own} | self.dims[scope]
        for tensor in graph.initializer:
            values = self._small(tensor)
            if values is not None and tensor.name not in {v.name for v in graph.input}:
                known[tensor.name] = values
            dims.setdefault(tensor.name, tuple(tensor.dims))
        returned = {value.name for value in graph.output}
        gone: list[int] = []
        fresh: list[onnx.TensorProto] = []
        for index, node in enumerate(graph.node):
            for _, body in bodies(node):
                self.fold(body, dict(known), dict(partly), dims)
            if not is_standard(node):
                continue
            tensor = constant_of(node)
            values = None if tensor is None else self._small(tensor)
            if values is not None:
                known[node.output[0]] = values
                continue
            result = self._result(node, known, partly, dims)
            if result is not None and node.output[0] not in self.unknown:
                known[node.output[0]] = result
                if node.output[0] not in returned and (stored := _stored(node, result)) is not None:
                    fresh.append(stored)
                    gone.append(index)
                    self.changed.append(node.output[0])
                continue
            self._fix_argument(scope, node, known, dims, fresh)
        for index in reversed(gone):
            del graph.node[index]
        graph.initializer.extend(fresh)

    def _small(self, tensor: onnx.TensorProto) -> Array | None:
        if tensor.name in self.unknown or uses_external_data(tensor) or math.prod(tensor.dims) > _MOST_VALUES:
            return None
        if tensor.data_type == onnx.TensorProto.STRING:
            return None
        values = tensor_array(tensor, self.model.folder)
        return values if values.dtype.name in _TYPES else None

    def _result(
        self,
        node: onnx.NodeProto,
        known: Mapping[str, Array],
        partly: dict[str, tuple[int | None, ...]],
        dims: Mapping[str, Dims],
    ) -> Array | None:
        """Return the static value of a node's only output; None when it has none."""
        if len(node.output) != 1 or not node.output[0]:
            return None
        if node.op_type == "Shape":
            sizes = _cut(node, dims.get(node.input[0]))
            if sizes is None:
                return None
            partly[node.output[0]] = sizes
            return _whole(sizes)
        if node.op_type == "Size":
            found = _cut(node, dims.get(node.input[0]))
            return (
                None
                if found is None or None in found
                else np.array(math.prod(s or 0 for s in found), np.int64)
            )
        if node.input and node.input[0] in partly and node.op_type in ("Gather", "Slice"):
            return self._picked(node, known, partly)
        if node.op_type not in _WHOLE or not all(name in known for name in node.input if name):
            return None
        given = {name: known[name] for name in node.input if name}
        return _computed(node, given, self.opset)

    def _picked(
        self,
        node: onnx.NodeProto,
        known: Mapping[str, Array],
        partly: dict[str, tuple[int | None, ...]],
    ) -> Array | None:
        """Return the sizes that a Gather or Slice picks from a shape, if all of these are known."""
        sizes = partly[node.input[0]]
        others = {name: known[name] for name in node.input[1:] if name and name in known}
        if len(others) < len({name for name in node.input[1:] if name}):
            return None
        places = _computed(node, {node.input[0]: np.arange(len(sizes), dtype=np.int64), **others}, self.opset)
        if places is None:
            return None
        picked = [sizes[int(place)] for place in places.reshape(-1)]
        if places.ndim == 1:
            partly[node.output[0]] = tuple(picked)
        if None in picked:
            return None
        return np.array(picked, np.int64).reshape(places.shape)

    def _fix_argument(
        self,
        scope: int,
        node: onnx.NodeProto,
        known: Mapping[str, Array],
        dims: Mapping[str, Dims],
        fresh: list[onnx.TensorProto],
    ) -> None:
        """Give a Reshape or Expand a constant shape, if its result has one that a constant can say."""
        if node.op_type not in ("Reshape", "Expand") or node.input[1] in known:
            return
        before, after = dims.get(node.input[0]), dims.get(node.output[0])
        if after is None:
            return
        target = _reshaped(after) if node.op_type == "Reshape" else _expanded(before, after)
        if target is None or any(a.name == "allowzero" and a.i for a in node.attribute):
            return
        key = (scope, *target)
        if key not in self.arguments:
            self.arguments[key] = f"{self.space}.a{len(self.arguments)}"
            fresh.append(shortest(np.array(target, np.int64), self.arguments[key]))
        node.input[1] = self.arguments[key]
        self.changed.append(node.output[0])


def _cut(node: onnx.NodeProto, dims: Dims | None) -> tuple[int | None, ...] | None:
    """Return the sizes that Shape gives, None for an unknown one."""
    if dims is None:
        return None
    bounds = {a.name: int(a.i) for a in node.attribute}
    sizes = tuple(d if isinstance(d, int) else None for d in dims)
    return sizes[bounds.get("start", 0) : bounds.get("end", len(sizes))]


def _whole(sizes: tuple[int | None, ...]) -> Array | None:
    return None if None in sizes else np.array(sizes, np.int64)


def _reshaped(after: Dims) -> tuple[int, ...] | None:
    """Return the shape argument for a result of these sizes: -1 for one unknown size."""
    unknown = sum(not isinstance(d, int) for d in after)
    if unknown > 1 or 0 in after:
        return None
    return tuple(d if isinstance(d, int) else -1 for d in after)


def _expanded(before: Dims | None, after: Dims) -> tuple[int, ...] | None:
    """Return the shape argument of Expand: 1 where the operand has the size already."""
    if before is None or 0 in after:
        return None
    aligned = (*([1] * (len(after) - len(before))), *before)
    same = [isinstance(d, str) and d == b for d, b in zip(after, aligned, strict=True)]
    if not all(isinstance(d, int) or s for d, s in zip(after, same, strict=True)):
        return None
    return tuple(d if isinstance(d, int) else 1 for d in after)


def _computed(node: onnx.NodeProto, given: Mapping[str, Array], opset: int) -> Array | None:
    """Return the value that ONNX's reference operator computes; None when it is not certain to be the runtime's."""
    if any(v.dtype.kind == "f" for v in given.values()) and (
        node.op_type not in _FLOAT or any(v.size > _MOST_FLOATS for v in given.values())
    ):
        return None
    if node.op_type == "Div" and any(
        np.less_equal(v, 0).any() for v in given.values() if v.dtype.kind == "i"
    ):
        return None  # languages round quotients of negative integers in different ways
    if node.op_type in ("Sqrt", "Floor", "Ceil") and any(v.dtype.kind != "f" for v in given.values()):
        return None
    if node.op_type == "ReduceProd" and not _exact_product(given[node.input[0]]):
        return None
    if node.op_type == "Cast" and _leaves_integers(node, given):
        return None
    if _result_size(node, given) > _MOST_VALUES:
        return None
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.add(domain="", version=opset)
    model.graph.name = "one"
    model.graph.node.append(node)
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in given.items()
    )
    model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    from onnx.reference import ReferenceEvaluator  # takes half a second to import

    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run: Any = ReferenceEvaluator(model).run
            result = run(None, dict(given))[0]
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, NotImplementedError, AttributeError):
        return None  # an operator of this opset that the reference lacks, or arguments that do not fit
    values = np.asarray(result)
    return values if values.dtype.name in _TYPES and values.size <= _MOST_VALUES else None


def _exact_product(values: Array) -> bool:
    """Return whether products of any of these integers fit their type and float64, in which the runtime multiplies."""
    product = math.prod(abs(int(v)) for v in values.reshape(-1) if v)
    return values.dtype.kind == "i" and product <= (2**31 - 1 if values.dtype.itemsize == 4 else 2**53)


def _leaves_integers(node: onnx.NodeProto, given: Mapping[str, Array]) -> bool:
    """Return whether a Cast converts floats that no integer equals, or to a type that is not computed with."""
    to = next((int(a.i) for a in node.attribute if a.name == "to"), 0)
    if to in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return any(v.dtype.kind == "f" and not (np.abs(v) < 2**31).all() for v in given.values())
    return to not in (onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL)


def _result_size(node: onnx.NodeProto, given: Mapping[str, Array]) -> int:
    """Return the number of values of a result that may be much larger than its operands."""
    values = [given[name] for name in node.input if name]
    if node.op_type == "ConstantOfShape":
        return math.prod(int(d) for d in values[0].reshape(-1))
    if node.op_type == "Expand":
        return values[0].size * max(1, math.prod(int(d) for d in values[1].reshape(-1)))
    if node.op_type == "Range":
        start, stop, step = (float(v.reshape(-1)[0]) for v in values)
        return abs(int((stop - start) / step)) + 1 if step else _MOST_VALUES + 1
    return max((v.size for v in values), default=0)


def _stored(node: onnx.NodeProto, values: Array) -> onnx.TensorProto | None:
    """Return the initializer that replaces a node; None when it would take more bytes."""
    tensor = shortest(values, node.output[0])
    if values.size > _ALWAYS_STORED and tensor.ByteSize() > node.ByteSize():
        return None
    return tensor
