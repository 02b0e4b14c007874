"""Read contexts from arrays: an `.npz`, or a folder of `.npy` files (`truth/<output>.npy` below it).

There is one array per model input, and optionally `truth/<output>`, `series`, and `latitude`: degrees, for a grid that
is the last two axes of the trajectory. Names and shapes are checked before any values are read. Never imports
onnxruntime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.archive import open_archive
from tqs_onnx.rollout.contexts.context_set import (
    Contexts,
    allows_nan,
    cast,
    check_finite,
    context_shape,
    thin,
)
from tqs_onnx.rollout.contexts.dataset import is_dataset, read_named
from tqs_onnx.rollout.spec.signature import Dim, ModelSignature, Port, close_match, shape_text
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_passes.errors import InputError

_TRUTH = "truth/"
_SERIES = "series"
_LATITUDE = "latitude"


def read_arrays(
    path: Path,
    spec: RolloutSpec,
    signature: ModelSignature,
    *,
    limit: int | None = None,
    most_bytes: int | None = None,
) -> Contexts:
    """Read and check contexts stored as arrays; see `load_contexts` for parameters and errors."""
    where = str(path)
    if is_dataset(path):
        stored = read_named(path)
    else:
        archive = open_archive(path, most_bytes)
        inputs = {p.name for p in signature.inputs}
        for name, shape in archive.shapes.items():
            _check_name(name, inputs, where)
            if name in inputs:
                _check_shape(shape, signature.input(name), spec, where)
        stored = archive.read()
    if not stored:
        raise InputError("contains no arrays", where=where, todo="Add one array per model input")
    return contexts_of(stored, spec, signature, where, limit=limit)


def contexts_of(
    stored: Mapping[str, NDArray[Any]],
    spec: RolloutSpec,
    signature: ModelSignature,
    where: str,
    *,
    limit: int | None = None,
) -> Contexts:
    """Return contexts from named arrays: one per model input, `truth/<output>`, `series` and `latitude`.

    Parameters
    ----------
    stored : mapping of str to NDArray
        Arrays by name; the first axis is the context.
    spec : RolloutSpec
    signature : ModelSignature
    where : str
        Location that error messages name.
    limit : int, optional
        See `load_contexts`, also for the errors.
    """
    inputs = {p.name for p in signature.inputs}
    truth = {k.removeprefix(_TRUTH): a for k, a in stored.items() if k.startswith(_TRUTH) and k not in inputs}
    labels = stored.get(_SERIES) if _SERIES not in inputs else None
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in stored.items():
        _check_name(name, inputs, where)
        if name in inputs:
            arrays[name] = _checked(array, signature.input(name), spec, where)
    for port in signature.inputs:
        if port.name not in arrays:
            raise InputError(
                f"contains no array for input {port}", where=where, todo=f"Add an array {port.name!r}"
            )
    n = _one_length(arrays, truth, labels, where)
    for output, array in truth.items():
        _check_truth(output, array, spec, where)
    series = None if labels is None else tuple(str(s) for s in labels)
    chosen = thin(n, limit, series)
    contexts = Contexts(arrays, truth, series, source=where, latitudes=_latitudes(stored, inputs, where))
    return contexts if len(chosen) == n else contexts.take(chosen)


def _check_name(name: str, inputs: Collection[str], where: str) -> None:
    if name not in inputs and not name.startswith(_TRUTH) and name not in (_SERIES, _LATITUDE):
        todo = close_match(name, inputs) or f"Its inputs are: {', '.join(sorted(inputs))}"
        raise InputError(f"array {name!r} is not an input of the model", where=where, todo=todo)


def _latitudes(stored: Mapping[str, NDArray[Any]], inputs: set[str], where: str) -> tuple[float, ...] | None:
    if _LATITUDE in inputs or _LATITUDE not in stored:
        return None
    values = stored[_LATITUDE]
    if values.ndim != 1 or values.dtype.kind not in "iuf" or not (np.abs(values) <= 90).all():
        raise InputError(
            "`latitude` is not one row of degrees",
            where=where,
            todo="Store one latitude for each row of the grid",
        )
    return tuple(float(v) for v in values)


def _checked(array: NDArray[Any], port: Port, spec: RolloutSpec, where: str) -> NDArray[Any]:
    _check_shape(array.shape, port, spec, where)
    result = cast(array, port, where)
    check_finite(result, f"input {port.name!r}", where, allow_nan=allows_nan(spec, port))
    return result


def _check_shape(got: tuple[int, ...], port: Port, spec: RolloutSpec, where: str) -> None:
    forced = port.name in spec.forced
    shape = context_shape(spec, port)
    lead: tuple[Dim, ...] = ("context", "step") if forced else ("context",)
    if shape is not None and not _fits(got[len(lead) :], shape, len(got) - len(lead)):
        raise InputError(
            f"input {port.name!r} expects {shape_text((*lead, *shape))}, got {shape_text(got)}",
            where=where,
            todo="The first axis must be the context; leave out the batch axis of the model"
            if spec.rollout.batch_axis is not None
            else "The rollout spec has no rollout.batch_axis: set it if the model has one, else give every axis",
        )
    if len(got) < len(lead):
        raise InputError(
            f"input {port.name!r} has {len(got)} axes, fewer than {shape_text(lead)}",
            where=where,
            todo="Add the missing axes",
        )
    if forced and got[1] < spec.rollout.steps:
        raise InputError(
            f"forcing {port.name!r} has {got[1]} steps, but the rollout has {spec.rollout.steps}",
            where=where,
            todo="Give a value for every step, or use fewer steps",
        )


def _fits(got: tuple[int, ...], wanted: tuple[Dim, ...], rank: int) -> bool:
    if rank != len(wanted):
        return False
    return all(isinstance(w, str) or g == w for g, w in zip(got, wanted, strict=True))


def _one_length(
    arrays: dict[str, NDArray[Any]], truth: dict[str, NDArray[Any]], labels: NDArray[Any] | None, where: str
) -> int:
    """Return the number of contexts, which all arrays must share."""
    named = {**arrays, **{_TRUTH + k: a for k, a in truth.items()}}
    if labels is not None:
        named[_SERIES] = labels
    if any(a.ndim == 0 for a in named.values()):
        raise InputError("an array has no context axis", where=where, todo="Make the context its first axis")
    lengths = {name: len(a) for name, a in named.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{k!r} {n}" for k, n in lengths.items())
        raise InputError(
            f"the arrays differ in the number of contexts: {said}",
            where=where,
            todo="Give every array the same first axis",
        )
    n = next(iter(lengths.values()), 0)
    if n == 0:
        raise InputError("contains no contexts", where=where, todo="Give at least one context")
    return n


def _check_truth(output: str, array: NDArray[Any], spec: RolloutSpec, where: str) -> None:
    if output not in spec.trajectory.outputs:
        raise InputError(
            f"{_TRUTH}{output} is not an output of the trajectory",
            where=where,
            todo=close_match(output, spec.trajectory.outputs) or "Name it after a trajectory output",
        )
    if array.ndim < 2 or array.dtype.kind not in "fiu":
        raise InputError(
            f"{_TRUTH}{output} must have numbers and axes [context, time, ...]",
            where=where,
            todo="Store the truth in this layout",
        )
    check_finite(array, f"{_TRUTH}{output}", where)
