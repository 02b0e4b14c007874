"""Find the weights of a lifted model: every float initializer is a weight, or is excluded with a reason.

`trace` finds the readers of a weight, `constants` the reason why a tensor is not a weight, `naming` its label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx

from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array, tensor_n_bytes
from tqs_passes.graph.content import Array
from tqs_passes.graph.flow import SHAPE_ONLY, Flow
from tqs_passes.graph.scope import wire
from tqs_passes.graph.trace import Reading, StoredTensor, Tracer
from tqs_passes.survey.constants import Judge
from tqs_passes.survey.lift import FLOAT_TYPES, Lift, is_weight_like
from tqs_passes.survey.merge import MergeEqual
from tqs_passes.survey.naming import labels
from tqs_passes.survey.roles import Roles
from tqs_passes.weights import Excluded, Origin, Reader, Survey, Weight

_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64",
}


class _Stored:
    """Reads a tensor's values on request."""

    def __init__(self, tensor: onnx.TensorProto, model: Model) -> None:
        self._tensor = tensor
        self._folder = model.folder

    def __call__(self) -> Array:
        return np.asanyarray(tensor_array(self._tensor, self._folder))


def find_weights(model: Model) -> tuple[Model, Survey]:
    """Lift a model and survey it: return the lifted model, in which every weight is an initializer, and the survey."""
    lifted = Lift().apply(model)
    return surveyed(lifted.model, lifted.origins)


def surveyed(model: Model, origins: Mapping[str, Origin] | None = None) -> tuple[Model, Survey]:
    """Return a lifted model in which equal weights are merged into one, and its survey.

    Parameters
    ----------
    model, origins
        See `survey`.
    """
    found = survey(model, origins)
    merged = MergeEqual(frozenset(w.name for w in found.weights)).apply(model)
    if not merged.copies:
        return model, found
    before, again = found.by_name(), survey(merged.model, origins)
    weights = tuple(_with_copies(w, before, merged.copies.get(w.name, ())) for w in again.weights)
    return merged.model, Survey(weights, again.excluded)


def _with_copies(weight: Weight, before: Mapping[str, Weight], copies: tuple[str, ...]) -> Weight:
    origins = [before[name].origin for name in (weight.name, *copies)]
    called = sum(origin is Origin.FUNCTION for origin in origins)
    return replace(
        weight,
        label=before[weight.name].label,
        copies=tuple(before[name].label for name in copies),
        n_stored=len(origins) - max(0, called - 1),
    )


def survey(model: Model, origins: Mapping[str, Origin] | None = None) -> Survey:
    """Classify every float initializer of a lifted model as a weight, or exclude it with a reason.

    Parameters
    ----------
    model : Model
        Result of `Lift`.
    origins : mapping of str to Origin, optional
        Where each tensor was stored in the file; default: as an initializer.

    Returns
    -------
    Survey
        In initializer order. Deterministic; the cost is linear in the graph times its number of outputs.

    Raises
    ------
    InputError
        A stored tensor is damaged.
    """
    graph = model.proto.graph
    wiring = wire(graph)
    flow = Flow(wiring)
    tracer, judge, roles = Tracer(model, wiring, flow), Judge(wiring, flow), Roles(wiring, flow)
    outputs = flow.outputs_by_value()
    excluded: list[Excluded] = []
    found: list[tuple[onnx.TensorProto, tuple[int, ...], tuple[Reading, ...]]] = []
    for tensor in graph.initializer:
        if tensor.data_type not in FLOAT_TYPES:
            continue
        tensor_n_bytes(tensor)
        shape = tuple(int(dim) for dim in tensor.dims)
        readings: tuple[Reading, ...] = ()
        if is_weight_like(tensor):
            readings = tracer.readings((0, tensor.name), shape)
            reason = judge.reason(StoredTensor(tensor.name, shape, readings, _Stored(tensor, model)))
        else:
            reason = "holds no values" if 0 in shape else "a scalar"
        if reason is None:
            found.append((tensor, shape, readings))
        else:
            excluded.append(Excluded(tensor.name, shape, _DTYPES[tensor.data_type], reason))
    shown = labels((tensor.name, len(shape), readings) for tensor, shape, readings in found)
    weights = [
        Weight(
            name=tensor.name,
            label=shown[tensor.name],
            shape=shape,
            dtype=_DTYPES[tensor.data_type],
            origin=(origins or {}).get(tensor.name, Origin.INITIALIZER),
            readers=tuple(r.reader for r in readings),
            channel_axis=agreed_axis([r.reader for r in readings]),
            outputs=outputs.get((0, tensor.name), ()),
            role=roles.of(readings),
        )
        for tensor, shape, readings in found
    ]
    return Survey(tuple(weights), tuple(excluded))


def agreed_axis(readers: list[Reader]) -> int | None:
    """Return the channel axis that all readers share; None when they differ or have none.

    Readers that use only the shape are ignored.
    """
    axes = {reader.channel_axis for reader in readers if reader.op_type not in SHAPE_ONLY}
    return axes.pop() if len(axes) == 1 else None
