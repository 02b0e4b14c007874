"""Stores tensors that are not weights in fewer bytes, losslessly: masks, maps, index tables, position encodings.

Before → after ::

    mask (float [64, 144, 144] of 0 and -100)       mask_quantized (1 bit a value), mask_values ─▶ … ─▶ mask
    the same mask again                             Identity(mask) ─▶ its name
    Constant(value = int64 [20736]) ─▶ index        index_quantized (12 bits a value) ─▶ … ─▶ index

Readers still read the same names. Every value is restored bit for bit (see `tqs_passes.encode.constant`). A tensor is
left alone if encoding it would not save bytes, if it is small (a shape or an axis, whose values the runtime reads at
load), or if an operator of a quantised model or of another domain reads it. Deterministic; the rest of the graph is not
changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_passes.encode.constant import encode_constant
from tqs_passes.encode.fragment import Fragment
from tqs_passes.encode.planes import MIN_OPSET
from tqs_passes.files.debug_notes import kept_size
from tqs_passes.files.model import Model, without_initializers
from tqs_passes.files.tensors import iter_graphs, tensor_array, tensor_n_bytes
from tqs_passes.files.wire import field_size
from tqs_passes.graph.content import digest
from tqs_passes.graph.names import Names, names_in, opset_of
from tqs_passes.graph_pass import PassResult, Skip

#: Smaller tensors are left alone: shapes and axes, whose values runtimes read at load.
LEAST_BYTES = 1024
#: A larger tensor would not be folded at load, and would be decoded at every call.
MOST_BYTES = 1 << 30
_ENDS = ("value", "values", "first", "quantized", "quantized_1", "quantized_2", "quantized_3")
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_WHOLE_BYTES = frozenset(
    {
        onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE,
        onnx.TensorProto.BOOL, onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16,
        onnx.TensorProto.UINT16, onnx.TensorProto.INT32, onnx.TensorProto.UINT32, onnx.TensorProto.INT64,
        onnx.TensorProto.UINT64,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShrinkConstants:
    """The pass (see module docstring).

    Parameters
    ----------
    weights : frozenset of str
        Initializers to ignore.
    """

    weights: frozenset[str]

    name: ClassVar[str] = "shrink-constants"

    def apply(self, model: Model) -> PassResult:
        """Return the model with its constants encoded, or the model itself if nothing is saved."""
        if opset_of(model.proto) < MIN_OPSET:
            return PassResult(model, (), (Skip("constants", f"the opset is below {MIN_OPSET}"),))
        work = _Work(model, names_in(model), _foreign_reads(model.proto))
        for position, tensor in _constants(model.proto, model.stored_names(self.weights)):
            work.consider(position, tensor)
        if not work.fragments:
            return PassResult(model, (), tuple(work.skipped))
        return PassResult(replace(model, proto=work.result()), tuple(work.fragments), tuple(work.skipped))


def _constants(
    proto: onnx.ModelProto, weights: frozenset[str]
) -> Iterator[tuple[int | None, onnx.TensorProto]]:
    """Yield (index of the Constant node, or None for an initializer; the tensor, under the name that readers use)."""
    for tensor in proto.graph.initializer:
        if tensor.name not in weights:
            yield None, tensor
    for index, node in enumerate(proto.graph.node):
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and len(node.output) == 1:
            for attribute in node.attribute:
                if attribute.name == "value":
                    named = onnx.TensorProto()
                    named.CopyFrom(attribute.t)
                    named.name = node.output[0]
                    yield index, named


@dataclass(slots=True)
class _Work:
    model: Model
    names: Names
    foreign: frozenset[str]
    fragments: dict[str, Fragment] = field(default_factory=dict[str, Fragment])
    shared: dict[str, Fragment] = field(default_factory=dict[str, Fragment])
    skipped: list[Skip] = field(default_factory=list[Skip])
    first: dict[tuple[object, ...], str] = field(default_factory=dict[tuple[object, ...], str])
    gone: set[int] = field(default_factory=set[int])

    def consider(self, position: int | None, tensor: onnx.TensorProto) -> None:
        """Encode one constant if that saves bytes; otherwise record the reason."""
        if tensor.data_type not in _WHOLE_BYTES or not LEAST_BYTES <= tensor_n_bytes(tensor) <= MOST_BYTES:
            return
        if tensor.name in self.foreign:
            self.skipped.append(
                Skip(tensor.name, "read by an operator of a quantised model or another domain")
            )
            return
        values = np.asarray(tensor_array(tensor, self.model.folder))
        key = (tensor.data_type, *tensor.dims, digest(values))
        fragment = self._twin(tensor.name, key) or self._encoded(tensor.name, values)
        before = field_size(kept_size(tensor))
        if position is not None:
            before = field_size(self.model.proto.graph.node[position].ByteSize())
        smaller = fragment is not None and self._added(fragment) < before
        if smaller or position is None:  # a Constant node left in place may come after its duplicate
            self.first.setdefault(key, tensor.name)
        if fragment is None or not smaller:
            return
        self.shared |= {k: v for k, v in fragment.shared.items() if k not in self.shared}
        self.fragments[tensor.name] = fragment
        if position is not None:
            self.gone.add(position)

    def _twin(self, name: str, key: tuple[object, ...]) -> Fragment | None:
        if key not in self.first:
            return None
        fragment = Fragment("")
        fragment.op("Identity", [self.first[key]], output=name)
        return fragment

    def _encoded(self, name: str, values: NDArray[np.generic]) -> Fragment | None:
        prefix = f"{self.names.namespace}.c{len(self.fragments)}"
        stem = name if self.names.taken.isdisjoint(f"{name}_{end}" for end in _ENDS) else prefix
        opset = opset_of(self.model.proto)
        return encode_constant(values, name, stem, f"{prefix}.", self.names.namespace, opset)

    def _added(self, fragment: Fragment) -> int:
        fresh = (piece for key, piece in fragment.shared.items() if key not in self.shared)
        return fragment.n_bytes() + sum(piece.n_bytes() for piece in fresh)

    def result(self) -> onnx.ModelProto:
        """Return the model with every encoded constant replaced."""
        source = self.model.proto
        proto = without_initializers(source)
        graph = proto.graph
        del graph.node[:]
        graph.initializer.extend(t for t in source.graph.initializer if t.name not in self.fragments)
        for piece in (*self.shared.values(), *self.fragments.values()):
            graph.initializer.extend(piece.tensors)
            graph.node.extend(piece.nodes)
        graph.node.extend(n for i, n in enumerate(source.graph.node) if i not in self.gone)
        return proto


def _foreign_reads(proto: onnx.ModelProto) -> frozenset[str]:
    found: set[str] = set()
    for graph in iter_graphs(proto.graph):
        for node in graph.node:
            quantised = node.op_type in _QUANTISED or node.op_type.startswith("QLinear")
            if quantised or node.op_type.endswith("Integer") or node.domain not in ("", "ai.onnx"):
                found.update(node.input)
    return frozenset(found)
