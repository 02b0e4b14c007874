"""Roll a model out: call it `steps` times, feed outputs back on the device, and collect the trajectory.

    inputs₀ ──model──▶ outputs₁ ──update──▶ inputs₁ ──model──▶ outputs₂ … outputs_T
                          └── trajectory: concatenated along time_axis, or stacked, then cut to `length`

Contexts run in chunks along the batch axis. A run is deterministic for a given chunking; kernels may round
differently at another batch size, so compare only runs of the same engine over the same contexts.

A rollout that is only compared with another one keeps its values on the device; see `Engine.hold`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout import postprocess as mirror
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.feedback import FeedbackSession
from tqs_onnx.rollout.gauge import Held, Squares, gauge_for, squared
from tqs_onnx.rollout.session import Session, Value, host_value
from tqs_onnx.rollout.spec.check import fixed_batch
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.split_session import SplitSession
from tqs_onnx.rollout.stream import Piece, pieces_of
from tqs_onnx.rollout.trajectory import (
    ChunkOutputs,
    NonFiniteError,
    Trajectory,
    in_time,
    join,
    require_equal_times,
    require_length,
)
from tqs_onnx.rollout.variables import variable_at
from tqs_passes.errors import InputError

#: Contexts per call by default: enough to amortise reading the weights.
DEFAULT_BATCH = 32
#: Limit for the kept values of the first step, over all chunks; beyond it they are recomputed, with the same result.
_MOST_KEPT_BYTES = 256 << 20

#: Limit for the GPU memory of a held rollout; beyond it the values are moved to host memory.
_MOST_HELD_BYTES = 8 << 30

#: Called after every step of the first chunk with the step number, from 1, and the squares of every trajectory output
#: at that step, float64 ``[context, time, *rest]`` (see `Squares`); returning True stops the rollout there.
Watch = Callable[[int, Mapping[str, NDArray[np.float64]]], bool]

__all__ = [
    "DEFAULT_BATCH",
    "Engine",
    "Held",
    "NonFiniteError",
    "Squares",
    "Trajectory",
    "Watch",
]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Contexts that run together, with their values on the device, created once; `kept`: see `SplitSession.run`."""

    contexts: range
    inputs: dict[str, Value]
    forcing: tuple[dict[str, Value], ...]
    kept: dict[str, Value] = field(default_factory=dict[str, Value])


