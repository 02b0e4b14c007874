"""A trajectory: the outputs of a rollout, concatenated over steps along time and over chunks along contexts.

    step t, chunk c   ONNX output [.. batch .. time .. rest]  →  select  →  [context, time, *rest], float32
    rollout           concatenated along time, cut to `length`;  chunks concatenated along context

NumPy only; never imports onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.variables import by_variable
from tqs_passes.errors import InputError
from tqs_passes.graph_pass import Skip


class NonFiniteError(InputError):
    """A trajectory value is NaN or infinite.

    Parameters
    ----------
    what : str
    variable : str
        Name of the variable or output.
    step : int
        Call of the model, counted from 1.
    context : int
        Index among all contexts of the engine.
    """

    def __init__(self, what: str, *, variable: str, step: int, context: int, todo: str = "") -> None:
        super().__init__(what, where=f"step {step}, context {context}", todo=todo)
        self.variable = variable
        self.step = step
        self.context = context


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The result of a rollout.

    Parameters
    ----------
    outputs : dict of str to NDArray
        Maps a trajectory output to [context, time, *rest], float32, in data units.
    contexts : range
        Indices of the contexts among all contexts of the engine.
    time_after : tuple of int
        Number of time values after 0, 1, … calls; it makes horizons slices of the time axis.
    per_step : int
        Number of time values per call.
    other : dict of str to NDArray
        The graph outputs outside the trajectory, [context, step, ...]; for those in `last_only` the last step
        alone, [context, ...]. Empty unless requested.
    last_only : frozenset of str
        Outputs of `other` whose shape changes from step to step.
    skipped : tuple of Skip
        Outputs outside the trajectory that could not be kept, with the reason.
    """

    outputs: dict[str, NDArray[Any]]
    contexts: range
    time_after: tuple[int, ...]
    per_step: int
    other: dict[str, NDArray[Any]]
    last_only: frozenset[str]
    skipped: tuple[Skip, ...]

    def by_variable(self, spec: RolloutSpec, contexts: Contexts) -> dict[str, NDArray[Any]]:
        """Return the trajectory per variable, see `variables.by_variable`; `contexts`: all contexts of the engine."""
        rows = slice(self.contexts.start, self.contexts.stop)
        return by_variable(self.outputs, spec, contexts, rows)


@dataclass(frozen=True, slots=True)
class ChunkOutputs:
    """The result of one chunk: per output one array [context, time, *rest] (other: [context, ...]) per step."""

    kept: dict[str, list[NDArray[Any]]]
    other: dict[str, list[NDArray[Any]]]

    @property
    def steps(self) -> int:
        """Number of model calls."""
        return len(next(iter(self.kept.values())))


def in_time(
    array: NDArray[Any], spec: RolloutSpec, n_contexts: int, dtype: type[np.floating[Any]] = np.float32
) -> NDArray[Any]:
    """Return one step's output as [context, time, *rest].

    Parameters
    ----------
    array : NDArray
        The ONNX output; a padded batch is cut to `n_contexts`.
    spec : RolloutSpec
    n_contexts : int
    dtype : type
        Type of the result.
    """
    ordered = _laid_out(array, spec)
    with np.errstate(over="ignore"):  # a double that becomes infinite is reported as an infinity
        return np.ascontiguousarray(ordered[:n_contexts], dtype)


def shape_in_time(shape: tuple[int, ...], spec: RolloutSpec) -> tuple[int, ...]:
    """Return the shape that `in_time` gives an output of this shape, all rows of its batch kept."""
    return _laid_out(np.broadcast_to(np.False_, shape), spec).shape


def _laid_out(array: NDArray[Any], spec: RolloutSpec) -> NDArray[Any]:
    """Return a view [context, time, *rest] of an ONNX output."""
    index: list[Any] = [slice(None)] * array.ndim
    for cut in spec.trajectory.select:
        index[cut.axis] = slice(*cut.bounds)
    whole, array = array.shape, array[tuple(index)]
    for cut in spec.trajectory.select:
        if array.shape[cut.axis] == 0 < whole[cut.axis]:
            raise InputError(
                f"select cuts axis {cut.axis} of {list(whole)} outside of it",
                where="rollout.toml trajectory.select",
                todo="Choose a range within the axis",
            )
    moved = [a for a in (spec.rollout.batch_axis, spec.trajectory.time_axis) if a is not None]
    dropped = {c.axis for c in spec.trajectory.select if c.index is not None}
    rest = [a for a in range(array.ndim) if a not in moved and a not in dropped]
    ordered = array.transpose([*moved, *rest, *sorted(dropped)])
    ordered = ordered.reshape(ordered.shape[: ordered.ndim - len(dropped)])
    if spec.rollout.batch_axis is None:
        ordered = ordered[None]
    if spec.trajectory.time_axis is None:
        ordered = ordered[:, None]
    return ordered


def join(parts: list[ChunkOutputs], contexts: range, spec: RolloutSpec) -> Trajectory:
    """Concatenate the trajectories of all chunks.

    Raises
    ------
    InputError
        The outputs differ in their number of time values, or the steps give fewer than `length`.
    """
    length = spec.rollout.length
    counts = [tuple(a.shape[1] for a in arrays) for arrays in parts[0].kept.values()]
    require_equal_times(counts)
    after = [0, *np.cumsum(counts[0]).tolist()]
    require_length(after, spec)
    other: dict[str, NDArray[Any]] = {}
    last_only: set[str] = set()
    skipped: list[Skip] = []
    for name in parts[0].other:
        steps = [p.other[name] for p in parts]
        stable = len({a.shape[1:] for s in steps for a in s}) == 1
        if not stable:
            last_only.add(name)
        arrays = [np.stack(s, 1) if stable else s[-1] for s in steps]
        if len({a.shape[1:] for a in arrays}) == 1:
            other[name] = np.concatenate(arrays)
        else:
            skipped.append(Skip(name, "its shape differs from context to context"))
    return Trajectory(
        outputs={n: _whole(parts, n, length) for n in parts[0].kept},
        contexts=contexts,
        time_after=tuple(n if length is None else min(n, length) for n in after),
        per_step=counts[0][0],
        other=other,
        last_only=frozenset(last_only & other.keys()),
        skipped=tuple(skipped),
    )


def require_equal_times(counts: Sequence[object]) -> None:
    """Refuse trajectory outputs that differ in their number of time values, given per output.

    Raises
    ------
    InputError
        They differ.
    """
    if len(set(counts)) > 1:
        raise InputError(
            "the trajectory outputs differ in their number of time values",
            where="rollout.toml",
            todo="Select an equal number, or remove an output from trajectory.outputs",
        )


def require_length(after: Sequence[int], spec: RolloutSpec) -> None:
    """Refuse a finished rollout with fewer time values than `length`, given those after 0, 1, … steps.

    Raises
    ------
    InputError
        There are too few.
    """
    length, n_steps = spec.rollout.length, len(after) - 1
    if length is not None and after[-1] < length and n_steps == spec.rollout.steps:
        raise InputError(
            f"{n_steps} steps give {after[-1]} time values, fewer than length {length}",
            where="rollout.toml rollout.length",
            todo="Set more steps or a smaller length",
        )


def _whole(parts: list[ChunkOutputs], name: str, length: int | None) -> NDArray[Any]:
    return np.concatenate([np.concatenate(p.kept[name], 1)[:, :length] for p in parts])
