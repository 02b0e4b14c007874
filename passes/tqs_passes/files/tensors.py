"""Iterate, measure and read the tensors of a model, wherever they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from tqs_passes.errors import InputError


def iter_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield `graph` and, depth first, the body of every If, Loop and Scan node in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from iter_graphs(attribute.g)
            for body in attribute.graphs:
                yield from iter_graphs(body)


def iter_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of the graph, of its bodies, and of local functions including their bodies."""
    for graph in iter_graphs(proto.graph):
        yield from graph.node
    for function in proto.functions:
        for node in function.node:
            yield node
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    for graph in iter_graphs(body):
                        yield from graph.node


def iter_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor: initializers and tensor attributes of the graph, its bodies and local functions."""
    for graph in iter_graphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        for node in graph.node:
            yield from _attribute_tensors(node)
    for function in proto.functions:
        for node in function.node:
            yield from _attribute_tensors(node)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    for graph in iter_graphs(attribute.g):
                        yield from graph.initializer
                        for inner in graph.node:
                            yield from _attribute_tensors(inner)


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors


#: Fields that hold integers as lists, by element type.
_LISTS: dict[int, str] = {
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.INT32: "int32_data",
    onnx.TensorProto.BOOL: "int32_data",
}


def shortest(values: NDArray[np.generic], name: str) -> onnx.TensorProto:
    """Return a tensor of these values in the form of fewest bytes.

    Protobuf writes an integer of a list in 1 to 10 bytes, and of raw data in the bytes of its type.
    """
    raw = numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
    field = _LISTS.get(raw.data_type)
    if field is None:
        return raw
    listed = onnx.TensorProto(name=name, data_type=raw.data_type, dims=values.shape)
    getattr(listed, field).extend(int(v) for v in values.reshape(-1))
    return listed if listed.ByteSize() < raw.ByteSize() else raw


def external_location(tensor: onnx.TensorProto) -> tuple[str, int, int | None]:
    """Return (location, offset in bytes, length in bytes or None) of a tensor stored externally."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset = int(fields.get("offset") or 0)
        length = int(fields["length"]) if fields.get("length") else None
    except ValueError as error:
        raise InputError(
            "the external data has an offset or length that is not a number",
            where=tensor.name,
            todo="Export the model again",
        ) from error
    return fields.get("location", ""), offset, length


def external_file(tensor: onnx.TensorProto, folder: Path) -> Path:
    """Return the file that holds a tensor's external data.

    Raises
    ------
    InputError
        The location is missing, invalid, or outside the model's folder.
    """
    location, _, _ = external_location(tensor)
    if not location:
        raise InputError(
            "the external data has no location", where=tensor.name, todo="Export the model again"
        )
    if "\0" in location:
        raise InputError(
            "the external data location contains a null byte",
            where=tensor.name,
            todo="Export the model again",
        )
    base = folder.resolve()
    try:
        path = (base / location).resolve()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, or a loop of links
        raise InputError(
            "the external data location cannot be resolved", where=tensor.name, todo="Export the model again"
        ) from error
    if Path(location).is_absolute() or not path.is_relative_to(base):
        raise InputError(
            f"the external data location {location!r} is outside the model's folder",
            where=tensor.name,
            todo="Put the data file in the folder of the model and export again",
        )
    return path


def tensor_n_bytes(tensor: onnx.TensorProto) -> int:
    """Return the number of bytes of the tensor's values, packed as raw data.

    Raises
    ------
    InputError
        The data type is unknown, a string, or a dimension is negative.
    """
    if any(d < 0 for d in tensor.dims):
        raise InputError(
            "a stored tensor has a negative dimension", where=tensor.name, todo="Export the model again"
        )
    n = 1
    for dim in tensor.dims:
        n *= dim
    sub_byte = {
        onnx.TensorProto.INT4: 4,
        onnx.TensorProto.UINT4: 4,
        getattr(onnx.TensorProto, "FLOAT4E2M1", -1): 4,
        getattr(onnx.TensorProto, "INT2", -2): 2,
        getattr(onnx.TensorProto, "UINT2", -3): 2,
    }
    if tensor.data_type in sub_byte:
        return (n * sub_byte[tensor.data_type] + 7) // 8
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"unknown data type {tensor.data_type}", where=tensor.name, todo="Export the model again"
        ) from error
    if dtype == np.dtype(object):
        raise InputError(
            "a tensor of strings has no numeric bytes", where=tensor.name, todo="Export the model without it"
        )
    return n * dtype.itemsize


def tensor_array(tensor: onnx.TensorProto, folder: Path) -> NDArray[np.generic]:
    """Return a tensor's values; external data is returned as a read-only memory map, without a copy.

    Raises
    ------
    InputError
        The tensor's data does not fit its shape or type.
    """
    if uses_external_data(tensor):
        _, offset, _ = external_location(tensor)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        if 0 in shape:
            return np.zeros(shape, dtype)
        if dtype.kind == "V" and dtype.names is None and dtype.itemsize == 1:  # sub-byte types, packed
            loaded = onnx.TensorProto()
            loaded.CopyFrom(tensor)
            del loaded.external_data[:]
            loaded.data_location = onnx.TensorProto.DEFAULT
            raw = np.memmap(external_file(tensor, folder), np.uint8, "r", offset, (tensor_n_bytes(tensor),))
            loaded.raw_data = raw.tobytes()
            return numpy_helper.to_array(loaded)
        return np.memmap(external_file(tensor, folder), dtype, "r", offset, shape)
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            "stored data does not fit the tensor's shape and type",
            where=tensor.name,
            todo="Export the model again",
        ) from error
