"""The calls of a rollout of one chunk of contexts, step by step: fed back, post-processed, and checked.

    inputs₀ ──model──▶ outputs₁ ──feedback──▶ inputs₁ ──model──▶ outputs₂ …
                          └── averaged with the mirrored rollout and bounded at zero, where the spec says so

Nothing is kept from one step to the next but the inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout import postprocess as mirror
from tqs_onnx.rollout.chunks import Chunk, Chunks
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.feedback import FeedbackSession
from tqs_onnx.rollout.session import Session, Value
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.split_session import SplitSession
from tqs_onnx.rollout.trajectory import NonFiniteError, in_time
from tqs_onnx.rollout.variables import variable_at
from tqs_passes.errors import InputError

#: Limit for the kept values of the first step, over all chunks; beyond it they are recomputed, with the same result.
_MOST_HEAD_BYTES = 256 << 20


class Calls:
    """Calls a session on chunks of contexts.

    Parameters
    ----------
    session : Session or SplitSession
    spec : RolloutSpec
    chunks : Chunks
    feedback : FeedbackSession
    fixed : int or None
        The batch size that the model fixes.
    """

    def __init__(
        self,
        session: Session | SplitSession,
        spec: RolloutSpec,
        chunks: Chunks,
        feedback: FeedbackSession,
        fixed: int | None,
    ) -> None:
        self.session = session
        self.spec = spec
        self.chunks = chunks
        self.feedback = feedback
        self._fixed = fixed
        self._mirrored: Chunks | None = None

    def over(self, contexts: Contexts) -> Calls:
        """Return the calls on the chunks of other contexts."""
        return Calls(self.session, self.spec, self.chunks.over(contexts), self.feedback, self._fixed)

    def of(self, session: Session) -> Calls:
        """Return the calls of another session on the same chunks."""
        other = copy.copy(self)
        other.session = session
        return other

    def seen(
        self, chunk: Chunk, overrides: Mapping[str, Value], extra: Collection[str], steps: int
    ) -> Generator[tuple[int, dict[str, Value]]]:
        """Yield (step, outputs) of every call of a chunk, the trajectory's averaged and bounded as the spec says."""
        rollout, axis = self.spec.rollout, self.spec.rollout.batch_axis
        calls = self.made(chunk, overrides, extra, steps)
        if not rollout.is_made_whole:
            for step, _, outputs in calls:
                yield step, outputs
            return
        names = self.spec.trajectory.outputs
        turned = self._turned(chunk, overrides, steps) if rollout.flip_invariant else None
        free = (
            mirror.without_negatives(self.chunks.contexts, self.spec, chunk.rows)
            if rollout.non_negative
            else None
        )
        for step, _, outputs in calls:
            made = {n: self._finite(outputs[n], n, step, chunk) for n in names}
            if turned is not None:
                other = next(turned)
                made = {n: mirror.averaged(a, other[n]) for n, a in made.items()}
            if free is not None:
                made = {n: mirror.bounded(a, free, axis) for n, a in made.items()}
            yield step, outputs | {n: self.session.value(a) for n, a in made.items()}

    def _turned(
        self, chunk: Chunk, overrides: Mapping[str, Value], steps: int
    ) -> Generator[dict[str, NDArray[np.float32]]]:
        """Yield the trajectory outputs of the same contexts with negated states, step by step."""
        if self._mirrored is None:
            self._mirrored = self.chunks.over(mirror.flipped(self.chunks.contexts, self.spec))
        (other,) = self._mirrored.of(chunk.contexts)
        names = self.spec.trajectory.outputs
        for step, _, outputs in self.made(other, overrides, names, steps, self._mirrored):
            yield {n: self._finite(outputs[n], n, step, chunk) for n in names}

    def _finite(self, value: Value, name: str, step: int, chunk: Chunk) -> NDArray[np.float32]:
        """Return an output as it is laid out, float32, and refuse one that is not finite."""
        self.on_host(value, name, step, chunk)
        return value.numpy().astype(np.float32, copy=False)

    def made(
        self,
        chunk: Chunk,
        overrides: Mapping[str, Value],
        extra: Collection[str],
        steps: int,
        chunks: Chunks | None = None,
    ) -> Generator[tuple[int, dict[str, Value], dict[str, Value]]]:
        """Yield (step, inputs, outputs) of every call of a chunk; outputs are those in `extra` and those fed back."""
        chunks = chunks or self.chunks
        inputs = {**chunk.inputs, **chunks.forcing(chunk, 0)}
        for step in range(1, steps + 1):
            wanted = {*extra, *(self.feedback.fed if step < steps else ())}
            place = where(step, chunk)
            asked = [p.name for p in self.session.signature.outputs if p.name in wanted]
            try:
                if step == 1 and isinstance(self.session, SplitSession):
                    outputs = self._first(self.session, chunk, {**inputs, **overrides}, asked, place)
                else:
                    outputs = self.session.run({**inputs, **overrides}, asked, where=place)
            except InputError as error:
                if len(chunk.contexts) < 2 or error.todo or self._fixed is not None:
                    raise
                todo = "Set `batch` to 1, in case the model takes one context a call"
                raise InputError(error.what, where=error.where, todo=todo) from error
            if step == 1:
                self._require_stated(outputs, chunk)
            yield step, inputs, outputs
            if step < steps:
                inputs = self.feedback.advance(inputs, outputs, chunks.forcing(chunk, step), step + 1)

    def _require_stated(self, outputs: Mapping[str, Value], chunk: Chunk) -> None:
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
                    where=where(1, chunk),
                    todo="Export the model with the right shape"
                    + (", or set rollout.batch_axis to the axis of the batch" if axis is not None else ""),
                )

    def _first(
        self,
        session: SplitSession,
        chunk: Chunk,
        inputs: Mapping[str, Value],
        names: Sequence[str],
        where: str,
    ) -> dict[str, Value]:
        """Make the first call of a rollout; only the overrides distinguish it from that of other rollouts."""
        outputs = session.run(inputs, names, where=where, kept=chunk.head)
        if self.chunks.head_bytes > _MOST_HEAD_BYTES:
            chunk.head.clear()
        return outputs

    def on_host(
        self,
        value: Value | NDArray[Any],
        name: str,
        step: int,
        chunk: Chunk,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> NDArray[Any]:
        """Return an output as [context, time, *rest]; an array is returned as it is.

        Raises
        ------
        NonFiniteError
            A value is NaN or infinite.
        """
        if not isinstance(value, Value):
            return value
        array = in_time(value.numpy(), self.spec, len(chunk.contexts), dtype)
        if not np.isfinite(array).all():
            raise self._not_finite(name, array, step, chunk)
        return array

    def _not_finite(self, name: str, array: NDArray[Any], step: int, chunk: Chunk) -> NonFiniteError:
        position = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        context = chunk.contexts.start + position[0]
        variable = variable_at(self.spec, name, position)
        series = self.chunks.contexts.series
        label = f" of series {series[context]!r}" if series is not None else ""
        return NonFiniteError(
            f"variable {variable!r}{label} is NaN or infinite",
            variable=variable,
            step=step,
            context=context,
            todo="Check the contexts and the [[feedback]], or roll out fewer steps",
        )


def where(step: int, chunk: Chunk) -> str:
    """Return the place that errors name."""
    return f"step {step}, contexts {chunk.contexts.start}–{chunk.contexts.stop - 1}"
