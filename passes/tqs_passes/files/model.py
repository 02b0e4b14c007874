"""Read ONNX files: external data stays on disk until a tensor is requested. `tqs_passes.files.save` writes them.

A model is a `ModelProto` whose large tensors may point into external-data files. This module does not load those
bytes; `tensor_array` reads them through a memory map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnx.external_data_helper import uses_external_data

from tqs_passes.errors import InputError, one_line
from tqs_passes.files.functions import require_bounded_functions
from tqs_passes.files.spill import SPILLED, Spill
from tqs_passes.files.tensors import (
    external_file,
    external_location,
    iter_graphs,
    iter_tensors,
    tensor_n_bytes,
)
from tqs_passes.files.wire import Extent

#: Tensors smaller than this stay inside the protobuf even when external data is written: onnxruntime reads
#: shapes and axes at load and refuses them as external data.
EXTERNAL_THRESHOLD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Model:
    """An ONNX model in memory.

    Parameters
    ----------
    proto : onnx.ModelProto
        The graph; tensors stored externally hold only their location.
    folder : Path
        Folder to which external-data locations are relative.
    spill : Spill or None
        File that holds encoded tensors until the model is written.
    deferred : mapping of str to str
        Maps a stored tensor to the type with which its readers already compute, when it has another type: the model
        is valid only after a later pass has stored these tensors in that type.
    names : mapping of str to str
        Maps every short name to the name that it replaced in the lifted model; empty if the names are as they were.
    stored : mapping of str to str
        Maps stored tensors of the lifted model to their names in this model, where these differ.
    """

    proto: onnx.ModelProto
    folder: Path
    spill: Spill | None = None
    deferred: Mapping[str, str] = field(default_factory=dict[str, str])
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    stored: Mapping[str, str] = field(default_factory=dict[str, str])

    def stored_name(self, name: str) -> str:
        """Return the name under which this model stores a tensor of the lifted model."""
        return self.stored.get(name, name)

    def stored_names(self, names: Iterable[str]) -> frozenset[str]:
        """Return the names under which this model stores tensors of the lifted model."""
        return frozenset(map(self.stored_name, names))


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What identifies a model on disk.

    Parameters
    ----------
    path : Path
        The `.onnx` file.
    n_bytes : int
        Size in bytes of the file and of all its external-data files.
    sha256 : dict of str to str
        Hexadecimal digest of the `.onnx` file and of each external-data file, by name relative to their folder.
    """

    path: Path
    n_bytes: int
    sha256: dict[str, str]


def load_model(path: Path) -> Model:
    """Read and validate an ONNX file; external data is located and measured but not read.

    Raises
    ------
    InputError
        The file is missing, unreadable, not ONNX, truncated, its external data is missing, too short, or outside the
        model's folder, or its local functions expand without bound.
    """
    try:
        exists = path.exists()
    except OSError as error:
        raise InputError(
            f"the path cannot be resolved ({error.strerror})",
            where=str(path),
            todo="Give the path of an .onnx file",
        ) from error
    if not exists:
        raise InputError("no such file", where=str(path), todo="Give the path of an .onnx file")
    if not path.is_file():
        raise InputError("is not a file", where=str(path), todo="Give the path of an .onnx file")
    try:
        proto = onnx.load(str(path), "protobuf", load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise InputError(
            "is not an ONNX file, or is truncated", where=str(path), todo="Export the model again"
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=str(path), todo="Check the file's permissions"
        ) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.initializer):
        raise InputError(
            "is not an ONNX model: it contains no graph",
            where=str(path),
            todo="Give the path of an .onnx file",
        )
    if not proto.opset_import and not any(n.domain for n in proto.graph.node):
        raise InputError(
            "is not a valid ONNX model: it imports no opset", where=str(path), todo="Export the model again"
        )
    folder = path.resolve().parent
    if not _is_text(proto):
        raise InputError("is damaged: a string is not UTF-8", where=str(path), todo="Export the model again")
    for graph in iter_graphs(proto.graph):
        _check_names(graph, path)
    for tensor in iter_tensors(proto):
        if uses_external_data(tensor):
            _check_external(tensor, folder, path)
    require_bounded_functions(proto, path)
    return Model(proto, folder)


