"""Roll a model out: call it `steps` times, feed outputs back on the device, and collect the trajectory.

    inputs₀ ──model──▶ outputs₁ ──update──▶ inputs₁ ──model──▶ outputs₂ … outputs_T
                          └── trajectory: concatenated along time_axis, or stacked, then cut to `length`

Contexts run in chunks along the batch axis. A run is deterministic for a given chunking; kernels may round
differently at another batch size, so compare only runs of the same engine over the same contexts.

Values stay where the model computes. A rollout that is only compared with another one leaves sums; of the other one the
outputs are held (`Engine.hold`). Whatever the number of steps, everything else of a step is gone when the next begins.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.calls import Calls, where
from tqs_onnx.rollout.chunks import Chunk, Chunks
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.feedback import FeedbackSession
from tqs_onnx.rollout.gauge import Gauge, Squares, gauge_for
from tqs_onnx.rollout.held import Held, Store
from tqs_onnx.rollout.session import Session, Value
from tqs_onnx.rollout.spec.check import fixed_batch
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.split_session import SplitSession
from tqs_onnx.rollout.stream import Piece
from tqs_onnx.rollout.trajectory import (
    ChunkOutputs,
    NonFiniteError,
    Trajectory,
    in_time,
    join,
    require_equal_times,
    require_length,
    shape_in_time,
)
from tqs_passes.errors import InputError

#: Contexts per call by default: enough to amortise reading the weights.
DEFAULT_BATCH = 32
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
        size = self._fixed or (1 if spec.rollout.batch_axis is None else batch or DEFAULT_BATCH)
        chunks = Chunks(session, spec, contexts, size, fixed=self._fixed is not None)
        self._calls = Calls(session, spec, chunks, self.feedback, self._fixed)
        # Shared by the engines over other contexts: one session for outputs of the same ranks and types.
        self._gauges: dict[object, Gauge] = {}
        self._covered = frozenset(spec.inputs)

    def over(self, contexts: Contexts) -> Engine:
        """Return an engine of the same session, over other contexts of the same shapes."""
        if contexts is self.contexts:
            return self
        _require_inputs(self.session, self.spec, contexts)
        other = copy.copy(self)
        other.contexts, other._calls = contexts, self._calls.over(contexts)
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
        other.session, other._calls = session, self._calls.of(session)
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
        parts = [self._roll(chunk, overrides, keep_other) for chunk in self._calls.chunks.of(chosen)]
        return join(parts, chosen, self.spec)

    def pieces(
        self, overrides: Mapping[str, Value] | None = None, *, keep_other: bool = False
    ) -> Generator[Piece]:
        """Roll out all contexts and yield every step of every chunk; only the yielded step is in memory.

        See `run` for parameters and errors.
        """
        overrides, trajectory = self._complete(overrides), self.spec.trajectory.outputs
        names = [p.name for p in self.session.signature.outputs]
        extra = [n for n in names if n not in trajectory] if keep_other else []
        for chunk in self._calls.chunks.of(self._all):
            after = [0]
            steps = self._calls.seen(chunk, overrides, {*trajectory, *extra}, self.spec.rollout.steps)
            for step, values in steps:
                outputs = {n: self._calls.on_host(values[n], n, step, chunk) for n in trajectory}
                other = {n: self._plain(values[n], chunk) for n in extra}
                yield self._piece(chunk.contexts, step, after, outputs, other)
            require_length(after, self.spec)

    def kept_pieces(self, held: Held) -> Generator[Piece]:
        """Yield every step of every chunk of a held rollout; see `squares` for what it may be."""
        for chunk in self._calls.chunks.of(self._all):
            after = [0]
            for step in range(1, len(held.time_after)):
                values = held.outputs(chunk.contexts.start, step)
                outputs = {n: in_time(v.numpy(), self.spec, len(chunk.contexts)) for n, v in values.items()}
                yield self._piece(chunk.contexts, step, after, outputs, {})

    def _piece(
        self,
        contexts: range,
        step: int,
        after: list[int],
        outputs: dict[str, NDArray[Any]],
        other: dict[str, NDArray[Any]],
    ) -> Piece:
        """Return the piece of a step, cut to `length`; `after`: time values after each step so far, one is added."""
        counts = [array.shape[1] for array in outputs.values()]
        require_equal_times(counts)
        time = slice(after[-1], after[-1] + counts[0])
        after.append(time.stop)
        if self.spec.rollout.length is not None:
            time = slice(*(min(t, self.spec.rollout.length) for t in (time.start, time.stop)))
            outputs = {n: array[:, : time.stop - time.start] for n, array in outputs.items()}
        return Piece(slice(contexts.start, contexts.stop), step, time, outputs, other)

    def hold(self, overrides: Mapping[str, Value] | None = None, *, most_bytes: int | None = None) -> Held:
        """Roll out all contexts, and keep what comparisons with this rollout need.

        Parameters
        ----------
        overrides : mapping of str to Value, optional
            See `run`.
        most_bytes : int, optional
            Host memory that may be taken; beyond it a temporary file is (see `tqs_onnx.rollout.held`).

        Raises
        ------
        NonFiniteError
            A trajectory value is not finite.
        InputError
            See `run`; or there is no room for a temporary file.
        """
        overrides, trajectory = self._complete(overrides), self.spec.trajectory.outputs
        store: Store | None = None
        gauge: Gauge | None = None
        kept: dict[int, list[Any]] = {}
        shapes: list[dict[str, tuple[int, ...]]] = []
        for chunk in self._calls.chunks.of(self._all):
            mine = kept.setdefault(chunk.contexts.start, [])
            for step, values in self._calls.seen(chunk, overrides, trajectory, self.spec.rollout.steps):
                outputs = {n: values[n] for n in trajectory}
                if store is None or gauge is None:
                    step_bytes = sum(v.n_bytes for v in outputs.values())
                    n_steps = self.spec.rollout.steps * -(
                        -self.contexts.n_contexts // self._calls.chunks.size
                    )
                    on_host = self.session.on_host
                    store = Store(n_steps * step_bytes, on_host=on_host, most_bytes=most_bytes)
                    gauge = self._gauge_for(outputs)
                self._require_finite(outputs, gauge, step, chunk)
                mine.append(store.keep(outputs))
                if chunk.contexts.start == 0:
                    shapes.append({n: shape_in_time(v.shape, self.spec) for n, v in outputs.items()})
        assert store is not None
        assert gauge is not None  # there is a context, and a step
        times = [tuple(shape[1] for shape in at.values()) for at in shapes]
        require_equal_times([tuple(at[i] for at in times) for i in range(len(trajectory))])
        after = [0, *np.cumsum([at[0] for at in times]).tolist()]
        require_length(after, self.spec)
        length = self.spec.rollout.length
        ends = tuple(n if length is None else min(n, length) for n in after)
        n = self.contexts.n_contexts
        whole = {name: (n, ends[-1], *shape[2:]) for name, shape in shapes[0].items()}
        return Held(ends, whole, gauge, kept, store)

    def _gauge_for(self, outputs: Mapping[str, Value]) -> Gauge:
        has_columns = self.contexts.columns is not None
        key = has_columns, tuple((n, len(v.shape), v.dtype.name) for n, v in outputs.items())
        if key not in self._gauges:
            self._gauges[key] = gauge_for(
                outputs,
                self.spec,
                has_columns=has_columns,
                provider=self.session.provider,
                device=self.session.device,
            )
        return self._gauges[key]

    def _require_finite(self, outputs: Mapping[str, Value], gauge: Gauge, step: int, chunk: Chunk) -> None:
        """Refuse outputs that are not finite; on a device only the sums of their self-differences are copied."""
        if self.session.on_host:
            for name, value in outputs.items():
                self._calls.on_host(value, name, step, chunk)
            return
        for name, value in gauge.squares(outputs, outputs, where=where(step, chunk)).items():
            if not np.isfinite(value.numpy()).all():  # inf − inf and NaN − NaN are NaN
                self._calls.on_host(outputs[name], name, step, chunk)

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
            May stop the rollout early; the other chunks then run as many steps as the first.

        Raises
        ------
        NonFiniteError
            A trajectory value or a squared difference is not finite.
        InputError
            See `run`.
        """
        overrides = self._complete(overrides)
        steps = self.spec.rollout.steps
        parts: list[ChunkOutputs] = []
        for chunk in self._calls.chunks.of(self._all):
            parts.append(self._compared(chunk, overrides, held, steps, watch))
            steps, watch = parts[-1].steps, None
        joined = join(parts, self._all, self.spec)
        return Squares(joined.outputs, joined.time_after)

    @property
    def _all(self) -> range:
        return range(self.contexts.n_contexts)

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
        for chunk in self._calls.chunks.of(self._all):
            asked = {*extra, *self.feedback.fed}
            for _, inputs, outputs in self._calls.made(
                chunk, overrides or {}, asked, self.spec.rollout.steps
            ):
                yield inputs, outputs

    def _roll(self, chunk: Chunk, overrides: Mapping[str, Value], keep_other: bool) -> ChunkOutputs:
        trajectory = self.spec.trajectory.outputs
        names = [p.name for p in self.session.signature.outputs]
        extra = [n for n in names if n not in trajectory] if keep_other else []
        kept: dict[str, list[NDArray[Any]]] = {n: [] for n in trajectory}
        other: dict[str, list[NDArray[Any]]] = {n: [] for n in extra}
        for step, outputs in self._calls.seen(
            chunk, overrides, {*trajectory, *extra}, self.spec.rollout.steps
        ):
            for name in trajectory:
                kept[name].append(self._calls.on_host(outputs[name], name, step, chunk))
            for name in extra:
                other[name].append(self._plain(outputs[name], chunk))
        return ChunkOutputs(kept, other)

    def _compared(
        self, chunk: Chunk, overrides: Mapping[str, Value], held: Held, steps: int, watch: Watch | None
    ) -> ChunkOutputs:
        """Roll out a chunk and return its squares; copy them to the host immediately only if that is free."""
        gauge = held.gauge
        found: dict[str, list[Value | NDArray[Any]]] = {n: [] for n in gauge.outputs}
        at_once = self.session.on_host or watch is not None
        for step, outputs in self._calls.seen(chunk, overrides, gauge.outputs, steps):
            others = held.outputs(chunk.contexts.start, step)
            made = gauge.squares(outputs, others, where=where(step, chunk))
            here = (
                {n: self._calls.on_host(v, n, step, chunk, np.float64) for n, v in made.items()}
                if at_once
                else {}
            )
            for name, value in made.items():
                found[name].append(here.get(name, value))
            if watch is not None and watch(step, here):
                break
        return ChunkOutputs(
            {
                n: [self._calls.on_host(v, n, i, chunk, np.float64) for i, v in enumerate(vs, 1)]
                for n, vs in found.items()
            },
            {},
        )

    def _plain(self, value: Value, chunk: Chunk) -> NDArray[Any]:
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
