"""Rollouts one step at a time: what a comparison of trajectories needs, without holding any of them.

    engine A   piece (chunk 0, step 1)   (chunk 0, step 2)  …  (chunk 1, step 1)  …
    engine B   piece (chunk 0, step 1)   (chunk 0, step 2)  …  (chunk 1, step 1)  …
                  └────── compared, then dropped ──────┘

Two engines over the same contexts with the same batch yield the same pieces in the same order, so a 120-step rollout
needs the memory of one step. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tqs_onnx.rollout.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of one chunk of contexts.

    Parameters
    ----------
    rows : slice
        The contexts, among all contexts of the engine.
    step : int
        Call of the model, counted from 1.
    time : slice
        The time values of this step, among all of the trajectory; empty when `length` cuts them away.
    outputs : dict of str to NDArray
        Maps a trajectory output to [context, time, *rest], float32, in data units.
    other : dict of str to NDArray
        The graph outputs outside the trajectory, [context, ...]; empty unless requested.
    """

    rows: slice
    step: int
    time: slice
    outputs: dict[str, NDArray[Any]]
    other: dict[str, NDArray[Any]]

    @property
    def n_values(self) -> int:
        """Number of values that one context has in this step."""
        return sum(math.prod(a.shape[1:]) for a in self.outputs.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of its arrays."""
        return sum(a.nbytes for a in (*self.outputs.values(), *self.other.values()))


#: Begins a rollout and yields its pieces.
Stream = Callable[[], Iterator[Piece]]


def pieces_of(trajectory: Trajectory) -> Generator[Piece]:
    """Yield the pieces of a trajectory that exists as a whole: all contexts as one chunk."""
    chosen = trajectory.contexts
    n_steps = len(trajectory.time_after) - 1
    for step in range(1, n_steps + 1):
        time = slice(*trajectory.time_after[step - 1 : step + 1])
        other = {
            name: array if name in trajectory.last_only else array[:, step - 1]
            for name, array in trajectory.other.items()
            if name not in trajectory.last_only or step == n_steps
        }
        outputs = {name: array[:, time] for name, array in trajectory.outputs.items()}
        yield Piece(slice(chosen.start, chosen.stop), step, time, outputs, other)


def array_pieces(arrays: Mapping[str, NDArray[Any]], time_after: tuple[int, ...]) -> Generator[Piece]:
    """Yield the pieces of arrays ``[context, time, *rest]`` with this many time values after 0, 1, … steps."""
    n_contexts, n_time = next(iter(arrays.values())).shape[:2]
    for step in range(1, len(time_after)):
        time = slice(*(min(t, n_time) for t in time_after[step - 1 : step + 1]))
        yield Piece(slice(0, n_contexts), step, time, {n: a[:, time] for n, a in arrays.items()}, {})


class Kept:
    """A rollout that many others are compared with: its pieces are kept if they fit, otherwise made again each time.

    Parameters
    ----------
    stream : Stream
    most_bytes : int
        Limit for the kept pieces.
    """

    def __init__(self, stream: Stream, most_bytes: int = 512 << 20) -> None:
        self._stream = stream
        self._most_bytes = most_bytes
        self._pieces: list[Piece] | None = None

    def __call__(self) -> Iterator[Piece]:
        """Yield the pieces of the rollout."""
        if self._pieces is not None:
            yield from self._pieces
            return
        kept: list[Piece] | None = []
        size = 0
        for piece in self._stream():
            size += piece.n_bytes
            if kept is not None:
                kept.append(piece)
            if size > self._most_bytes:
                kept = None
            yield piece
        self._pieces = kept