def _is_text(message: Message) -> bool:
    """Return whether every string in a message is UTF-8; protobuf accepts others here and fails on them later."""
    try:
        if isinstance(message, onnx.TensorProto):  # skip its values: reading them would copy them
            named: list[object] = [message.name, message.doc_string]
            return all(isinstance(text, str) for text in named)
        for field, value in message.ListFields():
            held = list(value) if field.is_repeated else [value]
            if field.type == field.TYPE_STRING and not all(isinstance(text, str) for text in held):
                return False
            if field.type == field.TYPE_MESSAGE and not all(_is_text(inner) for inner in held):
                return False
    except UnicodeDecodeError:
        return False
    return True


def _check_names(graph: onnx.GraphProto, path: Path) -> None:
    """Refuse stored tensors that cannot be identified: tensors without a name, or two with the same name."""
    names = [t.name for t in graph.initializer]
    if "" in names:
        raise InputError("a stored tensor has no name", where=str(path), todo="Export the model again")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(
            f"two stored tensors have the name {one_line(twice, 80)!r}",
            where=str(path),
            todo="Export the model again",
        )


def _check_external(tensor: onnx.TensorProto, folder: Path, path: Path) -> None:
    file = external_file(tensor, folder)
    if not file.is_file():
        raise InputError(
            f"external data file {file.name!r} is missing",
            where=str(path),
            todo="Put it in the folder of the model",
        )
    _, offset, length = external_location(tensor)
    needed = tensor_n_bytes(tensor)
    if length is not None and length != needed:
        raise InputError(
            f"the external data of {tensor.name!r} has {length} bytes instead of {needed}",
            where=str(path),
            todo="Export the model again",
        )
    if offset < 0 or offset + needed > file.stat().st_size:
        raise InputError(
            f"external data file {file.name!r} is too short for {tensor.name!r}: it is truncated",
            where=str(path),
            todo="Copy it again",
        )


def file_facts(path: Path, model: Model | None = None) -> FileFacts:
    """Return size and digests of a model file and its external-data files; pass `model` when it is already loaded."""
    model = model or load_model(path)
    ordered = files_of(path, model)
    return FileFacts(
        path,
        sum(f.stat().st_size for f in ordered),
        {f.relative_to(model.folder).as_posix(): sha256_of_file(f) for f in ordered},
    )


def files_of(path: Path, model: Model | None = None) -> list[Path]:
    """Return a file and, if it is a model, its external-data files, sorted."""
    if model is None:
        try:
            model = load_model(path)
        except InputError:
            return [path.resolve()]
    files = {path.resolve()}
    for tensor in iter_tensors(model.proto):
        if uses_external_data(tensor):
            files.add(external_file(tensor, model.folder))
    return sorted(files)


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def serialize(proto: onnx.ModelProto) -> bytes:
    """Return the deterministic serialization of a model."""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def extent(tensor: onnx.TensorProto, model: Model) -> Extent | None:
    """Return where the values of a tensor lie on disk; None when the tensor itself holds them."""
    if not uses_external_data(tensor):
        return None
    location, offset, length = external_location(tensor)
    if location == SPILLED and model.spill is not None and length is not None:
        return model.spill.extent(offset, length)
    return Extent(external_file(tensor, model.folder), offset, tensor_n_bytes(tensor))


def without_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model without the initializers of its main graph; their values are never copied."""
    copy = onnx.ModelProto()
    for source, target in ((proto, copy), (proto.graph, copy.graph)):
        for entry, value in source.ListFields():
            if entry.name in ("graph", "initializer"):
                continue
            if entry.is_repeated:
                getattr(target, entry.name).extend(value)
            else:
                setattr(target, entry.name, value)
    return copy
