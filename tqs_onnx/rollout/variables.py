"""Variables: the named parts of a trajectory, and the σ_v that makes them comparable.

A trajectory output is an array [context, time, *rest], where `rest` are the axes of the ONNX output without the
batch axis, the time axis, and those that `trajectory.select` drops. Variables are

- those of `[[variable]]`, else
- the series of the contexts (a univariate model: each variable has the contexts of its own series), else
- the columns of the table (the last axis), else
- the outputs, each as a whole.

NumPy only; never imports onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts, std
from tqs_onnx.rollout.spec.spec import RolloutSpec, Variable
from tqs_passes.errors import InputError


@dataclass(frozen=True, slots=True)
class Sigma:
    """σ_v per variable.

    Parameters
    ----------
    values : dict of str to float
        In the variable's unit; > 0.
    constant : frozenset of str
        Variables without variation, whose σ_v is set to 1.
    """

    values: dict[str, float]
    constant: frozenset[str]


def steps_to_time(spec: RolloutSpec, steps: int, per_step: int = 1) -> int:
    """Return the number of time values after `steps` calls of the model.

    Parameters
    ----------
    spec : RolloutSpec
    steps : int
        Calls of the model, ≥ 0.
    per_step : int
        Time values per call (`Trajectory.per_step`); 1 without a time axis.
    """
    n = steps * (1 if spec.trajectory.time_axis is None else per_step)
    return n if spec.rollout.length is None else min(n, spec.rollout.length)


def trajectory_axis(spec: RolloutSpec, axis: int) -> int:
    """Return the axis of a trajectory array that corresponds to axis `axis` of the ONNX output."""
    gone = {c.axis for c in spec.trajectory.select if c.index is not None}
    gone |= {a for a in (spec.rollout.batch_axis, spec.trajectory.time_axis) if a is not None}
    return 2 + sum(a not in gone for a in range(axis))


def by_variable(
    arrays: Mapping[str, NDArray[Any]],
    spec: RolloutSpec,
    contexts: Contexts,
    rows: slice | None = None,
) -> dict[str, NDArray[Any]]:
    """Return views of trajectory outputs (or truths) per variable.

    Parameters
    ----------
    arrays : mapping of str to NDArray
        Maps a trajectory output to [context, time, *rest].
    spec : RolloutSpec
    contexts : Contexts
        Contexts of the whole run; they supply the labels.
    rows : slice, optional
        The contexts in `arrays`; default: all.

    Returns
    -------
    dict of str to NDArray
        Maps a variable to [its contexts, time, ...], in file order, or in order of first appearance for series.

    Raises
    ------
    InputError
        An output of a variable is missing, or the number of contexts differs.
    """
    if spec.variable:
        missing = [v.output for v in spec.variable if v.output not in arrays]
        if missing:
            raise InputError(f"no values for output {missing[0]!r}")
        return {v.name: _part(arrays[v.output], v, spec) for v in spec.variable}
    one = len(arrays) == 1
    series = None if contexts.series is None else contexts.series[rows or slice(None)]
    result: dict[str, NDArray[Any]] = {}
    for output, array in arrays.items():
        if series is not None:
            if len(series) != len(array):
                raise InputError(f"{len(array)} trajectories, but {len(series)} series labels", where=output)
            labels = np.array(series)
            for name in dict.fromkeys(series):
                result[name if one else f"{output}/{name}"] = array[labels == name]
        elif _has_columns(array, contexts):
            for index, name in enumerate(contexts.columns or ()):
                result[name if one else f"{output}/{name}"] = array[..., index]
        else:
            result[output] = array
    return result


def _has_columns(array: NDArray[Any], contexts: Contexts) -> bool:
    return contexts.columns is not None and array.ndim > 2 and array.shape[-1] == len(contexts.columns)


def _part(array: NDArray[Any], variable: Variable, spec: RolloutSpec) -> NDArray[Any]:
    if variable.axis is None or variable.index is None:
        return array
    part: NDArray[Any] = np.take(array, variable.index, trajectory_axis(spec, variable.axis))
    return part


def variable_at(spec: RolloutSpec, output: str, position: tuple[int, ...]) -> str:
    """Return the variable at a position [context, time, ...] of an output; the output's name if there is none."""
    for variable in spec.variable:
        if variable.output != output:
            continue
        if variable.axis is None or position[trajectory_axis(spec, variable.axis)] == variable.index:
            return variable.name
    return output


