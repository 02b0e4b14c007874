"""Testbeds: a model with its rollout spec, contexts, σ and run options, and the sessions that roll it out.

A testbed opens each kind of session once, when first needed, and shares it with the testbeds that `on` (other contexts)
and `scaled` (another σ) return ::

    exposed      every weight that reaches an output is a graph input, so that any of them can be replaced
    capturing    the same, with the tensors that rounding reads as additional outputs
    legs         the same tensors, computed part by part
    file         a file under stock server options; closed after its rollout

Memory: the sessions share the weights with the model; each testbed that needs a nominal trajectory keeps its own.
`close` closes all sessions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.distance import Ruler, drift_of, n_space, ruler_for
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.feedback import FeedbackSession
from tqs_onnx.rollout.guard import most_in_memory
from tqs_onnx.rollout.held import Held
from tqs_onnx.rollout.injection import GroupSession, switchable
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.placement import Placement
from tqs_onnx.rollout.session import Provider, Session, Value, open_session, resolve_provider
from tqs_onnx.rollout.spec.check import fixed_batch
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.spread import sigma_of
from tqs_onnx.rollout.stream import Piece, Stream
from tqs_onnx.rollout.trajectory import Trajectory
from tqs_passes.encode.static import Kind
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model, serialize
from tqs_passes.graph.segments import segments
from tqs_passes.graph.split_model import value_types
from tqs_passes.transforms.capture import Capture, captured_names
from tqs_passes.transforms.expose import Expose, weight_values
from tqs_passes.transforms.reveal import Reveal
from tqs_passes.weights import Survey


@dataclass(frozen=True, slots=True, eq=False)
class Capturing:
    """The session whose outputs include the tensors that weights are multiplied with.

    Parameters
    ----------
    session : Session
    engine : Engine
        Engine over the contexts of the testbed.
    outputs : dict of str to str
        Graph output that carries each captured tensor, by the tensor's name.
    arrays : dict of str to NDArray
        Nominal values of the exposed weights.
    nominal : dict of str to Value
        The same values on the device.
    """

    session: Session
    engine: Engine
    outputs: dict[str, str]
    arrays: dict[str, NDArray[Any]]
    nominal: dict[str, Value]


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """The session of one part of the model; see `tqs_passes.graph.segments.Segment` for its inputs and outputs."""

    session: Session
    reads: tuple[str, ...]
    makes: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Sessions:
    """State shared by the testbeds of one model."""

    exposed: GroupSession | None = None
    capturing: Capturing | None = None
    captured: tuple[str, ...] = ()
    legs: tuple[Leg, ...] = ()
    legs_of: tuple[tuple[str, ...], tuple[int, ...]] | None = None
    feedback: FeedbackSession | None = None


class Testbed:
    """Rolls out a model (see the module docstring).

    Parameters
    ----------
    model : Model
        Lifted model.
    survey : Survey
        Its weights.
    spec : RolloutSpec
        Checked against the model.
    contexts : Contexts
    run : RunOptions
    sigma : dict of str to float, optional
        σ_v of every variable; measured on the contexts if not given.

    Raises
    ------
    InputError
        `run.devices` names GPUs, and none works here.
    """

    __test__ = False  # pytest collects classes whose name begins with "Test"

    def __init__(
        self,
        model: Model,
        survey: Survey,
        spec: RolloutSpec,
        contexts: Contexts,
        run: RunOptions | None = None,
        sigma: Mapping[str, float] | None = None,
    ) -> None:
        run = run or RunOptions()
        self.model = model
        self.survey = survey
        self.weights = tuple(w for w in survey.weights if w.outputs)
        self.spec = spec
        self.contexts = contexts
        self.provider: Provider = resolve_provider(run.provider)
        if self.provider == "cpu" and run.devices:
            raise InputError(
                "no GPU works here, and `devices` names some", todo="Run tqs doctor, or leave `devices` out"
            )
        self.run = replace(run, provider=self.provider)
        self._sigma = None if sigma is None else dict(sigma)
        self._switched: tuple[tuple[str, ...], Kind | None] = ((), None)
        self._sessions = _Sessions()
        self._held: Held | None = None
        self._fed: GroupSession | None = None

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model's inputs fix; None if they leave it open."""
        return fixed_batch(self.spec, self.exposed.session.signature)

    def on(self, contexts: Contexts) -> Testbed:
        """Return a testbed over other contexts of the same shapes that shares the sessions of this one."""
        if contexts is self.contexts:
            return self
        other = copy.copy(self)
        other.contexts, other._held, other._fed = contexts, None, None
        return other

    def scaled(self, sigma: Mapping[str, float]) -> Testbed:
        """Return a testbed with another σ that shares the sessions and the nominal rollout of this one."""
        other = copy.copy(self)
        other._sigma = dict(sigma)
        return other

    def switched(self, weights: tuple[str, ...], kind: Kind | None = None) -> Testbed:
        """Return a testbed with sessions of its own, in which the inputs of these weights' readers can be rounded.

        The rounding is that of the form `dynamic`, or of `static` with integers of a kind. `exposed.switches` holds the
        inputs that switch it on; weights whose readers cannot have it have none.
        """
        if (weights, kind) == self._switched:
            return self
        other = copy.copy(self)
        other._switched = (weights, kind)
        other._sessions = _Sessions(feedback=self._sessions.feedback)
        other._held = other._fed = None
        return other

    def close(self) -> None:
        """Close all sessions, also for the testbeds that share them; a session reopens when it is needed again."""
        sessions = self._sessions
        sessions.exposed = sessions.capturing = sessions.feedback = None
        sessions.captured = sessions.legs = ()
        sessions.legs_of = None
        # Rollouts of a session that is opened again are compared with its own nominal rollout.
        self._held = self._fed = None

    @property
    def exposed(self) -> GroupSession:
        """The session over these contexts in which every weight that reaches an output can be replaced.

        Raises
        ------
        InputError
            The model does not load.
        """
        sessions = self._sessions
        if sessions.exposed is None:
            source = switchable(self.model, self.weights, *self._switched)
            sessions.exposed = GroupSession(
                source, self.weights, self.spec, self.contexts, self.run, feedback=sessions.feedback
            )
            sessions.feedback = sessions.exposed.engine.feedback
        if self._fed is None or self._fed.session is not sessions.exposed.session:
            self._fed = sessions.exposed.over(self.contexts)
        return self._fed

    def hold(self) -> Held:
        """Return the rollout of the exposed session with nominal weights, as far as comparisons need it; made once.

        Raises
        ------
        InputError, NonFiniteError
            See `Engine.hold`.
        """
        if self._held is None:
            self._held = self.exposed.hold(most_in_memory(self.run.max_memory))
        return self._held

    def nominal(self) -> Iterator[Piece]:
        """Yield the nominal rollout, one step at a time; the model runs only for the first (see `hold`)."""
        return self.exposed.kept_pieces(self.hold())

    @property
    def sigma(self) -> dict[str, float]:
        """σ_v of every variable: as given, otherwise measured on the nominal rollout (see `variables.sigma`)."""
        if self._sigma is None:
            self._sigma = sigma_of(self.spec, self.contexts, self.hold(), self.nominal)
        return self._sigma

    @property
    def ruler(self) -> Ruler:
        """Measures distances between trajectories of these contexts, in units of σ."""
        return ruler_for(self.hold().template, self.spec, self.contexts, self.sigma)

    def drift(self, ours: Iterable[Piece], other: Iterable[Piece] | None = None) -> float:
        """Return the drift of a rollout from another of the same contexts, by default from the nominal one."""
        squares, spaces = self._squares(ours, other)
        return drift_of(squares, spaces)

    def energies(self, ours: Iterable[Piece], other: Iterable[Piece] | None = None) -> NDArray[np.float64]:
        """Return the squared drift of every context; the root of their mean is the drift."""
        squares, spaces = self._squares(ours, other)
        ruler = self.ruler
        return np.asarray(ruler.energy(squares, spaces).sum(axis=1) / ruler.n_values)

    def _squares(
        self, ours: Iterable[Piece], other: Iterable[Piece] | None
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, int]]:
        squares = self.ruler.squares_of(ours, self.nominal() if other is None else other)
        return squares, n_space(self.hold().template, self.spec, self.contexts)

    def capturing(self, tensors: tuple[str, ...]) -> Capturing:
        """Return the session over these contexts that outputs these tensors.

        Raises
        ------
        InputError
            The model does not load.
        """
        sessions = self._sessions
        if sessions.capturing is None or sessions.captured != tensors:
            sessions.capturing, sessions.captured = self._opened_capturing(tensors), tensors
        found = sessions.capturing
        return replace(found, engine=found.engine.over(self.contexts))

    def _opened_capturing(self, tensors: tuple[str, ...]) -> Capturing:
        shown = Reveal(tensors).apply(self.model).model
        exposed = Expose(tuple(w.name for w in self.weights)).apply(shown)
        outputs = captured_names(exposed.model, tensors)
        visible = Capture(tensors).apply(exposed.model)
        # It runs a few times, and shows much more than it keeps: its arena would hold all that.
        options = replace(self.run.for_scoring(), memory_pattern=False, arena=False)
        session = open_session(serialize(visible.model.proto), provider=self.provider, options=options)
        dtypes = {w.name: w.dtype for w in self.weights}
        arrays = {name: weight_values(self.model, name, dtypes[name]) for name in exposed.changed}
        nominal = {name: session.value(array) for name, array in arrays.items()}
        return Capturing(session, self._engine_of(session), outputs, arrays, nominal)

    def legs(self, tensors: tuple[str, ...], cuts: tuple[int, ...]) -> tuple[Leg, ...]:
        """Return sessions that compute these tensors part by part; all weights are inputs.

        Parameters
        ----------
        tensors : tuple of str
        cuts : tuple of int
            Positions of the nodes that begin a part. There are fewer parts where the type of a value is unknown.

        Raises
        ------
        InputError
            The model does not load.
        """
        sessions = self._sessions
        if sessions.legs_of != (tensors, cuts):
            shown = Reveal(tensors).apply(self.model).model
            proto = Expose(tuple(w.name for w in self.weights)).apply(shown).model.proto
            # Many sessions, of which one runs at a time: each arena would keep what its part needs at most.
            options = replace(self.run.for_scoring(), memory_pattern=False, arena=False)
            sessions.legs = tuple(
                Leg(
                    open_session(serialize(part.model), provider=self.provider, options=options),
                    part.reads,
                    part.makes,
                )
                for part in segments(proto, cuts, tensors, value_types(proto))
                if part.makes
            )
            sessions.legs_of = tensors, cuts
        return sessions.legs

    def roll_file(self, path: Path, *, keep_other: bool = True) -> Trajectory:
        """Roll out a file in a session with stock options, as a server would.

        Parameters
        ----------
        path : Path
            A model with the same inputs and outputs.
        keep_other : bool
            Keep the graph outputs outside the trajectory as well.

        Raises
        ------
        InputError, NonFiniteError
            See `open_session` and `Engine.run`.
        """
        return self._engine_of(self._file(path)).run(keep_other=keep_other)

    def first_outputs(self, path: Path) -> dict[str, NDArray[Any]]:
        """Return the trajectory outputs of the first call of a file, as the model gives them; see `roll_file`."""
        engine = self._engine_of(self._file(path))
        names = self.spec.trajectory.outputs
        _, outputs = next(engine.walk(extra=names))
        return {name: outputs[name].numpy() for name in names}

    def stream_file(self, path: Path, *, keep_other: bool = False, stock: bool = True) -> Stream:
        """Return the rollout of a file one step at a time, in a session that each run opens.

        Parameters
        ----------
        path : Path
            A model with the same inputs and outputs.
        keep_other : bool
            Yield the graph outputs outside the trajectory as well.
        stock : bool
            Run it as a server would; else under the options of scoring. There is no difference on the CPU.

        Returns
        -------
        Stream
            Calling it raises what `open_session` and `Engine.pieces` raise, as the pieces are taken.
        """

        def run() -> Iterator[Piece]:
            yield from self._engine_of(self._file(path, stock=stock)).pieces(keep_other=keep_other)

        return run

    def placement_of(self, path: Path) -> Placement | None:
        """Return where the nodes of a file run; None on the CPU, and if the runtime does not say.

        Raises
        ------
        InputError
            The file does not load, or `strict_device` refuses it.
        """
        return None if self.provider == "cpu" else self._file(path).placement

    def _file(self, path: Path, *, stock: bool = True) -> Session:
        options = self.run.for_serving() if stock else self.run.for_scoring()
        return open_session(path, provider=self.provider, options=options)

    def _engine_of(self, session: Session) -> Engine:
        """Return an engine of a session over these contexts; all engines share the feedback session."""
        sessions, batch = self._sessions, self.run.batch
        engine = Engine(session, self.spec, self.contexts, batch=batch, feedback=sessions.feedback)
        sessions.feedback = engine.feedback
        return engine
