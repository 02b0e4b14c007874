"""The rollout spec: how outputs re-enter as inputs, which outputs form the trajectory, how contexts are cut.

It is a TOML file (`rollout.toml`) with strict validation: unknown keys are refused and types are not coerced. Every
axis is an axis of the arrays of the ONNX file, counted from 0 including the batch axis. `check` tests whether a spec
fits a model.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tqs_onnx.rollout.spec.base import (
    Axis,
    Finite,
    Name,
    Names,
    Numbers,
    Table,
    as_tuple,
    every_table,
    one_or_many,
)
from tqs_onnx.rollout.spec.signature import close_match
from tqs_onnx.rollout.spec.windows_table import Windows
from tqs_passes.errors import InputError
from tqs_passes.files.text import read_text


class Cut(Table):
    """A part of an array along one axis: one `index` (which removes the axis) or the range [`start`, `stop`)."""

    axis: Axis
    index: int | None = None
    start: int | None = None
    stop: int | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Cut:
        ranged = self.start is not None or self.stop is not None
        if (self.index is None) != ranged:
            raise ValueError("needs either index, or start and/or stop")
        return self

    @property
    def bounds(self) -> tuple[int, int | None]:
        """Start and stop of the range (None: to the end), with the meaning of Python slices."""
        if self.index is not None:
            return self.index, (self.index + 1) or None
        return self.start or 0, self.stop


Cuts = Annotated[tuple[Cut, ...], BeforeValidator(one_or_many)]


class RolloutTable(Table):
    """Number of model calls, values kept along time, and the batch axis (None: the model has none).

    `flip_invariant` averages with the rollout of the negated states; `non_negative` bounds the forecast at zero when
    the states have no negative value; see `tqs_onnx.rollout.postprocess`.
    """

    steps: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=1)] | None = None
    batch_axis: Axis | None = None
    flip_invariant: bool = False
    non_negative: bool = False

    @property
    def is_made_whole(self) -> bool:
        """Whether a trajectory is computed from whole rollouts, so that a single step cannot be judged."""
        return self.flip_invariant or self.non_negative


class Feedback(Table):
    """How one output re-enters as one input: fed = scale · expand(select(output)) + offset.

    `replace` makes it the input; `shift` appends it along `axis` and drops equally many of the oldest values;
    `grow` appends it. With `into` only that part of the input is written; the rest comes from the forcing of the
    same input, or keeps its values.
    """

    output: Name
    input: Name
    mode: Literal["replace", "shift", "grow"]
    axis: Axis | None = None
    select: Cuts = ()
    into: Cut | None = None
    expand: Annotated[tuple[Axis, ...], BeforeValidator(one_or_many)] = ()
    scale: Numbers = (1.0,)
    offset: Numbers = (0.0,)
    along: Axis | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Feedback:
        if (self.axis is None) != (self.mode == "replace"):
            raise ValueError("axis is required for shift and grow, and not allowed for replace")
        if self.mode == "grow" and self.into is not None:
            raise ValueError("into cannot be combined with grow: the rest of the input would keep its length")
        if len({len(v) for v in (self.scale, self.offset) if len(v) > 1}) > 1:
            raise ValueError("scale and offset have different lengths")
        if len({c.axis for c in self.select}) < len(self.select):
            raise ValueError("select cuts one axis twice")
        if len(set(self.expand)) < len(self.expand):
            raise ValueError("expand names an axis twice")
        return self

    @property
    def is_direct(self) -> bool:
        """Whether the unchanged output becomes the input."""
        return self.mode == "replace" and not (self.select or self.into or self.expand or self.is_scaled)

    @property
    def keeps_units(self) -> bool:
        """Whether the next input is the whole output in its own units, so that an observed input is its truth."""
        return not (self.select or self.into or self.is_scaled)

    @property
    def is_scaled(self) -> bool:
        """Whether scale or offset change the values."""
        return set(self.scale) != {1.0} or set(self.offset) != {0.0}


class Forcing(Table):
    """An input with given values for every step; `shared`: it has no batch axis."""

    input: Name
    shared: bool = False


class Static(Table):
    """An input with the same values at every step; `shared`: it has no batch axis."""

    input: Name
    shared: bool = False


class InputTable(Table):
    """What is true of an input however it is fed; `allow_nan`: the model handles NaN, so contexts may hold it."""

    input: Name
    allow_nan: bool = False


class Fill(Table):
    """An input, e.g. a mask, to which `length` constant values are appended along `axis` after each step."""

    input: Name
    value: bool | int | Finite
    mode: Literal["grow", "shift"] = "grow"
    axis: Axis
    length: Annotated[int, Field(ge=1)]


class TrajectoryTable(Table):
    """The outputs that form the forecast, and the time axis in `time_axis` (None: one time value per step)."""

    outputs: Names
    time_axis: Axis | None = None
    select: Cuts = ()

    @model_validator(mode="after")
    def _distinct(self) -> TrajectoryTable:
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError("an output is named twice")
        if len({c.axis for c in self.select}) < len(self.select):
            raise ValueError("select cuts one axis twice")
        return self


class Variable(Table):
    """A named part of a trajectory output: one `index` of `axis`, or all of it; `scale` is σ_v in `unit`."""

    name: Name
    output: Name
    unit: str = ""
    axis: Axis | None = None
    index: Annotated[int, Field(ge=0)] | None = None
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _both(self) -> Variable:
        if (self.axis is None) != (self.index is None):
            raise ValueError("axis and index must be given together")
        return self


Days = Annotated[tuple[Name, Name], BeforeValidator(as_tuple)]


class FieldInput(Table):
    """One input composed of fields: `variables` stacked, at `levels` (hPa) if given, in `units` (default: SI).

    `file_units` replaces what the file says about its own units.
    """

    input: Name
    variables: Names
    levels: Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(as_tuple)] | None = None
    units: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] | None = None
    file_units: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] | None = None
    history: Annotated[int, Field(ge=1)] = 1
    static: bool = False

    @model_validator(mode="after")
    def _one_unit_each(self) -> FieldInput:
        for key, units in (("units", self.units), ("file_units", self.file_units)):
            if units is not None and len(units) != len(self.variables):
                raise ValueError(f"{key} and variables must have the same length")
        return self


class FieldsTable(Table):
    """How contexts are cut from fields over time; see `fields`. Splits are [first day, day after the last]."""

    step_hours: Annotated[int, Field(ge=1)]
    every_hours: Annotated[int, Field(ge=1)]
    validation: Days
    test: Days
    input: Annotated[tuple[FieldInput, ...], BeforeValidator(as_tuple), Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> FieldsTable:
        if len({f.input for f in self.input}) < len(self.input):
            raise ValueError("two [[fields.input]] tables name the same input")
        return self


class RolloutSpec(Table):
    """A whole rollout.toml."""

    version: Literal[1]
    rollout: RolloutTable
    feedback: Annotated[tuple[Feedback, ...], BeforeValidator(as_tuple)] = ()
    forcing: Annotated[tuple[Forcing, ...], BeforeValidator(as_tuple)] = ()
    static: Annotated[tuple[Static, ...], BeforeValidator(as_tuple)] = ()
    fill: Annotated[tuple[Fill, ...], BeforeValidator(as_tuple)] = ()
    input: Annotated[tuple[InputTable, ...], BeforeValidator(as_tuple)] = ()
    trajectory: TrajectoryTable
    variable: Annotated[tuple[Variable, ...], BeforeValidator(as_tuple)] = ()
    windows: Windows | None = None
    fields: FieldsTable | None = None

    @model_validator(mode="after")
    def _has_states(self) -> RolloutSpec:
        if self.rollout.is_made_whole and not self.feedback:
            raise ValueError("flip_invariant and non_negative need a state, but there is no [[feedback]]")
        forced = {f.input for f in self.feedback} & {f.input for f in self.forcing}
        if self.rollout.flip_invariant and forced:
            raise ValueError(
                f"flip_invariant negates states, but part of input {min(forced)!r} is a forcing, "
                "and the parts cannot be separated"
            )
        if self.fields is not None and self.forcing:
            raise ValueError("[fields] cannot supply a [[forcing]]: give contexts as arrays")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model inputs that the spec covers, each once, in file order."""
        tables: tuple[Feedback | Forcing | Static | Fill, ...]
        tables = (*self.feedback, *self.forcing, *self.static, *self.fill)
        return tuple(dict.fromkeys(t.input for t in tables))

    @property
    def forced(self) -> frozenset[str]:
        """Inputs whose contexts contain a value per step."""
        return frozenset(f.input for f in self.forcing)

    @property
    def shared(self) -> frozenset[str]:
        """Inputs without a batch axis in a model that has one."""
        tables: tuple[Forcing | Static, ...] = (*self.forcing, *self.static)
        return frozenset(t.input for t in tables if t.shared)

    def with_steps(self, steps: int, *, length: int | None = None, horizon: int | None = None) -> RolloutSpec:
        """Return the spec with another number of steps.

        Parameters
        ----------
        steps : int
            Calls of the model.
        length : int, optional
            Values kept along time. Default: unchanged if `steps` does not decrease, else all.
        horizon : int, optional
            Rows of truth after each context; default: unchanged.

        Raises
        ------
        InputError
            A number is below 1.
        """
        if min(n for n in (steps, length, horizon) if n is not None) < 1:
            raise InputError("steps, length and horizon must be at least 1", todo="Give larger numbers")
        if length is None and steps >= self.rollout.steps:
            length = self.rollout.length
        windows = self.windows
        if windows is not None and horizon is not None:
            windows = windows.model_copy(update={"horizon": horizon})
        rollout = self.rollout.model_copy(update={"steps": steps, "length": length})
        return self.model_copy(update={"rollout": rollout, "windows": windows})


