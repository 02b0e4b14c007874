"""The signature of a model: name, type and shape of each graph input and output, read without a runtime.

Never imports onnxruntime.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from tqs_passes.errors import InputError, one_line

#: Operators whose output holds values of their first input.
_SAME_VALUES = frozenset(
    {"Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Flatten"}
)
#: A dimension: its size, or its symbolic name (`?` when it has none).
Dim = int | str


@dataclass(frozen=True, slots=True)
class Port:
    """One graph input or output.

    Parameters
    ----------
    name : str
    dtype : numpy.dtype
        bfloat16 uses the dtype of `ml_dtypes`.
    shape : tuple of int or str, or None
        Sizes, or names of symbolic dimensions; None when the rank is not declared.
    takes_nan : bool
        Whether the graph looks for NaN among the values of this input (operator IsNaN).
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None
    takes_nan: bool = False

    def __str__(self) -> str:
        """Return e.g. ``'context' float32 [batch, 512]``."""
        shape = "of unknown rank" if self.shape is None else shape_text(self.shape)
        return one_line(f"{one_line(repr(self.name), 120)} {self.dtype.name} {shape}")


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """The inputs and outputs of a graph, in graph order, without initializers that are also inputs (IR 3).

    Parameters
    ----------
    inputs, outputs : tuple of Port
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def input(self, name: str) -> Port:
        """Return the input named `name`.

        Raises
        ------
        InputError
            There is no such input.
        """
        return _named(self.inputs, name, "input")

    def output(self, name: str) -> Port:
        """Return the output named `name`.

        Raises
        ------
        InputError
            There is no such output.
        """
        return _named(self.outputs, name, "output")


def _named(ports: tuple[Port, ...], name: str, kind: str) -> Port:
    for port in ports:
        if port.name == name:
            return port
    names = [p.name for p in ports]
    raise InputError(
        f"the model has no {kind} {name!r}",
        todo=close_match(name, names) or f"Its {kind}s are: " + ", ".join(names),
    )


def shape_text(shape: Sequence[Dim]) -> str:
    """Return a shape as text: ``[batch, 512]``."""
    return "[" + ", ".join(str(d) for d in shape) + "]"


def close_match(name: str, known: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` for the known name closest to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {found[0]!r}?" if found else ""


def port(name: str, element_type: int, shape: tuple[Dim, ...] | None) -> Port:
    """Return the port of a tensor with an ONNX element type.

    Raises
    ------
    InputError
        The type has no NumPy counterpart that can be fed: strings, and types narrower than a byte.
    """
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element_type))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"unknown element type {element_type}", where=name, todo="Export the model again"
        ) from error
    narrow = dtype.name in {"int4", "uint4", "int2", "uint2", "float4_e2m1fn"}
    if dtype == np.dtype(object) or narrow:
        kind = onnx.TensorProto.DataType.Name(element_type).lower()
        raise InputError(
            f"a graph input or output of {kind} values is not supported",
            where=name,
            todo="Export the model with another type",
        )
    return Port(name, dtype, shape)


def signature_of(proto: onnx.ModelProto) -> ModelSignature:
    """Return the declared signature of a model.

    Parameters
    ----------
    proto : onnx.ModelProto
        External data is not needed.

    Raises
    ------
    InputError
        An input or output is not a tensor, or has a type that cannot be fed.

    Examples
    --------
    >>> from onnx import parser
    >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 3] y) { y = Neg(x) }'
    >>> print(signature_of(parser.parse_model(text)).inputs[0])
    'x' float32 [N, 3]
    """
    stored = {t.name for t in proto.graph.initializer} | {
        s.values.name for s in proto.graph.sparse_initializer
    }
    checked = _checked_for_nan(proto.graph)
    inputs = tuple(
        replace(_port_of(v), takes_nan=v.name in checked) for v in proto.graph.input if v.name not in stored
    )
    return ModelSignature(inputs, tuple(_port_of(v) for v in proto.graph.output))


def _checked_for_nan(graph: onnx.GraphProto) -> set[str]:
    """Return the values that IsNaN reads, and those that reach it with their values unchanged."""
    found = {name for node in graph.node if node.op_type == "IsNaN" for name in node.input}
    for node in reversed(graph.node) if found else ():
        if node.op_type in _SAME_VALUES and found.intersection(node.output):
            found.add(node.input[0])
    return found


def _port_of(info: onnx.ValueInfoProto) -> Port:
    if not info.type.HasField("tensor_type"):
        raise InputError(
            "a graph input or output that is not a tensor is not supported",
            where=info.name,
            todo="Export the model with tensors only",
        )
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return port(info.name, tensor.elem_type, None)
    # Some exporters write -1 for any size.
    shape: tuple[Dim, ...] = tuple(
        int(d.dim_value) if d.HasField("dim_value") and d.dim_value >= 0 else str(d.dim_param or "?")
        for d in tensor.shape.dim
    )
    return port(info.name, tensor.elem_type, shape)
