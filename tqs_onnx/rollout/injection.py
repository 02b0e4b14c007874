"""Runs perturbed rollouts: separates scoring from the way weights are injected.

There are three ways. `GroupSession` opens one session in which a group of weights are graph inputs; `Rebuilt` builds a
session per rollout, with the perturbed weights as constants ::

    all in one group        every weight is an input; nothing is rebuilt. Kernels lose what they prepare from constant
                            weights (prepacking); the shorter the batch, the greater the loss.
    g weights per group     the other weights stay constants, shared with the session instead of copied, and prepacked.
                            A session is built per group, and each has its own nominal rollout. The session can be split
                            where the group first matters: at the first step the part before it is nominal in every
                            rollout and computed once.
    rebuilt                 calls lose nothing, and one nominal rollout serves all; each rollout needs its own session,
                            which is built while the previous rollout runs.

Nominal and perturbed trajectories always come from the same compiled graph. `tqs_onnx.scoring.plan.strategy` chooses
the cheapest way.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import onnx
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine, Squares, Trajectory, Watch
from tqs_onnx.rollout.feedback import FeedbackSession
from tqs_onnx.rollout.held import Held
from tqs_onnx.rollout.options import AnyProvider, RunOptions
from tqs_onnx.rollout.placement import Placement
from tqs_onnx.rollout.session import Session, Value, host_value, open_session
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.split_session import SplitSession
from tqs_onnx.rollout.stream import Piece
from tqs_passes.encode.static import Kind
from tqs_passes.encode.weight import ROUNDED
from tqs_passes.files.model import Model, serialize
from tqs_passes.graph.split_model import Halves, split, value_types
from tqs_passes.plan.plan import Assignment
from tqs_passes.transforms.expose import Expose, weight_values
from tqs_passes.transforms.switch import Switch, SwitchInputs, switch_inputs
from tqs_passes.weights import Weight

#: A placeholder: the values are passed to the session, and the file is never opened.
_NOWHERE = (("location", "unused"), ("offset", "0"))


class Injection(Protocol):
    """A way to roll a model out with some weights replaced."""

    #: Whether a session is built for every rollout.
    builds: bool

    @property
    def placement(self) -> Placement | None:
        """Where the nodes of the nominal session run; None on the CPU, and if the runtime does not say."""
        ...

    def values(self, weight: Weight) -> NDArray[Any]:
        """Return the nominal values of a weight, in its dtype."""
        ...

    def prepare(self, replaced: Mapping[str, NDArray[Any]]) -> Ready:
        """Prepare a rollout with these weights replaced; safe to call while another rollout runs."""
        ...

    def hold(self, most_bytes: int | None = None) -> Held:
        """Roll out with all weights nominal, and keep what comparisons with this rollout need; see `Engine.hold`."""
        ...

    def kept_pieces(self, held: Held) -> Iterator[Piece]:
        """Yield a held rollout, one step at a time."""
        ...

    def squares_from(self, contexts: Contexts, held: Held) -> Squares:
        """Roll out from other contexts with all weights nominal, and compare with `held`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A prepared rollout; it can run once.

    Parameters
    ----------
    engine : Engine
    values : dict of str to Value
        All exposed weights.
    """

    engine: Engine
    values: dict[str, Value]

    def squares(self, held: Held, *, watch: Watch | None = None) -> Squares:
        """Roll out and compare with the nominal rollout; see `Engine.squares`."""
        return self.engine.squares(held, self.values, watch=watch)


@dataclass(frozen=True, slots=True, eq=False)
class Exposable:
    """A model prepared so that any group of its weights can be exposed.

    Parameters
    ----------
    proto : ModelProto
        The model with every weight as a graph input; small, whatever the size of the weights.
    arrays : dict of str to array
        Values of the weights: views of the model's memory, or of its memory-mapped file.
    switches : dict of str to SwitchInputs
        Graph inputs that switch the rounding of a reader's input, by the reader's weight (`transforms.switch`).
    """

    proto: onnx.ModelProto
    arrays: dict[str, NDArray[Any]]
    switches: dict[str, SwitchInputs] = field(default_factory=dict[str, SwitchInputs])

    def opened_for(self, group: frozenset[str]) -> tuple[bytes, tuple[str, ...]]:
        """Return the serialized model with `group` exposed, and the names of the weights to pass to the session."""
        proto, names = self._with_constants(group)
        return serialize(proto), names

    def split_for(self, group: frozenset[str]) -> Halves | None:
        """Return the model with `group` exposed, split where the group first matters; None if that is at the start."""
        return split(self._with_constants(group)[0], group, value_types(self.proto))

    def _with_constants(self, group: frozenset[str]) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        constant = [i for i in proto.graph.input if i.name in self.arrays and i.name not in group]
        for info in constant:
            kind = info.type.tensor_type
            array = self.arrays[info.name]
            tensor = proto.graph.initializer.add(name=info.name, data_type=kind.elem_type, dims=array.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (*_NOWHERE, ("length", str(array.nbytes))):
                tensor.external_data.add(key=key, value=value)
        names = tuple(i.name for i in constant)
        for info in constant:
            proto.graph.input.remove(info)
        return proto, names


def switchable(
    model: Model, weights: Iterable[Weight], switched: tuple[str, ...], kind: Kind | None = None
) -> Exposable:
    """Prepare a lifted model in which also the inputs of the readers of the `switched` weights can be rounded."""
    plain = exposable(model, weights)
    if not switched:
        return plain
    made = Switch(switched, kind).apply(replace(model, proto=plain.proto)).model.proto
    return replace(plain, proto=made, switches=switch_inputs(made, switched))


def exposable(model: Model, weights: Iterable[Weight]) -> Exposable:
    """Prepare a lifted model once for all groups of these weights."""
    chosen = tuple(weights)
    exposed = Expose(tuple(w.name for w in chosen)).apply(model)
    present = set(exposed.changed)
    arrays = {w.name: weight_values(model, w.name, w.dtype) for w in chosen if w.name in present}
    return Exposable(exposed.model.proto, arrays)


class GroupSession:
    """One session with a group of weights as inputs (see the module docstring).

    Parameters
    ----------
    source : Exposable
    group : tuple of Weight
        The weights that can be replaced.
    spec : RolloutSpec
    contexts : Contexts
    run : RunOptions
    prefix : bool
        Compute the part before the group only once for the first step, if there is one.
    feedback : FeedbackSession, optional
        See `Engine`.
    """

    builds = False

    def __init__(
        self,
        source: Exposable,
        group: tuple[Weight, ...],
        spec: RolloutSpec,
        contexts: Contexts,
        run: RunOptions,
        *,
        prefix: bool = False,
        feedback: FeedbackSession | None = None,
    ) -> None:
        self._options = run.for_scoring()
        names = [w.name for w in group if w.name in source.arrays]
        self._arrays = source.arrays
        self._constants = {n: host_value(a) for n, a in source.arrays.items() if n not in names}
        self._provider: AnyProvider = run.provider
        halves = source.split_for(frozenset(names)) if prefix else None
        self.session: Session | SplitSession
        if halves is None:
            self.session = self._opened(source.opened_for(frozenset(names))[0], self._constants)
        else:
            head, tail = (
                self._opened(serialize(part), {t.name for t in part.graph.initializer})
                for part in (halves.head, halves.tail)
            )
            self.session = SplitSession(
                head, tail, halves.cut, tuple(o.name for o in source.proto.graph.output)
            )
        self.engine = Engine(self.session, spec, contexts, batch=run.batch, feedback=feedback)
        self.switches = source.switches
        self._nominal = {name: self.session.value(source.arrays[name]) for name in names}
        for switch in self.switches.values():
            self._nominal |= {name: self.session.value(value) for name, value in switch.off().items()}

    @property
    def placement(self) -> Placement | None:
        """Where the nodes of its session run; None on the CPU, and if the runtime does not say."""
        return self.session.placement

    def _opened(self, serialized: bytes, present: Collection[str]) -> Session:
        stored = {name: value for name, value in self._constants.items() if name in present}
        return open_session(serialized, provider=self._provider, options=self._options, stored=stored)

    def over(self, contexts: Contexts) -> GroupSession:
        """Return the same session over other contexts of the same shapes."""
        other = copy.copy(self)
        other.engine = self.engine.over(contexts)
        return other

    def values(self, weight: Weight) -> NDArray[Any]:
        """Return the nominal values of a weight, in its dtype."""
        return self._arrays[weight.name]

    def rounding(self, a: Assignment) -> dict[str, NDArray[Any]]:
        """Return what rounds the input of a weight's reader as the assignment has it: values for `prepare`."""
        is_rounded = a.form in ROUNDED and a.weight in self.switches
        return dict(self.switches[a.weight].on(a.ranges)) if is_rounded else {}

    def prepare(self, replaced: Mapping[str, NDArray[Any]]) -> Ready:
        """Put the replaced weights on the device."""
        changed = {name: self.session.value(array) for name, array in replaced.items()}
        return Ready(self.engine, {**self._nominal, **changed})

    def hold(self, most_bytes: int | None = None) -> Held:
        """Roll out with all weights nominal, and keep what comparisons with this rollout need; see `Engine.hold`."""
        return self.engine.hold(self._nominal, most_bytes=most_bytes)

    def kept_pieces(self, held: Held) -> Iterator[Piece]:
        """Yield a held rollout, one step at a time."""
        return self.engine.kept_pieces(held)

    def run(self, replaced: Mapping[str, NDArray[Any]], *, keep_other: bool = False) -> Trajectory:
        """Roll out with the named weights replaced, all others nominal."""
        return self.engine.run(self.prepare(replaced).values, keep_other=keep_other)

    def pieces(self, replaced: Mapping[str, NDArray[Any]]) -> Iterator[Piece]:
        """Roll out with the named weights replaced, one step at a time; see `Engine.pieces`."""
        return self.engine.pieces(self.prepare(replaced).values)

    def squares_from(self, contexts: Contexts, held: Held) -> Squares:
        """Roll out from other contexts with all weights nominal, and compare with `held`."""
        return self.engine.over(contexts).squares(held, self._nominal)