def sigma(
    spec: RolloutSpec,
    contexts: Contexts,
    nominal: Mapping[str, NDArray[Any]],
    deviations: Callable[[], Mapping[str, float]] | None = None,
) -> Sigma:
    """Return σ_v of every variable, in its own unit.

    The first available source is used: `[[variable]].scale`; the training rows of the table (`contexts.scales`); the
    standard deviation (ddof 0) of the history in the contexts, i.e. of the state input that the output feeds, if it
    varies; the standard deviation of the nominal trajectory.

    Parameters
    ----------
    spec : RolloutSpec
    contexts : Contexts
    nominal : mapping of str to NDArray
        The nominal trajectory of all contexts: maps an output to [context, time, *rest].
    deviations : callable, optional
        Returns the standard deviation of every variable of the nominal trajectory; called only if a variable has no
        other source. Then only the shapes of `nominal` are used.
    """
    variables = by_variable(nominal, spec, contexts)
    spreads: Mapping[str, float] | None = None
    histories = _histories(spec, contexts, nominal)
    given = {v.name: v.scale for v in spec.variable if v.scale is not None}
    scales = dict(contexts.scales or {})
    if len(nominal) > 1 and not spec.variable:
        scales = {f"{output}/{label}": s for output in nominal for label, s in scales.items()}
    values: dict[str, float] = {}
    constant: set[str] = set()
    for name, trajectory in variables.items():
        known = given.get(name, scales.get(name))
        deviation = known
        if deviation is None and name in histories:
            deviation = std(_known(histories[name])) or None  # a history that does not vary gives no scale
        if deviation is None and deviations is not None:
            spreads = deviations() if spreads is None else spreads
            deviation = spreads[name]
        if deviation is None:
            deviation = std(trajectory)
        if deviation == 0.0:
            constant.add(name)
        values[name] = deviation or 1.0
    return Sigma(values, frozenset(constant))


def _known(past: NDArray[Any]) -> NDArray[Any]:
    """Return the values of a past without NaN, which a model may be allowed to take."""
    if past.dtype.kind != "f" or not np.isnan(past).any():
        return past
    known: NDArray[Any] = past[~np.isnan(past)]
    return known


def _histories(
    spec: RolloutSpec, contexts: Contexts, nominal: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Map each variable to its past in the contexts, when the spec defines which part that is."""
    pasts = {name: past for name in nominal if (past := _past(spec, contexts, name)) is not None}
    if spec.variable:
        found = {v.name: _past_of(v, pasts.get(v.output), spec) for v in spec.variable}
        return {name: past for name, past in found.items() if past is not None}
    result: dict[str, NDArray[Any]] = {}
    for name, past in pasts.items():
        # Series and columns have the same place in the history and in the trajectory: first and last axis.
        labelled = by_variable({name: past}, spec, contexts)
        result |= {k if len(nominal) == 1 or k == name else f"{name}/{k}": v for k, v in labelled.items()}
    return result


def _past(spec: RolloutSpec, contexts: Contexts, output: str) -> NDArray[Any] | None:
    """Return the initial values [context, ...] of the part of a state input that the output feeds."""
    for feedback in spec.feedback:
        if feedback.output != output or feedback.is_scaled or feedback.input not in contexts.arrays:
            continue
        past = contexts.arrays[feedback.input]
        if feedback.input in spec.forced:
            past = past[:, 0]
        if feedback.into is None:
            return past
        index = feedback.into.index
        part = slice(*feedback.into.bounds) if index is None else index
        return past[(slice(None),) * _context_axis(spec, feedback.into.axis) + (part,)]
    return None


def _past_of(variable: Variable, past: NDArray[Any] | None, spec: RolloutSpec) -> NDArray[Any] | None:
    """Return a variable's part of the past of its output; None when select or expand moved the axes."""
    if past is None or variable.axis is None or variable.index is None:
        return past
    moved = any(f.select or f.expand for f in spec.feedback if f.output == variable.output)
    axis = _context_axis(spec, variable.axis)
    if moved or axis >= past.ndim or variable.index >= past.shape[axis]:
        return None
    part: NDArray[Any] = np.take(past, variable.index, axis)
    return part


def _context_axis(spec: RolloutSpec, axis: int) -> int:
    """Return the axis of a contexts array (context first, no batch axis) for axis `axis` of an ONNX input."""
    batch = spec.rollout.batch_axis
    return 1 + axis - (batch is not None and batch < axis)