class Engine:
    """Rolls out one session over contexts, any number of times, with or without overridden weights.

    Parameters
    ----------
    session : Session or SplitSession
        The model, possibly with weights exposed as further inputs. For a split session, the head's outputs at the
        first step are kept from one rollout to the next.
    spec : RolloutSpec
        Checked against the model by `check_spec`.
    contexts : Contexts
    batch : int, optional
        Maximum number of contexts per call, default 32. A model with a fixed batch size runs with that size, and the
        last chunk is padded by repetition; a model without a batch axis runs one context at a time.
    feedback : FeedbackSession, optional
        The feedback of another engine of the same model and rollout, to share; created if not given.

    Raises
    ------
    InputError
        The contexts lack an input, or the batch is below 1.
    """

    def __init__(
        self,
        session: Session | SplitSession,
        spec: RolloutSpec,
        contexts: Contexts,
        *,
        batch: int | None = None,
        feedback: FeedbackSession | None = None,
    ) -> None:
        self.session = session
        self.spec = spec
        self.contexts = contexts
        _require_inputs(session, spec, contexts)
        if batch is not None and batch < 1:
            raise InputError(f"`batch` must be at least 1, not {batch}")
        if contexts.n_contexts == 0:
            raise InputError("holds no context at all", where=contexts.source)
        self.feedback = feedback or FeedbackSession(spec, session)
        self._fixed = fixed_batch(spec, session.signature)
        self._batch = self._fixed or (1 if spec.rollout.batch_axis is None else batch or DEFAULT_BATCH)
        self._asked = batch
        self._mirror: Engine | None = None
        self._chunks: dict[tuple[int, int], _Chunk] = {}
        self._covered = frozenset(spec.inputs)

    def over(self, contexts: Contexts) -> Engine:
        """Return an engine of the same session, over other contexts of the same shapes."""
        if contexts is self.contexts:
            return self
        _require_inputs(self.session, self.spec, contexts)
        other = copy.copy(self)
        other.contexts, other._chunks, other._mirror = contexts, {}, None
        return other

    def of(self, session: Session) -> Engine:
        """Return an engine of another, unsplit session of the same model over the same contexts.

        Raises
        ------
        InputError
            The session's inputs differ from those that the rollout feeds.
        """
        _require_inputs(session, self.spec, self.contexts)
        other = copy.copy(self)
        other.session = session
        other._mirror = None if self._mirror is None else self._mirror.of(session)
        return other

    def run(
        self,
        overrides: Mapping[str, Value] | None = None,
        contexts: slice | None = None,
        *,
        keep_other: bool = False,
    ) -> Trajectory:
        """Roll out.

        Parameters
        ----------
        overrides : mapping of str to Value, optional
            Values of further graph inputs (weights), bound at every step; create them with `session.value`.
        contexts : slice, optional
            A range of contexts, default all.
        keep_other : bool
            Keep the graph outputs outside the trajectory as well.

        Raises
        ------
        NonFiniteError
            A trajectory value is not finite.
        InputError
            An input has no value, an array changes its shape, the model fails, or the steps yield fewer time values
            than `length`.
        """
        overrides = self._complete(overrides)
        chosen = range(self.contexts.n_contexts)[contexts or slice(None)]
        if len(chosen) == 0 or chosen.step != 1:
            raise InputError(
                f"the slice {contexts} of {self.contexts.n_contexts} contexts is empty or has a step"
            )
        return self._finished(self._joined(chosen, overrides, keep_other, None), overrides)

    def pieces(
        self, overrides: Mapping[str, Value] | None = None, *, keep_other: bool = False
    ) -> Generator[Piece]:
        """Roll out all contexts and yield every step of every chunk; only the yielded step is in memory.

        A rollout that the spec averages or bounds at the end is made whole first. See `run` for parameters and errors.
        """
        if self.spec.rollout.is_made_whole:
            yield from pieces_of(self.run(overrides, keep_other=keep_other))
            return
        overrides, spec = self._complete(overrides), self.spec
        names = [p.name for p in self.session.signature.outputs]
        extra = [n for n in names if n not in spec.trajectory.outputs] if keep_other else []
        asked = {*spec.trajectory.outputs, *extra}
        for start in range(0, self.contexts.n_contexts, self._batch):
            chunk = self._chunk(start, min(start + self._batch, self.contexts.n_contexts))
            after = [0]
            for step, _, values in self._calls(chunk, overrides, asked, spec.rollout.steps):
                outputs = {n: self._on_host(values[n], n, step, chunk) for n in spec.trajectory.outputs}
                counts = [array.shape[1] for array in outputs.values()]
                require_equal_times(counts)
                time = slice(after[-1], after[-1] + counts[0])
                after.append(time.stop)
                if spec.rollout.length is not None:
                    time = slice(*(min(t, spec.rollout.length) for t in (time.start, time.stop)))
                    outputs = {n: array[:, : time.stop - time.start] for n, array in outputs.items()}
                other = {n: self._plain(values[n], chunk) for n in extra}
                yield Piece(slice(chunk.contexts.start, chunk.contexts.stop), step, time, outputs, other)
            require_length(after, spec)

    def hold(self, overrides: Mapping[str, Value] | None = None) -> tuple[Trajectory, Held]:
        """Roll out all contexts, and keep what comparisons with this rollout need; see `run` for the errors."""
        overrides = self._complete(overrides)
        chosen = range(self.contexts.n_contexts)
        if self.spec.rollout.is_made_whole:
            made = self._finished(self._joined(chosen, overrides, False, None), overrides)
            return made, Held(made.time_after, {}, None, made)
        steps: dict[int, list[dict[str, Value]]] = {}
        made = self._joined(chosen, overrides, False, steps)
        first = next(iter(steps.values()))[0]
        gauge = gauge_for(
            first,
            self.spec,
            has_columns=self.contexts.columns is not None,
            provider=self.session.provider,
            device=self.session.device,
        )
        return made, Held(made.time_after, steps, gauge)

    def squares(
        self, held: Held, overrides: Mapping[str, Value] | None = None, *, watch: Watch | None = None
    ) -> Squares:
        """Roll out all contexts and return the squared differences from a held rollout.

        Parameters
        ----------
        held : Held
            Held by an engine of the same session, or of one with the same signature, over contexts of these shapes.
        overrides : mapping of str to Value, optional
            See `run`.
        watch : callable, optional
            May stop the rollout early; the other chunks then run as many steps as the first. Not called if
            `held.whole` is set.

        Raises
        ------
        NonFiniteError
            A trajectory value or a squared difference is not finite.
        InputError
            See `run`.
        """
        overrides = self._complete(overrides)
        chosen = range(self.contexts.n_contexts)
        if held.whole is not None:
            made = self._finished(self._joined(chosen, overrides, False, None), overrides)
            return Squares(squared(made.outputs, held.whole.outputs), made.time_after)
        steps = self.spec.rollout.steps
        parts: list[ChunkOutputs] = []
        for start in range(0, chosen.stop, self._batch):
            chunk = self._chunk(start, min(start + self._batch, chosen.stop))
            parts.append(self._compared(chunk, overrides, held, steps, watch))
            steps, watch = parts[-1].steps, None
        joined = join(parts, chosen, self.spec)
        return Squares(joined.outputs, joined.time_after)

    def _complete(self, overrides: Mapping[str, Value] | None) -> dict[str, Value]:
        """Return the overrides; raise unless they and the spec give every input a value."""
        given = dict(overrides or {})
        for port in self.session.signature.inputs:
            if port.name not in self._covered and port.name not in given:
                raise InputError(
                    f"input {port} has no value: rollout.toml does not cover it and no override gives it",
                    todo=f'Add [[feedback]], [[forcing]] or [[static]] with input = "{port.name}"',
                )
        return given

    def _finished(self, made: Trajectory, overrides: Mapping[str, Value]) -> Trajectory:
        """Return a trajectory, averaged and bounded if the spec says so."""
        if self.spec.rollout.flip_invariant:
            if self._mirror is None:
                turned = mirror.flipped(self.contexts, self.spec)
                plain = mirror.without_mirror(self.spec)
                self._mirror = Engine(self.session, plain, turned, batch=self._asked, feedback=self.feedback)
            other = self._mirror._joined(made.contexts, overrides, False, None)
            made = mirror.averaged(made, other)
        return mirror.bounded(made, self.contexts, self.spec) if self.spec.rollout.non_negative else made

    def _joined(
        self,
        chosen: range,
        overrides: Mapping[str, Value],
        keep_other: bool,
        held: dict[int, list[dict[str, Value]]] | None,
    ) -> Trajectory:
        """Roll out all chunks; if `held` is given, also store there what it holds (see `Held.steps`)."""
        parts: list[ChunkOutputs] = []
        for start in range(chosen.start, chosen.stop, self._batch):
            chunk = self._chunk(start, min(start + self._batch, chosen.stop))
            keep = None if held is None else held.setdefault(start, [])
            parts.append(self._roll(chunk, overrides, keep_other, keep))
        return join(parts, chosen, self.spec)

    def walk(
        self, overrides: Mapping[str, Value] | None = None, extra: Sequence[str] = ()
    ) -> Generator[tuple[dict[str, Value], dict[str, Value]]]:
        """Yield (inputs, outputs) of every call of a rollout, chunk by chunk, so that callers can inspect each step.

        Parameters
        ----------
        overrides : mapping of str to Value, optional
            See `run`; the yielded inputs do not contain them.
        extra : sequence of str
            Outputs requested in addition to those that are fed back.

        Raises
        ------
        InputError
            An array changes its shape, or the model fails.
        """
        for start in range(0, self.contexts.n_contexts, self._batch):
            chunk = self._chunk(start, min(start + self._batch, self.contexts.n_contexts))
            asked = {*extra, *self.feedback.fed}
            for _, inputs, outputs in self._calls(chunk, overrides or {}, asked, self.spec.rollout.steps):
                yield inputs, outputs

    def _calls(
        self, chunk: _Chunk, overrides: Mapping[str, Value], extra: Collection[str], steps: int
    ) -> Generator[tuple[int, dict[str, Value], dict[str, Value]]]:
        """Yield (step, inputs, outputs) of every call of a chunk; outputs are those in `extra` and those fed back."""
        inputs = {**chunk.inputs, **chunk.forcing[0]}
        for step in range(1, steps + 1):
            wanted = {*extra, *(self.feedback.fed if step < steps else ())}
            where = _where(step, chunk)
            asked = [p.name for p in self.session.signature.outputs if p.name in wanted]
            try:
                if step == 1 and isinstance(self.session, SplitSession):
                    outputs = self._first(self.session, chunk, {**inputs, **overrides}, asked, where)
                else:
                    outputs = self.session.run({**inputs, **overrides}, asked, where=where)
            except InputError as error:
                if len(chunk.contexts) < 2 or error.todo or self._fixed is not None:
                    raise
                todo = "Set `batch` to 1, in case the model takes one context a call"
                raise InputError(error.what, where=error.where, todo=todo) from error
            if step == 1:
                self._require_stated(outputs, chunk)
            yield step, inputs, outputs
            if step < steps:
                inputs = self.feedback.advance(inputs, outputs, chunk.forcing[step], step + 1)

    def _require_stated(self, outputs: Mapping[str, Value], chunk: _Chunk) -> None:
        """Refuse outputs of other shapes than the model states, and outputs without one entry per context."""
        axis, n = self.spec.rollout.batch_axis, self._fixed or len(chunk.contexts)
        for name in {*self.spec.trajectory.outputs, *self.feedback.fed} & outputs.keys():
            port, shape = self.session.signature.output(name), outputs[name].shape
            stated = port.shape if port.shape is not None and len(port.shape) == len(shape) else None
            wrong = port.shape is not None and stated is None
            for at, (says, size) in enumerate(zip(stated or (), shape, strict=False)):
                wrong = wrong or (isinstance(says, int) and says != size and at != axis)
            if wrong or (axis is not None and (axis >= len(shape) or shape[axis] != n)):
                per = f" for a batch of {n}" if axis is not None else ""
                raise InputError(
                    f"the model states output {port}, but gave {list(shape)}{per}",
                    where=_where(1, chunk),
                    todo="Export the model with the right shape"
                    + (", or set rollout.batch_axis to the axis of the batch" if axis is not None else ""),
                )

    def _chunk(self, start: int, stop: int) -> _Chunk:
        if (start, stop) not in self._chunks:
            indices = list(range(start, stop))
            indices += [stop - 1] * ((self._fixed or 0) - len(indices))
            inputs = {
                n: self._placed(n, self.contexts.arrays[n][indices], start)
                for n in self.spec.inputs
                if n not in self.spec.forced
            }
            forcing = tuple(
                {
                    n: self._placed(n, self.contexts.arrays[n][indices, step], start)
                    for n in sorted(self.spec.forced)
                }
                for step in range(self.spec.rollout.steps)
            )
            self._chunks[start, stop] = _Chunk(range(start, stop), inputs, forcing)
        return self._chunks[start, stop]

    def _placed(self, name: str, array: NDArray[Any], start: int) -> Value:
        """Convert [context, ...] to the model's layout: batch axis in its place, or no batch axis."""
        axis = self.spec.rollout.batch_axis
        if axis is not None and name not in self.spec.shared:
            return self.session.value(np.moveaxis(array, 0, axis))
        if any(not np.array_equal(array[0], a, equal_nan=array.dtype.kind == "f") for a in array[1:]):
            raise InputError(
                f"input {name!r} is shared by a batch, but differs between the contexts from {start} on",
                where=self.contexts.source,
                todo="Set `batch` to 1",
            )
        return self.session.value(array[0])

    def _roll(
        self,
        chunk: _Chunk,
        overrides: Mapping[str, Value],
        keep_other: bool,
        held: list[dict[str, Value]] | None,
    ) -> ChunkOutputs:
        trajectory = self.spec.trajectory.outputs
        names = [p.name for p in self.session.signature.outputs]
        extra = [n for n in names if n not in trajectory] if keep_other else []
        kept: dict[str, list[Value | NDArray[Any]]] = {n: [] for n in trajectory}
        other: dict[str, list[Value]] = {n: [] for n in extra}
        for step, _, outputs in self._calls(chunk, overrides, {*trajectory, *extra}, self.spec.rollout.steps):
            for name in trajectory:
                kept[name].append(self._collected(outputs[name], name, step, chunk))
            for name in extra:
                other[name].append(outputs[name])
            if held is not None:
                held.append({n: outputs[n] for n in trajectory})
        if held is not None and not self.session.on_host:
            self._make_room(held)
        return ChunkOutputs(
            {n: [self._on_host(v, n, i, chunk) for i, v in enumerate(vs, 1)] for n, vs in kept.items()},
            {n: [self._plain(v, chunk) for v in vs] for n, vs in other.items()},
        )

    def _make_room(self, held: list[dict[str, Value]]) -> None:
        """Move a held chunk to host memory if all chunks together would exceed the device limit."""
        n_chunks = -(-self.contexts.n_contexts // self._batch)
        if n_chunks * sum(v.n_bytes for outputs in held for v in outputs.values()) > _MOST_HELD_BYTES:
            held[:] = [{n: host_value(v.numpy()) for n, v in outputs.items()} for outputs in held]

    def _compared(
        self, chunk: _Chunk, overrides: Mapping[str, Value], held: Held, steps: int, watch: Watch | None
    ) -> ChunkOutputs:
        """Roll out a chunk and return its squares; copy them to the host immediately only if that is free."""
        gauge, others = held.gauge, held.steps[chunk.contexts.start]
        if gauge is None:
            raise ValueError("a rollout held as a whole has no steps")
        found: dict[str, list[Value | NDArray[Any]]] = {n: [] for n in gauge.outputs}
        at_once = self.session.on_host or watch is not None
        for step, _, outputs in self._calls(chunk, overrides, gauge.outputs, steps):
            made = gauge.squares(outputs, others[step - 1], where=_where(step, chunk))
            here = (
                {n: self._on_host(v, n, step, chunk, np.float64) for n, v in made.items()} if at_once else {}
            )
            for name, value in made.items():
                found[name].append(here.get(name, value))
            if watch is not None and watch(step, here):
                break
        return ChunkOutputs(
            {
                n: [self._on_host(v, n, i, chunk, np.float64) for i, v in enumerate(vs, 1)]
                for n, vs in found.items()
            },
            {},
        )

    def _first(
        self,
        session: SplitSession,
        chunk: _Chunk,
        inputs: Mapping[str, Value],
        names: Sequence[str],
        where: str,
    ) -> dict[str, Value]:
        """Make the first call of a rollout; only the overrides distinguish it from that of other rollouts."""
        outputs = session.run(inputs, names, where=where, kept=chunk.kept)
        if sum(v.n_bytes for c in self._chunks.values() for v in c.kept.values()) > _MOST_KEPT_BYTES:
            chunk.kept.clear()
        return outputs

    def _collected(self, value: Value, name: str, step: int, chunk: _Chunk) -> Value | NDArray[Any]:
        """Return the array, checked now, on the CPU; otherwise the value, to be copied after the rollout."""
        return self._on_host(value, name, step, chunk) if self.session.on_host else value

    def _on_host(
        self,
        value: Value | NDArray[Any],
        name: str,
        step: int,
        chunk: _Chunk,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> NDArray[Any]:
        if not isinstance(value, Value):
            return value
        array = in_time(value.numpy(), self.spec, len(chunk.contexts), dtype)
        if not np.isfinite(array).all():
            raise self._not_finite(name, array, step, chunk)
        return array

    def _not_finite(self, name: str, array: NDArray[Any], step: int, chunk: _Chunk) -> NonFiniteError:
        position = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        context = chunk.contexts.start + position[0]
        variable = variable_at(self.spec, name, position)
        series = self.contexts.series
        label = f" of series {series[context]!r}" if series is not None else ""
        return NonFiniteError(
            f"variable {variable!r}{label} is NaN or infinite",
            variable=variable,
            step=step,
            context=context,
            todo="Check the contexts and the [[feedback]], or roll out fewer steps",
        )

    def _plain(self, value: Value, chunk: _Chunk) -> NDArray[Any]:
        """Return an output outside the trajectory as [context, ...]; an output without a batch axis is repeated."""
        array = value.numpy()
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        axis, n = self.spec.rollout.batch_axis, len(chunk.contexts)
        size = self._fixed or n
        if axis is not None and axis < array.ndim and array.shape[axis] == size:
            return np.moveaxis(array, axis, 0)[:n]
        return np.broadcast_to(array, (n, *array.shape))


def _require_inputs(session: Session | SplitSession, spec: RolloutSpec, contexts: Contexts) -> None:
    for name in spec.inputs:
        session.signature.input(name)
        if name not in contexts.arrays:
            raise InputError(f"has no array for input {name!r}", where=contexts.source)


def _where(step: int, chunk: _Chunk) -> str:
    return f"step {step}, contexts {chunk.contexts.start}–{chunk.contexts.stop - 1}"
