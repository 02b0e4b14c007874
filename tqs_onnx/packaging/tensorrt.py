"""Write a model and the `trtexec` command that builds its TensorRT engine; an engine must be built where it runs.

TensorRT accepts weights as DequantizeLinear from INT8 or INT4, or as FP16, BF16 and FP32. It has no bit planes and no
unsigned, 2-bit or 1-bit integers, so a file made for another target is refused, with the unsupported tensors. A free
dimension needs its minimum, usual and maximum size. Source: TensorRT's operator support matrix and the manual of
`trtexec`.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import onnx

from tqs_onnx.rollout.spec.signature import ModelSignature, Port, signature_of
from tqs_passes.errors import InputError, one_line
from tqs_passes.files.atomic import write_text
from tqs_passes.files.model import load_model
from tqs_passes.files.save import save_model
from tqs_passes.files.tensors import iter_graphs

_LACKING = {
    onnx.TensorProto.UINT8: "uint8 (bit planes)",
    onnx.TensorProto.UINT16: "uint16",
    onnx.TensorProto.UINT32: "uint32",
    onnx.TensorProto.UINT64: "uint64",
    onnx.TensorProto.UINT4: "uint4",
    onnx.TensorProto.DOUBLE: "float64",
    getattr(onnx.TensorProto, "INT2", -1): "int2",
    getattr(onnx.TensorProto, "UINT2", -2): "uint2",
}
#: The script that builds the engine.
SCRIPT = "build.sh"
#: Largest number of refused tensors named in a message.
MOST_SHOWN = 5


def write_engine_build(emitted: Path, out: Path, limits: dict[str, tuple[int, int, int]]) -> tuple[str, ...]:
    """Write the model and the script that builds its engine; return the names of the files.

    Parameters
    ----------
    emitted : Path
    out : Path
        An empty folder.
    limits : dict of str to (int, int, int)
        Minimum, usual and maximum size of each free dimension, by its name.

    Raises
    ------
    InputError
        TensorRT does not support some tensors of the file, or the sizes of a free dimension are missing.
    """
    model = load_model(emitted)
    found = lacking(model.proto)
    if found:
        shown = "; ".join(f"{one_line(name, 80)} is {kind}" for name, kind in found[:MOST_SHOWN])
        more = f"; and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        raise InputError(
            f"TensorRT cannot serve {len(found)} stored tensors: {shown}{more}",
            where=str(emitted),
            todo="Allocate and emit with `target` tensorrt",
        )
    line = command_line(signature_of(model.proto), limits)
    target = out / "model.onnx"
    external = bool(_external(model.proto))
    if external:
        save_model(model, target, external=True)
    else:
        shutil.copyfile(emitted, target)
    script = "#!/bin/sh\n# Builds the engine on the machine that will serve it; engines are not portable.\nset -e\n"
    write_text(out / SCRIPT, f'{script}cd "$(dirname "$0")"\n{line}\n')
    return ("model.onnx", *(["model.onnx.data"] if external else []), SCRIPT)


def _external(proto: onnx.ModelProto) -> list[str]:
    return [t.name for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]


def lacking(proto: onnx.ModelProto) -> tuple[tuple[str, str], ...]:
    """Return (name, type) of every stored tensor whose type TensorRT does not support."""
    tensors = [t for graph in iter_graphs(proto.graph) for t in graph.initializer]
    return tuple((t.name, _LACKING[t.data_type]) for t in tensors if t.data_type in _LACKING)


def command_line(signature: ModelSignature, limits: dict[str, tuple[int, int, int]]) -> str:
    """Return the `trtexec` command that builds the engine.

    Raises
    ------
    InputError
        An input's rank is not declared, its name cannot be written, or the sizes of a free dimension are missing.
    """
    words = ["trtexec", "--onnx=model.onnx", "--saveEngine=model.plan", "--skipInference", "--stronglyTyped"]
    free = [p for p in signature.inputs if p.shape is None or any(isinstance(d, str) for d in p.shape)]
    for flag, which in (("minShapes", 0), ("optShapes", 1), ("maxShapes", 2)):
        if free:
            words.append(
                f"--{flag}=" + ",".join(f"{_spelt(p.name)}:{_sizes(p, limits, which)}" for p in free)
            )
    return " ".join(shlex.quote(w) for w in words)


def _spelt(name: str) -> str:
    """Return an input's name as `trtexec` reads it: in single quotes if it contains a colon.

    Raises
    ------
    InputError
        The name contains a comma, a single quote or a control character, which `trtexec` cannot read.
    """
    if "," in name or "'" in name or not name.isprintable():
        raise InputError(
            "trtexec cannot read an input name with a comma, a quote or a control character",
            where=name,
            todo="Rename the input",
        )
    return f"'{name}'" if ":" in name else name


def _sizes(port: Port, limits: dict[str, tuple[int, int, int]], which: int) -> str:
    if port.shape is None:
        raise InputError(
            "the rank is not declared", where=port.name, todo="Export the model with the ranks of its inputs"
        )
    sizes: list[str] = []
    for dim in port.shape:
        if isinstance(dim, str) and dim not in limits:
            raise InputError(
                f"the sizes of the free dimension {dim!r} are missing",
                where=port.name,
                todo=f"Give `limit` {dim}=1:8:32",
            )
        sizes.append(str(limits[dim][which] if isinstance(dim, str) else dim))
    return "x".join(sizes)
