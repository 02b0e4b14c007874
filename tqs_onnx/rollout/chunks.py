"""Cuts contexts into chunks that run together, and puts their arrays on the device.

    arrays [context, …]            ──▶  inputs of a chunk, batch axis in its place
    forcings [context, step, …]    ──▶  forced inputs of one step of a chunk

What was placed is kept for the next rollout up to `MOST_PLACED_BYTES` over all chunks; beyond it, arrays are placed
again when they are needed, a step's forcings at that step. On the CPU an array that is contiguous is not copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.session import Session, Value
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.split_session import SplitSession
from tqs_passes.errors import InputError

#: Bytes of inputs and forcings that stay on the device between rollouts, over all chunks.
MOST_PLACED_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Contexts that run together.

    Parameters
    ----------
    contexts : range
        Their indices among all contexts.
    rows : slice or list of int
        The rows of the arrays; a list where the last context is repeated to fill a batch of fixed size.
    inputs : dict of str to Value
        All inputs but the forced ones.
    forcing : dict of int to dict
        Forced inputs by step, from 0, as far as they are kept.
    head : dict of str to Value
        See `SplitSession.run`.
    """

    contexts: range
    rows: slice | list[int]
    inputs: dict[str, Value]
    forcing: dict[int, dict[str, Value]] = field(default_factory=dict[int, dict[str, Value]])
    head: dict[str, Value] = field(default_factory=dict[str, Value])


class Chunks:
    """The chunks of all contexts of an engine.

    Parameters
    ----------
    session : Session or SplitSession
        Puts arrays on its device.
    spec : RolloutSpec
    contexts : Contexts
    size : int
        Contexts per chunk.
    fixed : bool
        Whether every chunk must have that size; the last one is then filled by repetition.
    """

    def __init__(
        self,
        session: Session | SplitSession,
        spec: RolloutSpec,
        contexts: Contexts,
        size: int,
        *,
        fixed: bool,
    ) -> None:
        self.contexts = contexts
        self.size = size
        self._session = session
        self._spec = spec
        self._fixed = fixed
        self._kept: dict[range, Chunk] = {}
        self._n_bytes = 0

    def over(self, contexts: Contexts) -> Chunks:
        """Return the chunks of other contexts."""
        return Chunks(self._session, self._spec, contexts, self.size, fixed=self._fixed)

    def of(self, chosen: range) -> Iterator[Chunk]:
        """Yield the chunks of consecutive contexts."""
        for start in range(chosen.start, chosen.stop, self.size):
            yield self._chunk(range(start, min(start + self.size, chosen.stop)))

    @property
    def head_bytes(self) -> int:
        """Bytes that split sessions keep of first steps."""
        return sum(v.n_bytes for chunk in self._kept.values() for v in chunk.head.values())

    def forcing(self, chunk: Chunk, step: int) -> dict[str, Value]:
        """Return the forced inputs of a step, counted from 0."""
        placed = chunk.forcing.get(step)
        if placed is None:
            placed = {
                n: self._placed(n, self.contexts.arrays[n][chunk.rows, step], chunk.contexts.start)
                for n in sorted(self._spec.forced)
            }
            if chunk.contexts in self._kept and self._fits(placed):
                chunk.forcing[step] = placed
        return placed

    def _chunk(self, contexts: range) -> Chunk:
        if contexts in self._kept:
            return self._kept[contexts]
        rows: slice | list[int] = slice(contexts.start, contexts.stop)
        if self._fixed and len(contexts) < self.size:
            rows = [*contexts, *[contexts.stop - 1] * (self.size - len(contexts))]
        inputs = {
            n: self._placed(n, self.contexts.arrays[n][rows], contexts.start)
            for n in self._spec.inputs
            if n not in self._spec.forced
        }
        chunk = Chunk(contexts, rows, inputs)
        if self._fits(inputs):
            self._kept[contexts] = chunk
        return chunk

    def _fits(self, placed: dict[str, Value]) -> bool:
        n_bytes = sum(v.n_bytes for v in placed.values())
        if self._n_bytes + n_bytes > MOST_PLACED_BYTES:
            return False
        self._n_bytes += n_bytes
        return True

    def _placed(self, name: str, array: NDArray[Any], start: int) -> Value:
        """Convert [context, ...] to the model's layout: batch axis in its place, or no batch axis."""
        axis = self._spec.rollout.batch_axis
        if axis is not None and name not in self._spec.shared:
            return self._session.value(np.moveaxis(array, 0, axis))
        if any(not np.array_equal(array[0], a, equal_nan=array.dtype.kind == "f") for a in array[1:]):
            raise InputError(
                f"input {name!r} is shared by a batch, but differs between the contexts from {start} on",
                where=self.contexts.source,
                todo="Set `batch` to 1",
            )
        return self._session.value(array[0])
