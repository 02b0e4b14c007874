"""Cut contexts from fields over time: a NetCDF file or Zarr store of ERA5, by the `[fields]` of the rollout spec.

    start row s      the current state; history h adds the states s − (h − 1) steps … s
    truth            the states s + 1 step … s + steps, for outputs that are fed back as such an input
    input            [context, (history,) variable, (level,) latitude, longitude], north to south, in the model's units

Variables are found under the names used in ERA5 files (see `era5`) and converted from the file's units. Never imports
onnxruntime.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.calendars import date_seconds, text_of
from tqs_onnx.rollout.contexts.context_set import (
    Contexts,
    allows_nan,
    cast,
    check_finite,
    context_shape,
    thin,
)
from tqs_onnx.rollout.contexts.dataset import Fields, open_fields
from tqs_onnx.rollout.contexts.era5 import converted, find_name, si_unit
from tqs_onnx.rollout.spec.signature import ModelSignature
from tqs_onnx.rollout.spec.spec import FieldInput, FieldsTable, RolloutSpec
from tqs_passes.errors import InputError

_HOUR = 3600


def cut_fields(
    path: Path, spec: RolloutSpec, signature: ModelSignature, *, split: str | None, limit: int | None = None
) -> Contexts:
    """Read fields and cut the contexts of one split; see `load_contexts` for parameters and errors."""
    table = spec.fields
    if table is None:
        raise InputError(
            "fields over time need a [fields] section in the rollout spec", where=str(path), todo="Add one"
        )
    if split not in ("validation", "test"):
        raise InputError(
            "[fields] has no training split", where=str(path), todo="Give `calibration` as an .npz"
        )
    given = {f.input for f in table.input}
    for port in signature.inputs:
        if port.name not in given:
            raise InputError(
                f"[fields] supplies no values for input {port}",
                where=str(path),
                todo="Give contexts as an .npz",
            )
    with closing(open_fields(path)) as fields:
        rows, stride = _starts(fields, table, spec, split)
        ends = rows + stride * spec.rollout.steps
        with_truth = bool(ends[-1] < len(fields.seconds)) and (
            split == "test" or _inside(fields, ends[-1], table, split)
        )
        rows = rows[thin(len(rows), limit)]
        arrays = {f.input: _input(fields, f, rows, stride, spec, signature, path) for f in table.input}
        truth = _truth(fields, table, rows, stride, spec) if with_truth else {}
        back = stride * (max(f.history for f in table.input) - 1)
        ahead = stride * spec.rollout.steps if with_truth else 0
        return Contexts(
            arrays={p.name: arrays[p.name] for p in signature.inputs},
            truth=truth,
            rows=np.stack([rows - back, rows + ahead + 1], axis=1).astype(np.int64),
            source=str(path),
            table=fields.digest(),
            notes=(*fields.notes, *_unstated(fields, table), *_cut_short(fields, table, split)),
            latitudes=fields.latitudes,
        )


def _cut_short(fields: Fields, table: FieldsTable, split: str) -> tuple[str, ...]:
    """Return a note if a split reaches beyond the file."""
    first, stop = _bounds(fields, table, split)
    begins, ends = int(fields.seconds[0]), 2 * int(fields.seconds[-1]) - int(fields.seconds[-2])
    if begins <= first and stop <= ends:
        return ()
    held = [text_of(int(t), fields.calendar) for t in fields.seconds[[0, -1]]]
    days = table.validation if split == "validation" else table.test
    return (
        f"{fields.path} covers {held[0]} to {held[1]}: fields.{split} {days[0]} to {days[1]} is cut short",
    )


def _bounds(fields: Fields, table: FieldsTable, split: str) -> tuple[int, int]:
    days = table.validation if split == "validation" else table.test
    try:
        first, stop = (_moment(day, fields.calendar) for day in days)
    except ValueError as error:
        raise InputError(
            f"fields.{split} {list(days)} are not dates", where="rollout.toml", todo="Write e.g. 2020-01-31"
        ) from error
    return first, stop


def _moment(text: str, calendar: str) -> int:
    """Return the seconds since 1970 of a date with or without a time of day, in a calendar."""
    day, _, clock = text.replace("T", " ").partition(" ")
    year, month, number = (int(part) for part in day.split("-"))
    within = int(np.datetime64(f"1970-01-01T{clock}" if clock else "1970-01-01", "s").astype(np.int64))
    return date_seconds(year, month, number, calendar) + within


def _inside(fields: Fields, row: int, table: FieldsTable, split: str) -> bool:
    return int(fields.seconds[row]) < _bounds(fields, table, split)[1]


def _unstated(fields: Fields, table: FieldsTable) -> tuple[str, ...]:
    """Return a note for every variable whose unit neither the file nor the spec gives."""
    notes: list[str] = []
    for wanted in table.input:
        for index, variable in enumerate(wanted.variables):
            name, target = find_name(variable, fields.names), si_unit(variable)
            given = wanted.file_units[index] if wanted.file_units is not None else None
            if name is not None and target is not None and (given or fields.unit(name)) is None:
                notes.append(f"{fields.path}: {name} has no units and is taken to be in {target}")
    return tuple(notes)


def _starts(
    fields: Fields, table: FieldsTable, spec: RolloutSpec, split: str
) -> tuple[NDArray[np.int64], int]:
    """Return the rows of all starts of a split, and the number of rows per step."""
    gaps = set(np.diff(fields.seconds).tolist())
    where = str(fields.path)
    if len(gaps) != 1 or min(gaps) <= 0:
        raise InputError(
            "the times are not evenly spaced", where=where, todo="Fill the gaps, or split the file"
        )
    gap = gaps.pop()
    if (table.step_hours * _HOUR) % gap or (table.every_hours * _HOUR) % gap:
        raise InputError(
            f"rows are {gap / _HOUR:g} h apart: steps of {table.step_hours} h do not fit",
            where=where,
            todo="Change step_hours and every_hours in [fields]",
        )
    stride, every = table.step_hours * _HOUR // gap, table.every_hours * _HOUR // gap
    first, stop = np.searchsorted(fields.seconds, _bounds(fields, table, split))
    first += stride * (max(f.history for f in table.input) - 1)
    last = stop - (stride * spec.rollout.steps if split == "test" else 0)
    rows = np.arange(first, last, every)
    if len(rows) == 0:
        raise InputError(
            f"the {split} rows {first}–{stop - 1} are too few for a start with {spec.rollout.steps} steps",
            where=where,
            todo=f"Widen fields.{split}, or roll out fewer steps",
        )
    return rows, int(stride)


def _states(fields: Fields, wanted: FieldInput, rows: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Return [row, variable, (level,) latitude, longitude], without the first axis when `rows` is None."""
    parts: list[NDArray[np.float64]] = []
    units = wanted.units or (None,) * len(wanted.variables)
    stored = wanted.file_units or (None,) * len(wanted.variables)
    for variable, unit, in_file in zip(wanted.variables, units, stored, strict=True):
        name = find_name(variable, fields.names)
        if name is None:
            raise InputError(
                f"contains no variable {variable!r}",
                where=str(fields.path),
                todo=f"Its variables are: {', '.join(fields.names)}",
            )
        values = fields.read(name, None if rows is None else rows.tolist(), wanted.levels)
        target = unit or si_unit(variable)
        given = in_file or fields.unit(name) or si_unit(variable)
        if given is not None and target is not None:
            values = converted(values, given, target, where=f"{fields.path}: {name}")
        parts.append(values)
    return np.stack(parts, axis=0 if rows is None else 1)


