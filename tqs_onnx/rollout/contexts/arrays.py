"""Read contexts from arrays: an `.npz`, or a folder of `.npy` files (`truth/<output>.npy` below it).

There is one array per model input, and optionally `truth/<output>` and `series`. Pickled objects are refused.
Never imports onnxruntime.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts, cast, check_finite, context_shape, thin
from tqs_onnx.rollout.contexts.dataset import is_dataset, read_named
from tqs_onnx.rollout.spec.signature import Dim, ModelSignature, Port, close_match, shape_text
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_passes.errors import InputError

_TRUTH = "truth/"
_SERIES = "series"


def read_arrays(
    path: Path, spec: RolloutSpec, signature: ModelSignature, *, limit: int | None = None
) -> Contexts:
    """Read and check contexts stored as arrays; see `load_contexts` for parameters and errors."""
    return contexts_of(_load(path), spec, signature, str(path), limit=limit)


def contexts_of(
    stored: Mapping[str, NDArray[Any]],
    spec: RolloutSpec,
    signature: ModelSignature,
    where: str,
    *,
    limit: int | None = None,
) -> Contexts:
    """Return contexts from named arrays: one per model input, `truth/<output>`, and `series`.

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
        if name in inputs:
            arrays[name] = _checked(array, signature.input(name), spec, where)
        elif not name.startswith(_TRUTH) and name != _SERIES:
            todo = close_match(name, inputs) or f"Its inputs are: {', '.join(sorted(inputs))}"
            raise InputError(f"array {name!r} is not an input of the model", where=where, todo=todo)
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
    contexts = Contexts(arrays, truth, series, source=where)
    return contexts if len(chosen) == n else contexts.take(chosen)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    if is_dataset(path):
        return _not_empty(read_named(path), path)
    try:
        if path.is_dir():
            files = sorted(path.rglob("*.npy"))
            named = {
                f.relative_to(path).with_suffix("").as_posix(): np.load(f, allow_pickle=False) for f in files
            }
        else:
            named = _unzipped(path)
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(
            "cannot be read as NumPy arrays (damaged, or with pickled objects)",
            where=str(path),
            todo="Write it with numpy.savez, one plain array per model input",
        ) from error
    return _not_empty(named, path)


def _not_empty(named: dict[str, NDArray[Any]], path: Path) -> dict[str, NDArray[Any]]:
    if not named:
        raise InputError("contains no arrays", where=str(path), todo="Add one array per model input")
    return named


def _unzipped(path: Path) -> dict[str, NDArray[Any]]:
    """Read an `.npz` as `numpy.load` does, which would leave a damaged file open."""
    named: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                named[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    return named


def _checked(array: NDArray[Any], port: Port, spec: RolloutSpec, where: str) -> NDArray[Any]:
    forced = port.name in spec.forced
    shape = context_shape(spec, port)
    lead: tuple[Dim, ...] = ("context", "step") if forced else ("context",)
    if shape is not None and not _fits(array.shape[len(lead) :], shape, array.ndim - len(lead)):
        raise InputError(
            f"input {port.name!r} expects {shape_text((*lead, *shape))}, got {shape_text(array.shape)}",
            where=where,
            todo="The first axis must be the context; leave out the batch axis of the model"
            if spec.rollout.batch_axis is not None
            else "The rollout spec has no rollout.batch_axis: set it if the model has one, else give every axis",
        )
    if array.ndim < len(lead):
        raise InputError(
            f"input {port.name!r} has {array.ndim} axes, fewer than {shape_text(lead)}",
            where=where,
            todo="Add the missing axes",
        )
    if forced and array.shape[1] < spec.rollout.steps:
        raise InputError(
            f"forcing {port.name!r} has {array.shape[1]} steps, but the rollout has {spec.rollout.steps}",
            where=where,
            todo="Give a value for every step, or use fewer steps",
        )
    result = cast(array, port, where)
    check_finite(result, f"input {port.name!r}", where)
    return result


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
