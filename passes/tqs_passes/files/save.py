"""Write a model to disk: atomically, in one file or with external data, never with all of its values in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from tqs_passes.files.atomic import atomic_file
from tqs_passes.files.model import EXTERNAL_THRESHOLD_BYTES, Model, extent, serialize, without_initializers
from tqs_passes.files.tensors import iter_tensors, tensor_array, tensor_n_bytes
from tqs_passes.files.wire import Extent, write_model

#: A protobuf message cannot exceed 2 GiB; models above this size store tensors in `<file>.data`.
SINGLE_FILE_LIMIT_BYTES = 1_800_000_000
_ALIGNMENT_BYTES = 64


def save_model(model: Model, path: Path, *, external: bool | None = None) -> None:
    """Write a model atomically: the file appears complete under its final name, or not at all.

    Parameters
    ----------
    model : Model
        The model to write; it is not modified.
    path : Path
        The `.onnx` file to write; its folder must exist.
    external : bool, optional
        Write tensors of `EXTERNAL_THRESHOLD_BYTES` or more to `<path>.data`. Default: only when a single file
        would exceed `SINGLE_FILE_LIMIT_BYTES`.

    Raises
    ------
    InputError
        The folder is missing or not writable, or the disk is full.
    """
    if external is None:
        external = sum(_stored_size(t) for t in iter_tensors(model.proto)) > SINGLE_FILE_LIMIT_BYTES

    def extent_of(tensor: onnx.TensorProto) -> Extent | None:
        return extent(tensor, model)

    if not external:
        with atomic_file(path) as tmp, tmp.open("wb") as stream:
            write_model(_with_nested_inline(model), stream, extent_of)
        return
    data_path = path.with_name(path.name + ".data")
    # Write both files before renaming either, and rename the data first: a model never appears without its data.
    with atomic_file(path) as tmp, atomic_file(data_path) as data_tmp:
        proto = without_initializers(model.proto)
        with data_tmp.open("wb") as stream:
            for tensor in model.proto.graph.initializer:
                stored = proto.graph.initializer.add()
                if _is_small(tensor):
                    stored.CopyFrom(tensor)
                    _store_inline(
                        stored, model
                    )  # a location relative to the source's folder is invalid beside the new file
                else:
                    _store_outside(tensor, stored, model, stream, data_path.name)
            for tensor in _nested_tensors(proto):
                if _is_small(tensor):
                    _store_inline(tensor, model)
                else:
                    _store_outside(tensor, tensor, model, stream, data_path.name)
        tmp.write_bytes(serialize(proto))


def _with_nested_inline(model: Model) -> onnx.ModelProto:
    """Store all tensors that are not main-graph initializers inline; return a copy if that changes the model."""
    if not any(uses_external_data(t) for t in _nested_tensors(model.proto)):
        return model.proto
    proto = without_initializers(model.proto)
    for tensor in iter_tensors(proto):
        _store_inline(tensor, model)
    proto.graph.initializer.extend(model.proto.graph.initializer)
    return proto


def _nested_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor except the main graph's initializers, which `iter_tensors` yields first."""
    return itertools.islice(iter_tensors(proto), len(proto.graph.initializer), None)


def _is_small(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == onnx.TensorProto.STRING or tensor_n_bytes(tensor) < EXTERNAL_THRESHOLD_BYTES


def _store_inline(tensor: onnx.TensorProto, model: Model) -> None:
    found = extent(tensor, model)
    if found is None:
        return
    tensor.raw_data = b"".join(found.blocks())
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def _stored_size(tensor: onnx.TensorProto) -> int:
    if uses_external_data(tensor):
        return tensor_n_bytes(tensor)
    size: int = len(tensor.raw_data) if tensor.HasField("raw_data") else tensor.ByteSize()
    return size


def _store_outside(
    tensor: onnx.TensorProto, stored: onnx.TensorProto, model: Model, stream: BinaryIO, name: str
) -> None:
    """Append a tensor's values to the data file and record their location in `stored`, which may be `tensor`."""
    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT_BYTES))
    offset = stream.tell()
    found = extent(tensor, model)
    if found is not None:
        for block in found.blocks():
            stream.write(block)
    elif tensor.HasField("raw_data"):
        stream.write(tensor.raw_data)
    else:
        stream.write(
            numpy_helper.from_array(np.ascontiguousarray(tensor_array(tensor, model.folder))).raw_data
        )
    places = (("location", name), ("offset", str(offset)), ("length", str(stream.tell() - offset)))
    bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    bare.data_location = onnx.TensorProto.EXTERNAL
    for key, value in places:
        bare.external_data.add(key=key, value=value)
    stored.CopyFrom(bare)
