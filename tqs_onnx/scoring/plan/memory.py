"""Estimate the memory of a sweep from the graph: weights, one chunk's activations, and its trajectory.

Activations are counted at the point where most bytes are alive when the nodes run in stored order, with the shapes that
ONNX's shape inference finds for one context; values of unknown shape count as zero bytes. This is an estimate: the
runtime reuses buffers better, and its kernels need some additional memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.injection import Exposable
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_passes.errors import InputError

#: Bytes per byte of weights: all once in the model and, at worst, some once more while they are perturbed or prepacked.
_WEIGHTS_HELD = 1.5
#: Bytes per byte of the nominal trajectory: held on its device, and on the host while σ is computed from it.
_NOMINAL_HELD = 4
#: The same when whole trajectories are compared: both trajectories, and their difference and its square in float64.
_WHOLE_HELD = 6
#: Bytes per byte of one step: its difference in float32 and in float64.
_STEP_HELD = 3


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a sweep, in bytes.

    Parameters
    ----------
    weights : int
        All weights, counted once.
    per_context : int
        Activations of one context of a chunk, and the buffers for comparing one of its steps.
    held : int
        Trajectories of all contexts.
    """

    weights: int
    per_context: int
    held: int = 0

    def total(self, chunk: int) -> int:
        """Return the bytes needed with `chunk` contexts in a chunk."""
        return int(_WEIGHTS_HELD * self.weights) + self.held + chunk * self.per_context

    def most_contexts(self, max_bytes: int, at_least: int = 1) -> int:
        """Return the largest chunk that fits.

        Raises
        ------
        InputError
            Not even `at_least` contexts fit.
        """
        room = max_bytes - int(_WEIGHTS_HELD * self.weights) - self.held
        if room < at_least * self.per_context:
            named = "one context needs" if at_least == 1 else f"the {at_least} contexts of a call need"
            raise InputError(
                f"{named} about {self.total(at_least) / 1e6:.0f} MB, more than `max_memory` allows",
                todo="Raise `max_memory`",
            )
        return max(1, room // max(1, self.per_context))


def memory_of(source: Exposable, spec: RolloutSpec, contexts: Contexts) -> Memory:
    """Return the memory that a sweep of this model over these contexts needs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    _fix_shapes(proto.graph, spec, contexts)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    sizes = {v.name: _bytes(v.type.tensor_type) for v in (*inferred.graph.value_info, *inferred.graph.output)}
    step = sum(sizes.get(name, 0) for name in spec.trajectory.outputs)
    whole = spec.rollout.is_made_whole
    held = (_WHOLE_HELD if whole else _NOMINAL_HELD) * step * spec.rollout.steps * contexts.n_contexts
    per_context = _fullest(proto.graph, sizes) + (0 if whole else _STEP_HELD * step)
    return Memory(sum(a.nbytes for a in source.arrays.values()), per_context, held)


def _fix_shapes(graph: onnx.GraphProto, spec: RolloutSpec, contexts: Contexts) -> None:
    """Set the input shapes to those of one context."""
    batch = spec.rollout.batch_axis
    for value in graph.input:
        if value.name not in contexts.arrays:
            continue
        shape = list(contexts.arrays[value.name].shape[2 if value.name in spec.forced else 1 :])
        if batch is not None and value.name not in spec.shared:
            shape.insert(batch, 1)
        kind = value.type.tensor_type
        del kind.shape.dim[:]
        for size in shape:
            kind.shape.dim.add(dim_value=size)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _bytes(kind: onnx.TypeProto.Tensor) -> int:
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
    width: dict[int, int] = {
        onnx.TensorProto.DOUBLE: 8,
        onnx.TensorProto.INT64: 8,
        onnx.TensorProto.FLOAT16: 2,
    }
    return math.prod(dims) * width.get(int(kind.elem_type), 4)


def _fullest(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int:
    """Return the bytes alive at the point where they are most."""
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last.update({o.name: len(graph.node) for o in graph.output})
    alive: dict[str, int] = {}
    most = 0
    for index, node in enumerate(graph.node):
        alive.update({name: sizes.get(name, 0) for name in node.output if name in last})
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last[name] > index}
    return most