def load_spec(path: Path) -> RolloutSpec:
    """Read a rollout.toml.

    Raises
    ------
    InputError
        The file is missing or not TOML, or a key is unknown, missing or of the wrong type; the message names the key.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=str(path), todo="Give the path of a rollout.toml"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=str(path), todo="Give a rollout.toml") from error
    return parse_spec(text, where=str(path))


def parse_spec(text: str, *, where: str = "rollout.toml") -> RolloutSpec:
    """Return the spec in a TOML text; raises the errors of `load_spec`, with `where` as the file."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, tables in tables
        raise InputError(f"is not valid TOML: {error}", where=where, todo="Correct the file") from error
    return spec_of(data, where=where)


def spec_of(data: Mapping[str, Any], *, where: str = "rollout.toml") -> RolloutSpec:
    """Return the spec in a dictionary with the tables and keys of a rollout.toml; see `load_spec`."""
    try:
        return RolloutSpec.model_validate(data)
    except ValidationError as error:
        raise _explain(error, where) from error


def content_hash(spec: RolloutSpec) -> str:
    """Return the hexadecimal SHA-256 of the content of the spec, independent of layout and key order.

    Units of variables are only for the reader and are not included.
    """
    said = spec.model_dump(mode="json", exclude_defaults=True, exclude={"variable": {"__all__": {"unit"}}})
    text = json.dumps(said, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _explain(error: ValidationError, where: str) -> InputError:
    """Report the first error, unknown keys first, because a misspelt key also appears as a missing one."""
    found = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")[0]
    union = bool(found["loc"]) and found["loc"][-1] in {
        "int",
        "float",
        "bool",
    }  # members of a union that pydantic tried, not keys
    key = "".join(_key_parts(found["loc"][: -1 if union else None])).lstrip(".")
    if found["type"] == "extra_forbidden":
        known = {k for m in every_table() for k in m.model_fields}
        name = str(found["loc"][-1])
        todo = close_match(name, known) or "Remove it"
        if name in known:
            todo = "It belongs in another table: see docs/rollout-spec.md"
        return InputError(f"{key}: unknown key", where=where, todo=todo)
    if found["type"] == "missing":
        return InputError(f"{key}: this key is missing", where=where)
    message = "Input should be a number" if union else found["msg"].removeprefix("Value error, ")
    given: Any = found["input"]
    shown = "" if isinstance(given, dict) else f" (got {given!r})"
    return InputError(f"{key}: {message}{shown}" if key else message, where=where)


def _key_parts(location: tuple[int | str, ...]) -> Iterator[str]:
    for part in location:
        yield f"[{part}]" if isinstance(part, int) else f".{part}"
