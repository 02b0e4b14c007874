"""Write a model in protobuf's wire format without holding the values of its stored tensors.

A message consists of its fields in the order of their numbers. Each field is a tag, a length for nested messages, and
the content. The bytes of a model can therefore be assembled from parts ::

    model fields below 7 │ tag and length of the graph │ nodes, name │ tensor, tensor, … │ rest of the graph │ rest
                                                          tensor: fields below 9 │ raw_data, copied from a file │ rest

The result equals the serialization of the whole model, except that fields unknown to onnx, which serialization would
keep at the end of the model and the graph, are left out. Source: protobuf encoding; field numbers of onnx.proto.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import onnx

_M = TypeVar("_M", onnx.ModelProto, onnx.GraphProto, onnx.TensorProto)

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_WHERE_FIELDS = ("external_data", "data_location")
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the values of a tensor lie.

    Parameters
    ----------
    file : Path or binary file
        An open file is read at `offset`, which moves its position.
    offset, n_bytes : int
    """

    file: Path | BinaryIO
    offset: int
    n_bytes: int

    def blocks(self) -> Iterator[bytes]:
        """Yield the values, a few megabytes at a time.

        Raises
        ------
        OSError
            The file cannot be read, or has become too short.
        """
        if isinstance(self.file, Path):
            with self.file.open("rb") as stream:
                yield from _blocks(stream, self.offset, self.n_bytes)
        else:
            yield from _blocks(self.file, self.offset, self.n_bytes)


def _blocks(stream: BinaryIO, offset: int, n_bytes: int) -> Iterator[bytes]:
    stream.seek(offset)
    while n_bytes:
        block = stream.read(min(n_bytes, _BLOCK_BYTES))
        if not block:
            raise OSError(errno.EIO, "a data file became too short while it was read")
        n_bytes -= len(block)
        yield block


def write_model(
    proto: onnx.ModelProto, stream: BinaryIO, extent_of: Callable[[onnx.TensorProto], Extent | None]
) -> None:
    """Write a model with the values of its main graph's initializers inside it.

    Parameters
    ----------
    proto : onnx.ModelProto
    stream : binary file
    extent_of : callable
        Returns where the values of an initializer lie; None when the tensor itself holds them.

    Raises
    ------
    OSError
        The disk is full, or values cannot be read.
    """
    graph = proto.graph
    extents = [extent_of(tensor) for tensor in graph.initializer]
    sizes = [
        t.ByteSize() if e is None else _tensor_size(t, e)
        for t, e in zip(graph.initializer, extents, strict=True)
    ]
    before, after = _part(graph, 0, _INITIALIZER), _part(graph, _INITIALIZER + 1)
    n_graph = before.ByteSize() + sum(len(_tag(_INITIALIZER, n)) + n for n in sizes) + after.ByteSize()
    stream.write(_bytes(_part(proto, 0, _GRAPH)))
    stream.write(_tag(_GRAPH, n_graph))
    stream.write(_bytes(before))
    for tensor, extent, size in zip(graph.initializer, extents, sizes, strict=True):
        stream.write(_tag(_INITIALIZER, size))
        if extent is None:
            stream.write(_bytes(tensor))
            continue
        stream.write(_bytes(_part(tensor, 0, _RAW_DATA)))
        stream.write(_tag(_RAW_DATA, extent.n_bytes))
        for block in extent.blocks():
            stream.write(block)
        stream.write(_bytes(_without_location(tensor)))
    stream.write(_bytes(after))
    stream.write(_bytes(_part(proto, _GRAPH + 1)))


def _tensor_size(tensor: onnx.TensorProto, extent: Extent) -> int:
    around: int = _part(tensor, 0, _RAW_DATA).ByteSize() + _without_location(tensor).ByteSize()
    return around + len(_tag(_RAW_DATA, extent.n_bytes)) + extent.n_bytes


def _without_location(tensor: onnx.TensorProto) -> onnx.TensorProto:
    rest = _part(tensor, _RAW_DATA + 1)
    for name in _WHERE_FIELDS:
        rest.ClearField(name)
    return rest


def _part(message: _M, first: int, stop: int = 1 << 29) -> _M:
    """Return a copy of a message that has only the fields numbered first … stop - 1."""
    part = type(message)()
    for field, value in message.ListFields():
        if not first <= field.number < stop:
            continue
        if field.is_repeated:
            getattr(part, field.name).extend(value)
        elif field.type == field.TYPE_MESSAGE:
            getattr(part, field.name).CopyFrom(value)
        else:
            setattr(part, field.name, value)
    return part


def _bytes(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _tag(number: int, length: int) -> bytes:
    """Return the tag and length of a length-delimited field whose number is below 16."""
    out = bytearray([number << 3 | 2])
    while length >= 128:
        out.append(length & 127 | 128)
        length >>= 7
    out.append(length)
    return bytes(out)


def field_size(n: int) -> int:
    """Return the bytes of a length-delimited protobuf field with a one-byte tag."""
    length = 1
    value = n
    while value >= 128:
        value >>= 7
        length += 1
    return 1 + length + n
