"""Exposes weights as graph inputs, so that one session can run with the nominal or a perturbed weight.

Before → after ::

    w (initializer) ─▶ MatMul          w (graph input) ─▶ MatMul

The same compiled graph then runs both trajectories (design rule: same fusions, same prepacking), and the weights'
bytes are not part of the session. Readers inside If, Loop and Scan bodies see the input through the outer scope.
onnx-graphsurgeon edits the graph; it drops metadata, which a probe session does not need. It also drops attributes that
hold types or sparse tensors, and the types of values that are not tensors: those are given back, so that a file that
runs also runs exposed.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data
from onnx_graphsurgeon.logger import G_LOGGER

from tqs_passes.encode.weight import np_dtype
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.files.tensors import iter_graphs, tensor_array
from tqs_passes.graph_pass import PassResult, Skip


@dataclass(frozen=True, slots=True)
class Expose:
    """The pass that exposes weights as required graph inputs.

    Parameters
    ----------
    weights : tuple of str
        Initializers of the main graph.
    """

    weights: tuple[str, ...]

    name: ClassVar[str] = "expose"

    def apply(self, model: Model) -> PassResult:
        """Return a model whose `weights` are inputs, appended in the given order; other tensors are stored inline.

        Raises
        ------
        InputError
            onnx-graphsurgeon cannot read or write the graph: types that it does not know, bodies without tensors.
        """
        light = _without_values(model, frozenset(self.weights))
        with _quiet():
            graph = cast(Any, gs.import_onnx(light))
        tensors = _tensors(graph)
        changed: list[str] = []
        skipped: list[Skip] = []
        dtypes = {t.name: t.data_type for t in model.proto.graph.initializer}
        for name in self.weights:
            tensor = tensors.get(name)
            if tensor is None or name not in dtypes:
                skipped.append(Skip(name, "no such initializer, or nothing reads it"))
                continue
            shape = tuple(tensor.shape)
            tensor.to_variable(dtype=onnx.helper.tensor_dtype_to_np_dtype(dtypes[name]), shape=shape)
            # graphsurgeon 0.6 does not set it in to_variable, and then cannot export.
            tensor.type = "tensor_type"
            graph.inputs.append(tensor)
            changed.append(name)
        with _quiet():
            proto = gs.export_onnx(graph, do_type_check=False)
        proto.ir_version = light.ir_version
        _give_back(proto.graph, light.graph)
        return PassResult(replace(model, proto=proto), tuple(changed), tuple(skipped))


@contextmanager
def _quiet() -> Generator[None]:
    """Keep graphsurgeon from printing on stdout; what it warns about is given back, what it cannot do is one line."""
    level = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL + 1  # it prints before it raises
    try:
        yield
    except Exception as error:  # whatever a damaged graph makes it raise
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"the model's graph cannot be edited ({what})",
            todo="Check it with onnx.checker, and export it again",
        ) from error
    finally:
        G_LOGGER.severity = level


def _give_back(made: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Give a graph that graphsurgeon wrote what it lost: attributes, and the types of inputs and outputs.

    Its nodes are those of the source, in the same order.
    """
    for ports, before in ((made.input, source.input), (made.output, source.output)):
        declared = {value.name: value for value in before}
        for value in ports:
            if value.name in declared:
                value.CopyFrom(declared[value.name])
    for node, original in zip(made.node, source.node, strict=True):
        kept = {attribute.name: attribute for attribute in node.attribute}
        for attribute in original.attribute:
            if attribute.name not in kept:
                node.attribute.append(attribute)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _give_back(kept[attribute.name].g, attribute.g)


def _tensors(graph: gs.Graph) -> dict[str, Any]:
    """Return the tensors that the nodes of a graphsurgeon graph or of its bodies use; inner names hide outer ones.

    graphsurgeon's own `tensors` omits a stored tensor of the main graph that only bodies read.
    """
    found = dict(graph.tensors())
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                found = _tensors(value) | found
    return found


def _without_values(model: Model, names: frozenset[str]) -> onnx.ModelProto:
    """Return a copy whose named initializers hold no values (one broadcast zero); the others are stored inline."""
    proto = onnx.ModelProto()
    proto.CopyFrom(_shallow(model.proto))
    for tensor in model.proto.graph.initializer:
        light = proto.graph.initializer.add()
        if tensor.name in names:
            light.name, light.data_type = tensor.name, tensor.data_type
            light.dims.extend(tensor.dims)
            light.raw_data = b"\0"
        elif uses_external_data(tensor):
            array = np.asarray(tensor_array(tensor, model.folder), order="C")
            light.CopyFrom(numpy_helper.from_array(array, tensor.name))
        else:
            light.CopyFrom(tensor)
    for graph in iter_graphs(proto.graph):
        del graph.value_info[:]
    return proto


def _shallow(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without the initializers of its main graph."""
    out = onnx.ModelProto(ir_version=proto.ir_version)
    out.opset_import.extend(proto.opset_import)
    out.functions.extend(proto.functions)
    graph = proto.graph
    out.graph.name = graph.name
    out.graph.node.extend(graph.node)
    out.graph.input.extend(graph.input)
    out.graph.output.extend(graph.output)
    out.graph.sparse_initializer.extend(graph.sparse_initializer)
    return out


def weight_values(model: Model, name: str, dtype: str) -> np.ndarray[Any, np.dtype[np.generic]]:
    """Return the values of a weight as a C-contiguous array in its own dtype."""
    tensor = next(t for t in model.proto.graph.initializer if t.name == name)
    return np.ascontiguousarray(tensor_array(tensor, model.folder), np_dtype(dtype))