def _input(
    fields: Fields,
    wanted: FieldInput,
    rows: NDArray[np.int64],
    stride: int,
    spec: RolloutSpec,
    signature: ModelSignature,
    path: Path,
) -> NDArray[Any]:
    port = signature.input(wanted.input)
    if wanted.static:
        values = np.repeat(_states(fields, wanted, None)[None], len(rows), axis=0)
    elif wanted.history == 1:
        values = _states(fields, wanted, rows)
    else:
        past = stride * np.arange(1 - wanted.history, 1)
        values = np.stack([_states(fields, wanted, rows + p) for p in past], axis=1)
    shape = context_shape(spec, port)
    if shape is not None and (
        len(shape) != values.ndim - 1
        or any(isinstance(d, int) and d != n for d, n in zip(shape, values.shape[1:], strict=True))
    ):
        raise InputError(
            f"fields of {list(values.shape[1:])} do not fit input {port}",
            where=str(path),
            todo="Change variables, levels or history in [[fields.input]], or the grid of the file",
        )
    made = cast(values, port, str(path))
    check_finite(made, f"input {port.name!r}", str(path), allow_nan=allows_nan(spec, port))
    return made


def _truth(
    fields: Fields, table: FieldsTable, rows: NDArray[np.int64], stride: int, spec: RolloutSpec
) -> dict[str, NDArray[np.float64]]:
    by_input = {f.input: f for f in table.input}
    fed = {f.output: by_input[f.input] for f in spec.feedback if f.input in by_input and f.keeps_units}
    ahead = stride * np.arange(1, spec.rollout.steps + 1)
    return {
        output: np.stack([_states(fields, fed[output], rows + a) for a in ahead], axis=1)
        for output in spec.trajectory.outputs
        if output in fed
    }
