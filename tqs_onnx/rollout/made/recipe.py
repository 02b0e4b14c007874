"""What to make for each input of a model: its kind, its units, and the values that its readers allow.

==========  ==============================================================================================
series      a window of values over time: a state that is shifted, or an input with a long axis
field       a state or an input over places, or a vector of features
history     a short window of states: one field, repeated; the model's own rollout then makes it coherent
hidden      a state outside the trajectory without units of its own: zeros, then the model's own rollout
forced      a small vector of every step: uniform in [-1, 1]
choice      integers and booleans: indices below the size of a table, or numbers that they are compared with
fill        the constant of its `[[fill]]`
==========  ==============================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.made.request import InputScale
from tqs_onnx.rollout.spec.fit import fed_shape
from tqs_onnx.rollout.spec.signature import ModelSignature, Port
from tqs_onnx.rollout.spec.spec import Feedback, RolloutSpec
from tqs_passes.files.model import Model
from tqs_passes.survey.input_units import input_units
from tqs_passes.survey.input_values import InputValues, input_values

Floats = NDArray[np.float64]

#: A window of at least this many values is a series; a shorter one is a history of states.
LEAST_SERIES = 8
#: A vector of at least this many values lies along time or space; the values of a shorter one are features.
_LEAST_LONG = 16


class Kind(StrEnum):
    """The kinds of made inputs (see the module docstring)."""

    SERIES = "series"
    FIELD = "fields"
    HISTORY = "histories of the model's own steps"
    HIDDEN = "zeros, then the model's own states"
    FORCED = "uniform in [-1, 1]"
    CHOICE = "values that its readers tell apart"
    FILL = "its fill value"


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What to make for one input.

    Parameters
    ----------
    port : Port
    shape : tuple of int
        Shape of one context at one step, without the batch axis.
    kind : Kind
    axis : int
        Axis of time in `shape` (series, history).
    smooth : tuple of int
        Axes of a field along which neighbours resemble each other.
    mean, deviation : float64 array
        Units, of shape `shape`.
    units : str
        Where the units come from, in words; empty where they do not matter.
    is_free : bool
        Whether the model normalises the input by its own statistics.
    values : InputValues
    is_forced, is_shared : bool
    hop : int
        Values by which the window of a forced series advances at each step.
    fill : float
    """

    port: Port
    shape: tuple[int, ...]
    kind: Kind
    axis: int
    smooth: tuple[int, ...]
    mean: Floats
    deviation: Floats
    units: str
    is_free: bool
    values: InputValues
    is_forced: bool
    is_shared: bool
    hop: int
    fill: float

    def __str__(self) -> str:
        """Return what is made, for the note to the user."""
        kind = "features" if self.kind is Kind.FIELD and not self.smooth else self.kind.value
        return f"{self.port.name}: {kind}" + (f", {self.units}" if self.units else "")


def recipe(
    port: Port,
    shape: tuple[int, ...],
    model: Model,
    spec: RolloutSpec,
    signature: ModelSignature,
    scales: Mapping[str, InputScale],
    like: Contexts | None = None,
) -> Recipe:
    """Return what to make for an input.

    Parameters
    ----------
    port : Port
    shape : tuple of int
        Shape of one context at one step, without the batch axis.
    model : Model
    spec : RolloutSpec
    signature : ModelSignature
    scales : mapping of str to InputScale
        Units that the user states; they take precedence over the graph's.
    like : Contexts, optional
        Data whose units are taken where the graph states none.
    """
    batch = spec.rollout.batch_axis
    has_batch = batch is not None and port.name not in spec.shared
    values = input_values(model, port.name)
    mean, deviation = np.zeros(shape), np.ones(shape)
    units, is_free, is_stated = "unit variance", False, False
    if port.dtype.kind not in "iub":
        whole = (
            (*shape[:batch], _batch_size(port, batch), *shape[batch:])
            if has_batch and batch is not None
            else shape
        )
        found = input_units(model, port.name, whole)
        first = (slice(None),) * (batch or 0) + (0,) if has_batch else ()
        mean, deviation, is_free, is_stated = (
            found.mean[first],
            found.deviation[first],
            found.is_free,
            found.is_stated,
        )
        if is_stated:
            units = "units of the graph"
        elif is_free:
            units = "unit variance (the model scales it itself)"
        elif values.low is not None and values.high is not None and values.low < values.high:
            mean, deviation = (
                mean + (values.low + values.high) / 2,
                deviation * (values.high - values.low) / 4,
            )
            units = f"within the model's bounds {values.low:g} to {values.high:g}"
        elif like is not None and port.name in like.arrays:
            seen = like.arrays[port.name].astype(np.float64)
            center, spread = float(np.nanmean(seen)), float(np.nanstd(seen)) or 1.0
            mean, deviation = np.full(shape, center), np.full(shape, spread)
            units = f"units of the data: mean {center:.3g}, deviation {spread:.3g}"
    if port.name in scales:
        given = scales[port.name]
        mean, deviation = np.full(shape, given.mean), np.full(shape, given.deviation)
        units, is_stated = f"mean {given.mean:g}, deviation {given.deviation:g}", True
    kind, axis = _kind(port, shape, spec, values, is_stated)
    if kind in (Kind.HIDDEN, Kind.CHOICE, Kind.FILL):
        units = ""
    if kind is Kind.FORCED and not is_stated:
        units = ""
    fill = next((float(f.value) for f in spec.fill if f.input == port.name), 0.0)
    return Recipe(
        port,
        shape,
        kind,
        axis,
        _smooth(shape, mean, deviation, axis if kind is Kind.HISTORY else None),
        mean,
        deviation,
        units,
        is_free and port.name not in scales,
        values,
        port.name in spec.forced,
        port.name in spec.shared,
        _hop(spec, signature, shape[axis] if shape else 1),
        fill,
    )


