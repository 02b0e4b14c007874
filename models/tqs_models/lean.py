# pyright: basic, reportMissingImports=false
# mypy: disable-error-code="import-not-found"
"""Write a PyTorch module as a small, readable ONNX file.

    torch.onnx.export (dynamo, opset 18)
      -> drop metadata, doc strings, value_info           which only debuggers need
      -> one initializer per constant                     the exporter repeats shapes and axes node by node
      -> short names for values and nodes; weights keep the name of their parameter
      -> check against the module, save

Names survive because the module uses each parameter as stored (``x @ weight`` with `weight` [in, out]): the exporter
would fold a transposed or reshaped parameter into an anonymous constant. torch is imported inside the function, so
that this package can be imported without it. This module must never import onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from tqs_passes.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

_Content = tuple[tuple[int, ...], bytes]

TOLERANCE = 1e-4
"""Largest allowed error of the file against the module, relative to the largest output."""


def merge_constants(model: onnx.ModelProto) -> int:
    """Give equal integer and scalar initializers one name, in place; return the number of dropped initializers.

    Float tensors with more than one element are parameters or masks and stay unchanged.
    """
    seen: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    for tensor in list(model.graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.size > 1:
            continue
        first = seen.setdefault((tensor.data_type, tuple(tensor.dims), array.tobytes()), tensor.name)
        if first != tensor.name:
            renamed[tensor.name] = first
            model.graph.initializer.remove(tensor)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    return len(renamed)


def strip(model: onnx.ModelProto) -> None:
    """Remove everything that no runtime reads from `model`, and shorten names, in place.

    Initializers, inputs and outputs keep their names; other values become ``<operator>_<n>``.
    """
    graph = model.graph
    parts: list[Any] = [model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
    graph.name = "main"
    kept = {v.name for v in (*graph.input, *graph.output)} | {t.name for t in graph.initializer}
    short: dict[str, str] = {}
    for i, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{i}"
        for k, name in enumerate(node.output):
            if name and name not in kept:
                short[name] = node.name if k == 0 else f"{node.name}.{k}"
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]


def fold_all_but(model: Any, parameters: Set[str], *, transposes: bool = False) -> None:  # noqa: ANN401
    """Fold constants in the exporter's `model` (onnx_ir), in place, except nodes that read a parameter.

    A transposed, gathered or concatenated parameter stays a named initializer followed by the operator,
    instead of becoming an anonymous constant. With `transposes`, a Transpose is folded nevertheless; restore the
    name of that constant with `name_by_content`.
    """
    from onnxscript import optimizer

    kept = set(parameters)

    def should_fold(node: Any) -> bool | None:  # noqa: ANN401  (onnx_ir ships with the [export] extra)
        reads = any(value is not None and value.name in kept for value in node.inputs)
        if reads and transposes and node.op_type == "Transpose":
            kept.update(value.name for value in node.outputs)  # the folded value is still a parameter
            return None
        return False if reads else None

    optimizer.optimize_ir(model, should_fold=should_fold)


def name_by_content(model: onnx.ModelProto, state: Mapping[str, NDArray[np.generic]]) -> list[str]:
    """Give each initializer that equals a tensor of `state`, possibly transposed, its name, in place.

    Returns
    -------
    list of str
        Names in `state` whose content is in no initializer, in order. If the exporter has merged tensors of equal
        content, one of their names is used.
    """
    wanted: dict[_Content, list[str]] = {}
    for name, array in state.items():
        for form in (array.T, array) if array.ndim == 2 else (array,):
            names = wanted.setdefault(_content(np.ascontiguousarray(form)), [])
            if name not in names:  # a symmetric matrix equals its transpose
                names.append(name)
    held: set[str] = set()
    taken: set[str] = set()
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        names = wanted.get(_content(onnx.numpy_helper.to_array(tensor)), [])
        held.update(names)
        free = [n for n in names if n not in taken]
        if free:
            taken.add(free[0])
            renamed[tensor.name] = free[0]
            tensor.name = free[0]
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    return [name for name in state if name not in held]


def _content(array: NDArray[np.generic]) -> _Content:
    return array.shape, sha256(array.tobytes()).digest()


def export_lean(
    module: nn.Module, example: Tensor, path: Path, *, input_name: str, output_name: str
) -> onnx.ModelProto:
    """Export `module`, which maps one array to one array; see :func:`export_named`."""
    return export_named(module, {input_name: example}, path, outputs=[output_name])


def export_named(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    path: Path,
    *,
    outputs: Sequence[str],
    properties: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Export `module` with the names of its parameters and save it to `path`.

    Parameters
    ----------
    module : torch.nn.Module
        A module in evaluation mode.
    examples : mapping of str to torch.Tensor
        The inputs by name, in the order of `module.forward`; the first axis of each becomes the dynamic axis
        "batch", the others stay fixed.
    path : pathlib.Path
        The file to write, without external data.
    outputs : sequence of str
        Names of the outputs.
    properties : mapping of str to str, optional
        Written to the file's `metadata_props`, e.g. `license`.

    Returns
    -------
    onnx.ModelProto
        The model as written.

    Raises
    ------
    InputError
        A parameter lost its name, or the outputs of file and module differ by more than `TOLERANCE`.
    """
    import torch

    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        module,
        tuple(examples.values()),
        input_names=list(examples),
        output_names=list(outputs),
        dynamic_shapes=tuple({0: batch} for _ in examples),
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
        optimize=False,
    )
    if program is None:
        raise InputError("torch returned no ONNX program", where=str(path), todo="Use torch 2.6 or later")
    parameters = set(dict(module.named_parameters()))
    fold_all_but(program.model, parameters)
    model: onnx.ModelProto = program.model_proto
    merge_constants(model)
    strip(model)
    stored = {t.name for t in model.graph.initializer}
    lost = sorted(parameters - stored)
    if lost:
        raise InputError(
            f"{len(lost)} parameters lost their names, first {lost[0]}",
            where=str(path),
            todo="Use each parameter as stored, without a transpose or reshape",
        )
    for key, value in (properties or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    with torch.no_grad():
        expected = module(*examples.values())
    feeds = {name: value.numpy() for name, value in examples.items()}
    results: Any = ReferenceEvaluator(model).run(None, feeds)
    wanted = expected if isinstance(expected, tuple) else (expected,)
    for name, made, want in zip(outputs, results, wanted, strict=True):
        error = float(np.abs(np.asarray(made) - want.numpy()).max() / np.abs(want.numpy()).max())
        if not error <= TOLERANCE:
            raise InputError(
                f"output {name} differs from the module by {error:.1e}",
                where=str(path),
                todo="Use another version of torch",
            )
    onnx.save_model(model, path)
    return model
