"""Write a Triton model repository around an emitted file.

Single file, and with external data ::

    <out>/<name>/config.pbtxt                   <out>/<name>/config.pbtxt
    <out>/<name>/1/model.onnx                   <out>/<name>/1/model.onnx/model.onnx
                                                <out>/<name>/1/model.onnx/model.onnx.data

No session options are written: the serving profile is part of the file. With `max_batch` the first dimension of every
input and output is the batch and is left out of `dims`, as Triton requires; otherwise all dimensions are listed, with
-1 for a free one.
Sources: Triton's model_config.proto and its model-repository page.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from onnx.external_data_helper import uses_external_data

from tqs_onnx.rollout.spec.signature import ModelSignature, Port, signature_of
from tqs_passes.errors import InputError, one_line
from tqs_passes.files.atomic import write_text
from tqs_passes.files.model import Model, load_model
from tqs_passes.files.save import save_model
from tqs_passes.files.tensors import iter_tensors

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}

#: The file that Triton reads first.
CONFIG = "config.pbtxt"


def require_name(name: str) -> None:
    """Refuse a name that no folder can have.

    Raises
    ------
    InputError
        It is empty, or holds a separator or a line break.
    """
    if not name or name in (".", "..") or any(c in name for c in "/\\\0\n"):
        raise InputError(
            f"{one_line(name)!r} is not a valid name of a model",
            where="`name`",
            todo="Use letters, digits, - and _",
        )


def write_repository(emitted: Path, folder: Path, name: str, max_batch: int) -> tuple[str, ...]:
    """Write the folder of one model of a repository; return the names of the files, relative to it.

    Parameters
    ----------
    emitted : Path
        The `.onnx` file.
    folder : Path
        An empty folder.
    name : str
        Name of the model in the repository.
    max_batch : int
        Largest batch that Triton may form; 0: no batching.

    Raises
    ------
    InputError
        A port cannot be described, or nothing can be written.
    """
    model = load_model(emitted)
    text = config_text(signature_of(model.proto), name, max_batch)
    version = folder / "1"
    version.mkdir()
    written = _write_model(model, emitted, version)
    write_text(folder / CONFIG, text)
    return (CONFIG, *(f"1/{name}" for name in written))


def _write_model(model: Model, emitted: Path, version: Path) -> tuple[str, ...]:
    target = version / "model.onnx"
    if any(uses_external_data(t) for t in iter_tensors(model.proto)):
        target.mkdir()
        save_model(model, target / "model.onnx", external=True)
        return "model.onnx/model.onnx", "model.onnx/model.onnx.data"
    shutil.copyfile(emitted, target)
    return ("model.onnx",)


def config_text(signature: ModelSignature, name: str, max_batch: int) -> str:
    """Return `config.pbtxt`: protobuf text of Triton's `ModelConfig`.

    Raises
    ------
    InputError
        The rank of a port is not declared, or `max_batch` is given and a port's first dimension is fixed.
    """
    lines = [f"name: {quoted(name)}", 'backend: "onnxruntime"', f"max_batch_size: {max_batch}"]
    for kind, ports in (("input", signature.inputs), ("output", signature.outputs)):
        for port in ports:
            lines += [f"{kind} {{", *(f"  {line}" for line in _port_lines(port, max_batch)), "}"]
    if max_batch:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _port_lines(port: Port, max_batch: int) -> list[str]:
    if port.shape is None:
        raise InputError(
            "the rank is not declared, but Triton requires dimensions",
            where=port.name,
            todo="Export the model with the ranks of its inputs and outputs",
        )
    shape = port.shape
    if max_batch:
        if not shape or isinstance(shape[0], int):
            raise InputError(
                "there is no free first dimension for batches", where=port.name, todo="Leave out `max_batch`"
            )
        shape = shape[1:]
    kind = _TYPES.get(np.dtype(port.dtype).name)
    if kind is None:
        raise InputError(
            f"Triton has no type for {port.dtype}", where=port.name, todo="Export the model with another type"
        )
    dims = ", ".join(str(d) if isinstance(d, int) else "-1" for d in shape)
    lines = [f"name: {quoted(port.name)}", f"data_type: {kind}"]
    if not shape:  # Triton has no dims of rank 0: it must reshape
        return [*lines, "dims: [ 1 ]", "reshape { shape: [ ] }"]
    return [*lines, f"dims: [ {dims} ]"]


def quoted(text: str) -> str:
    """Return a string literal of protobuf's text format."""
    plain = {ord("\\"), ord('"')}
    body = "".join(chr(b) if 32 <= b < 127 and b not in plain else f"\\{b:03o}" for b in text.encode("utf-8"))
    return f'"{body}"'