def _batch_size(port: Port, batch: int | None) -> int:
    size = port.shape[batch] if port.shape is not None and batch is not None else 1
    return size if isinstance(size, int) else 1


def _kind(
    port: Port, shape: tuple[int, ...], spec: RolloutSpec, values: InputValues, is_stated: bool
) -> tuple[Kind, int]:
    """Return the kind of an input and its axis of time."""
    if any(f.input == port.name for f in spec.fill):
        return Kind.FILL, 0
    fed = [f for f in spec.feedback if f.input == port.name]
    windows = [f for f in fed if f.axis is not None]
    if port.dtype.kind in "iub" or values.below is not None:
        return Kind.CHOICE, 0
    if windows:
        axis = _context_axis(windows[0], spec)
        return (Kind.SERIES if shape[axis] >= LEAST_SERIES else Kind.HISTORY), axis
    if fed:
        hidden = not is_stated and all(f.output not in spec.trajectory.outputs for f in fed)
        return (Kind.HIDDEN if hidden else Kind.FIELD), 0
    return _unfed_kind(shape, port.name in spec.forced)


def _unfed_kind(shape: tuple[int, ...], is_forced: bool) -> tuple[Kind, int]:
    """Return the kind of a forcing or static input, by the lengths of its axes."""
    long = [a for a, n in enumerate(shape) if n > 1]
    if len(long) == 1 and shape[long[0]] >= (_LEAST_LONG if len(shape) == 1 else LEAST_SERIES):
        return Kind.SERIES, long[0]
    if len(long) == 2:
        first, last = long
        time = last if shape[last] >= 4 * shape[first] else first
        if shape[time] >= LEAST_SERIES:
            return Kind.SERIES, time
    if len(long) > 2:
        places = [a for a in long if shape[a] >= LEAST_SERIES]
        return (Kind.SERIES, places[0]) if len(places) == 1 else (Kind.FIELD, 0)
    return (Kind.FORCED if is_forced else Kind.FIELD), 0


def _context_axis(feedback: Feedback, spec: RolloutSpec) -> int:
    batch, axis = spec.rollout.batch_axis, feedback.axis or 0
    return axis - (batch is not None and batch < axis)


def _hop(spec: RolloutSpec, signature: ModelSignature, length: int) -> int:
    """Return by how many values windows advance at a step: as many as are appended, else their whole length."""
    for feedback in spec.feedback:
        shape = signature.output(feedback.output).shape
        if feedback.axis is None or shape is None:
            continue
        fed = fed_shape(feedback, shape, feedback.output)
        size = fed[feedback.axis] if feedback.axis < len(fed) else 1
        return size if isinstance(size, int) else 1
    return max(length, 1)


def _smooth(shape: tuple[int, ...], mean: Floats, deviation: Floats, history: int | None) -> tuple[int, ...]:
    """Return the axes of a field that are no channels: those along which its units do not vary."""
    axes = [a for a, n in enumerate(shape) if n > 1 and a != history]
    varying = [a for a in axes if np.ptp(mean, axis=a).any() or np.ptp(deviation, axis=a).any()]
    if varying:
        return tuple(a for a in axes if a not in varying)
    if len(axes) == 1:
        return tuple(axes) if shape[axes[0]] >= _LEAST_LONG else ()
    if len(axes) == 2:
        return tuple(axes[1:]) if 4 * shape[axes[0]] <= shape[axes[1]] else tuple(axes)
    if len(axes) > 2:
        return tuple(axes[1:] if shape[axes[0]] <= shape[axes[-1]] else axes[:-1])
    return ()
