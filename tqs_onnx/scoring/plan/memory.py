"""Estimate the memory of a sweep from the graph, before anything is rolled out.

    weights      all once in the model, and at worst half of them again for what kernels prepare of constants, of which
                 there are none above `strategy.MOST_CONSTANT_BYTES`; or, if that is more, two perturbed targets (one is
                 computed while the other is rolled out); and what rounding the biggest weight takes meanwhile
    contexts     the arrays as they were read, truths too, unless they lie in temporary files (`inputs.data`); the
                 states again, once for the noise floor and once if rollouts are mirrored; and what stays placed on the
                 device (`rollout.chunks`)
    activations  of one chunk, where most bytes are alive when the nodes run in stored order, with one step's
                 differences; twice, because the runtime's arenas grow by powers of two
    nominal      the trajectory outputs of every step of all contexts, kept once for comparisons (`rollout.held`), and a
                 twentieth for what the runtime's arenas lose between them

Only the last one grows with the number of steps. Under `max_memory` it gets what the others leave, and lies in a
temporary file if that is too little. Shapes are those that ONNX's shape inference finds for one context; values of
unknown shape count as zero bytes. This is an estimate of what is taken beyond a process that has loaded its libraries
(some 200 MB): the runtime may reuse buffers better, and its kernels need some additional memory.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx

from tqs_onnx.rollout.chunks import MOST_PLACED_BYTES
from tqs_onnx.rollout.contexts.context_set import Contexts, n_held_bytes
from tqs_onnx.rollout.held import Where, place_of
from tqs_onnx.rollout.injection import Exposable
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.scoring.plan.perturbation import Perturbation
from tqs_onnx.scoring.plan.strategy import MOST_CONSTANT_BYTES, prepacked_bytes
from tqs_passes.errors import InputError

#: Bytes that kernels prepare per byte of weights.
_PREPARED = 0.5
#: Perturbed targets in memory.
_PERTURBED = 2
#: Bytes per byte of a weight while it is rounded.
_ROUNDED = 2
#: Bytes per byte of one step: the nominal outputs beside its own, and their difference in float32 and in float64.
_STEP_HELD = 4
#: Bytes that the runtime takes per byte that is alive: its arenas grow by powers of two.
_ARENA = 2
#: Bytes that a held rollout takes per byte; 1.037 measured at 160 steps of 16.8 MB.
_HELD = 1.05


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a sweep, in bytes.

    Parameters
    ----------
    weights : int
        All weights, counted once.
    prepared : int
        What kernels prepare of weights that are constants.
    biggest : int
        The biggest weight.
    target : int
        Weights of the biggest target.
    contexts : int
        Arrays of all contexts, the copies of states, and what stays placed.
    per_context : int
        Activations of one context of a chunk, and the buffers for comparing one of its steps.
    nominal : int
        Outputs of all steps of all contexts.
    """

    weights: int
    prepared: int
    biggest: int
    target: int
    contexts: int
    per_context: int
    nominal: int

    def beside(self, chunk: int) -> int:
        """Return the bytes of everything but the nominal rollout, with `chunk` contexts in a chunk."""
        held = self.weights + max(self.prepared, _PERTURBED * self.target)
        return held + _ROUNDED * self.biggest + self.contexts + chunk * self.per_context

    def most_contexts(self, max_bytes: int, at_least: int = 1) -> int:
        """Return the largest chunk that fits when the nominal rollout lies in a file.

        Raises
        ------
        InputError
            Not even `at_least` contexts fit.
        """
        room = max_bytes - self.beside(0)
        if room < at_least * self.per_context:
            named = "one context needs" if at_least == 1 else f"the {at_least} contexts of a call need"
            raise InputError(
                f"{named} about {self.beside(at_least) / 1e6:.0f} MB, more than `max_memory` allows",
                todo="Raise `max_memory`",
            )
        return max(1, room // max(1, self.per_context))

    def room_for_nominal(self, max_bytes: int | None, chunk: int) -> int | None:
        """Return the bytes of a nominal rollout for which memory is left; None without a limit."""
        return None if max_bytes is None else max(0, int((max_bytes - self.beside(chunk)) / _HELD))

    @property
    def held(self) -> int:
        """The bytes that the nominal rollout takes in memory."""
        return int(_HELD * self.nominal)

    def place(self, max_bytes: int | None, chunk: int, *, on_host: bool) -> Where:
        """Return where the nominal rollout is held."""
        return place_of(self.nominal, on_host=on_host, most_bytes=self.room_for_nominal(max_bytes, chunk))

    def total(self, chunk: int, *, in_file: bool = False) -> int:
        """Return the bytes needed with `chunk` contexts in a chunk."""
        return self.beside(chunk) + (0 if in_file else self.held)


def memory_of(
    source: Exposable, spec: RolloutSpec, contexts: Contexts, targets: Iterable[Perturbation] = ()
) -> Memory:
    """Return the memory that a sweep of these targets over these contexts needs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    _fix_shapes(proto.graph, spec, contexts)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    sizes = {v.name: _bytes(v.type.tensor_type) for v in (*inferred.graph.value_info, *inferred.graph.output)}
    step = sum(sizes.get(name, 0) for name in spec.trajectory.outputs)
    fed = {f.input for f in spec.feedback}
    state = Contexts({n: a for n, a in contexts.arrays.items() if n in fed}, {})
    n_copies = 2 if spec.rollout.flip_invariant else 1
    placed = sum(contexts.arrays[name].nbytes for name in spec.inputs)
    changed, weights = tuple(targets), sum(a.nbytes for a in source.arrays.values())
    is_exposed = sum(prepacked_bytes(w) for t in changed for w in t.weights) > MOST_CONSTANT_BYTES
    return Memory(
        weights=weights,
        prepared=0 if is_exposed else int(_PREPARED * weights),
        biggest=max((a.nbytes for a in source.arrays.values()), default=0),
        target=max((sum(source.arrays[w.name].nbytes for w in t.weights) for t in changed), default=0),
        contexts=n_held_bytes(contexts) + n_copies * n_held_bytes(state) + min(placed, MOST_PLACED_BYTES),
        per_context=_ARENA * (_fullest(proto.graph, sizes, spec.inputs) + _STEP_HELD * step),
        nominal=step * spec.rollout.steps * contexts.n_contexts,
    )


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


def _fullest(graph: onnx.GraphProto, sizes: Mapping[str, int], inputs: Collection[str]) -> int:
    """Return the bytes alive at the point where they are most; `inputs`: those of the graph that are no weights."""
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last.update({o.name: len(graph.node) for o in graph.output})
    fed = sum(
        _bytes(i.type.tensor_type) for i in graph.input if i.name in inputs
    )  # alive until the next step is fed
    alive: dict[str, int] = {}
    most = 0
    for index, node in enumerate(graph.node):
        alive.update({name: sizes.get(name, 0) for name in node.output if name in last})
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last[name] > index}
    return fed + most