class Rebuilt:
    """One session per rollout; replaced weights are constants: prepacked, shared, in the same compiled graph.

    Weights of a single value are exposed instead: an optimizer may read such a value and compile a different graph.
    See `GroupSession` for the parameters.
    """

    builds = True

    def __init__(
        self,
        source: Exposable,
        spec: RolloutSpec,
        contexts: Contexts,
        run: RunOptions,
    ) -> None:
        self._arrays = source.arrays
        self._options = run.for_scoring()
        single = frozenset(name for name, array in source.arrays.items() if array.size == 1)
        self._serialized, constants = source.opened_for(single)
        self._constants = {name: host_value(source.arrays[name]) for name in constants}
        self._nominal = {name: host_value(source.arrays[name]) for name in sorted(single)}
        self._engine = Engine(self._built({}), spec, contexts, batch=run.batch)

    @property
    def placement(self) -> Placement | None:
        """None: it runs on the CPU only."""
        return None

    def _built(self, replaced: Mapping[str, Value]) -> Session:
        return open_session(self._serialized, options=self._options, stored={**self._constants, **replaced})

    def values(self, weight: Weight) -> NDArray[Any]:
        """Return the nominal values of a weight, in its dtype."""
        return self._arrays[weight.name]

    def prepare(self, replaced: Mapping[str, NDArray[Any]]) -> Ready:
        """Build the session of a rollout."""
        changed = {name: host_value(array) for name, array in replaced.items()}
        constant = {name: value for name, value in changed.items() if name in self._constants}
        exposed = {name: value for name, value in changed.items() if name not in constant}
        engine = self._engine.of(self._built(constant)) if constant else self._engine
        return Ready(engine, {**self._nominal, **exposed})

    def hold(self, most_bytes: int | None = None) -> Held:
        """Roll out with all weights nominal, and keep what comparisons with this rollout need; see `Engine.hold`."""
        return self._engine.hold(self._nominal, most_bytes=most_bytes)

    def kept_pieces(self, held: Held) -> Iterator[Piece]:
        """Yield a held rollout, one step at a time."""
        return self._engine.kept_pieces(held)

    def squares_from(self, contexts: Contexts, held: Held) -> Squares:
        """Roll out from other contexts with all weights nominal, and compare with `held`."""
        return self._engine.over(contexts).squares(held, self._nominal)
