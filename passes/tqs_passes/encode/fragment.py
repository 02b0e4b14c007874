"""Graph fragments that decode a stored weight: stored tensors and nodes, built directly as protobuf.

A fragment is self-contained except for tables that it shares with other fragments, which it refers to by key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tqs_passes.files.wire import field_size

AttributeValue = int | float | str | Sequence[int] | Sequence[float] | onnx.TensorProto


@dataclass(slots=True)
class Fragment:
    """Stored tensors and nodes, in topological order.

    Parameters
    ----------
    prefix : str
        Short, unique prefix of the intermediate names: each name is written twice, so its length costs bytes.
    namespace : str
        Prefix of the names of shared pieces; no other name in the graph starts with it and a dot. Empty in a model of
        short names.
    tensors : list of onnx.TensorProto
    nodes : list of onnx.NodeProto
    shared : dict of str to Fragment
        Fragments that other weights may use as well, keyed by content; written once per file.
    reader : onnx.NodeProto or None
        The node of the model that `reading` replaces, when the weight is not decoded for its reader.
    reading : list of onnx.NodeProto
        The nodes that replace `reader`.
    also : list of onnx.NodeProto
        Further nodes of the model that `reading` replaces.
    domain : str
        An operator set that the file must import additionally, at version 1.
    late : bool
        A shared piece that reads what the model computes: its nodes come right before the first reader.
    """

    prefix: str
    namespace: str = "tqs"
    tensors: list[onnx.TensorProto] = field(default_factory=list[onnx.TensorProto])
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    shared: dict[str, Fragment] = field(default_factory=dict[str, "Fragment"])
    reader: onnx.NodeProto | None = None
    reading: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    also: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    domain: str = ""
    late: bool = False
    _count: int = 0

    @property
    def is_terse(self) -> bool:
        """Whether the model has short names, so that every byte of the graph counts."""
        return not self.namespace

    def store(self, array: NDArray[np.generic], name: str, data_type: int | None = None) -> str:
        """Store an array under `name` as raw data; `data_type` overrides the type of NumPy's dtype."""
        kind = helper.np_dtype_to_tensor_dtype(array.dtype) if data_type is None else data_type
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
        tensor.raw_data = np.ascontiguousarray(array).tobytes()
        self.tensors.append(tensor)
        return name

    def op(
        self,
        op_type: str,
        inputs: Sequence[str],
        *,
        output: str = "",
        name: str = "",
        **attributes: AttributeValue,
    ) -> str:
        """Append a node with one output and return that output's name."""
        if not output:
            output = f"{self.prefix}{_base36(self._count)}"
            self._count += 1
        node = helper.make_node(op_type, list(inputs), [output], name=name or None)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        self.nodes.append(node)
        return output

    def share(self, key: str, piece: Fragment) -> None:
        """Register a shared fragment, and all fragments that it shares, once; they are copied, and `piece` is kept."""
        for name, part in (*piece.shared.items(), (key, piece)):
            if name not in self.shared:
                tensors, nodes = list(part.tensors), list(part.nodes)
                made = Fragment(
                    part.prefix, part.namespace, tensors, nodes, domain=part.domain, late=part.late
                )
                self.shared[name] = made

    def n_bytes(self) -> int:
        """Return the bytes that this fragment adds to a serialized model, without shared pieces."""
        sizes = [t.ByteSize() for t in self.tensors]
        sizes += [n.ByteSize() for n in (*self.nodes, *self.reading)]
        if self.domain:
            sizes.append(helper.make_opsetid(self.domain, 1).ByteSize())
        gone = [*self.also, *([] if self.reader is None else [self.reader])]
        return sum(field_size(n) for n in sizes) - sum(field_size(n.ByteSize()) for n in gone)


#: What the names of stored parts end in after a stem that ends in a dot.
_TERSE = {"quantized": "Q", "scale": "S", "order": "O"}


def part_name(stem: str, end: str) -> str:
    """Return the name of a stored part of a weight.

    >>> part_name("w", "scale"), part_name("a.", "scale")
    ('w_scale', 'a.S')
    """
    return f"{stem}{_TERSE[end]}" if stem.endswith(".") else f"{stem}_{end}"


def node_name(stem: str, end: str) -> str:
    """Return the name of the node that decodes a weight; none after a stem that ends in a dot."""
    return "" if stem.endswith(".") else f"{stem}_{end}"


def _base36(n: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = digits[n % 36]
    while n := n // 36:
        text = digits[n % 36] + text
    return text
