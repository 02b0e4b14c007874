"""The rollout spec: how outputs re-enter as inputs, what the trajectory is, how a table is cut into contexts.

A TOML file (`rollout.toml`), checked strictly: unknown keys are refused, types are not coerced. Every axis is
an axis of the arrays of the ONNX file, counted from 0, batch axis included. See `check` for how a spec and a
model fit.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tqs_onnx.rollout.spec.signature import close_match
from tqs_passes.errors import InputError


def _as_tuple(value: object) -> object:
    """Turn a TOML array, a list, into the tuple that strict fields want."""
    return tuple(value) if isinstance(value, list) else value


def _one_or_many(value: object) -> object:
    """Let a single table or number stand for a sequence of one."""
    if isinstance(value, Mapping | int | float) and not isinstance(value, bool):
        return (value,)
    return _as_tuple(value)


Axis = Annotated[int, Field(ge=0)]
Bound = Annotated[int | float, Field(ge=0)]
Rows = Annotated[tuple[Bound, Bound], BeforeValidator(_as_tuple)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Numbers = Annotated[tuple[Finite, ...], BeforeValidator(_one_or_many), Field(min_length=1)]
Name = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Cut(_Table):
    """A part of an array along one axis: one `index` (the axis goes) or the range [`start`, `stop`)."""

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
        """Start and stop (None: to the end) of the range, as Python slices count them."""
        if self.index is not None:
            return self.index, (self.index + 1) or None
        return self.start or 0, self.stop


Cuts = Annotated[tuple[Cut, ...], BeforeValidator(_one_or_many)]


class RolloutTable(_Table):
    """Number of model calls, values kept along time, and the batch axis (None: the model has none).

    `flip_invariant` averages with the rollout of the negated states, `non_negative` bounds the forecast at zero where
    the states hold no negative value; see `tqs_onnx.rollout.postprocess`.
    """

    steps: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=1)] | None = None
    batch_axis: Axis | None = None
    flip_invariant: bool = False
    non_negative: bool = False

    @property
    def is_made_whole(self) -> bool:
        """Whether a trajectory is made from whole rollouts, so that a step by itself says nothing."""
        return self.flip_invariant or self.non_negative


class Feedback(_Table):
    """How one output re-enters as one input: fed = scale · expand(select(output)) + offset.

    `replace` makes it the input; `shift` appends it along `axis` and drops as many of the oldest; `grow`
    appends it. With `into` only that part of the input is written; the rest comes from the forcing of the
    same input, or stays as it was.
    """

    output: Name
    input: Name
    mode: Literal["replace", "shift", "grow"]
    axis: Axis | None = None
    select: Cuts = ()
    into: Cut | None = None
    expand: Annotated[tuple[Axis, ...], BeforeValidator(_one_or_many)] = ()
    scale: Numbers = (1.0,)
    offset: Numbers = (0.0,)
    along: Axis | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Feedback:
        if (self.axis is None) != (self.mode == "replace"):
            raise ValueError("axis is needed by shift and grow, and by them only")
        if self.mode == "grow" and self.into is not None:
            raise ValueError("into does not go with grow: the rest of the input would keep its length")
        if len({len(v) for v in (self.scale, self.offset) if len(v) > 1}) > 1:
            raise ValueError("scale and offset have different lengths")
        if len({c.axis for c in self.select}) < len(self.select):
            raise ValueError("select cuts one axis twice")
        if len(set(self.expand)) < len(self.expand):
            raise ValueError("expand names an axis twice")
        return self

    @property
    def is_direct(self) -> bool:
        """The output as it is becomes the input."""
        return self.mode == "replace" and not (self.select or self.into or self.expand or self.is_scaled)

    @property
    def keeps_units(self) -> bool:
        """The output is the next input, whole and in its units, so that an observed input is its truth."""
        return not (self.select or self.into or self.is_scaled)

    @property
    def is_scaled(self) -> bool:
        """Scale or offset change the values."""
        return set(self.scale) != {1.0} or set(self.offset) != {0.0}


class Forcing(_Table):
    """An input whose values per step are given; `shared`: it has no batch axis."""

    input: Name
    shared: bool = False


class Static(_Table):
    """An input that is the same at every step; `shared`: it has no batch axis."""

    input: Name
    shared: bool = False


class Fill(_Table):
    """An input to which `length` constant values are appended along `axis` after each step, e.g. a mask."""

    input: Name
    value: bool | int | Finite
    mode: Literal["grow", "shift"] = "grow"
    axis: Axis
    length: Annotated[int, Field(ge=1)]


class TrajectoryTable(_Table):
    """The outputs that are the forecast; `time_axis`: which axis is time (None: one step is one time)."""

    outputs: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    time_axis: Axis | None = None
    select: Cuts = ()

    @model_validator(mode="after")
    def _distinct(self) -> TrajectoryTable:
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError("an output is named twice")
        if len({c.axis for c in self.select}) < len(self.select):
            raise ValueError("select cuts one axis twice")
        return self


class Variable(_Table):
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
            raise ValueError("axis and index go together")
        return self


class TableWindows(_Table):
    """Splits and stride for the tables whose file name matches `match` (shell pattern); unset keys stay."""

    match: Name
    stride: Annotated[int, Field(ge=1)] | None = None
    train: Rows | None = None
    validation: Rows | None = None
    test: Rows | None = None


class Windows(_Table):
    """How contexts are cut from a table; see `windows`.

    `standardise`: each column is (x − μ) / (σ + 1e-8), μ and σ over the whole column, test rows included (A.11).
    """

    input: Name
    layout: Literal["series", "table"]
    context: Annotated[int, Field(ge=1)]
    horizon: Annotated[int, Field(ge=1)]
    stride: Annotated[int, Field(ge=1)]
    columns: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple), Field(min_length=1)] | None = None
    missing: Annotated[tuple[float, ...], BeforeValidator(_as_tuple)] = ()
    standardise: bool = False
    train: Rows | None = None
    validation: Rows | None = None
    test: Rows | None = None
    table: Annotated[tuple[TableWindows, ...], BeforeValidator(_as_tuple)] = ()


Days = Annotated[tuple[Name, Name], BeforeValidator(_as_tuple)]


class FieldInput(_Table):
    """One input made of fields: `variables` stacked, at `levels` (hPa) if given, in `units` (default: SI)."""

    input: Name
    variables: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    levels: Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_as_tuple)] | None = None
    units: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple)] | None = None
    history: Annotated[int, Field(ge=1)] = 1
    static: bool = False

    @model_validator(mode="after")
    def _one_unit_each(self) -> FieldInput:
        if self.units is not None and len(self.units) != len(self.variables):
            raise ValueError("units and variables differ in number")
        return self


class FieldsTable(_Table):
    """How contexts are cut from fields over time; see `fields`. Splits are [first day, day after the last]."""

    step_hours: Annotated[int, Field(ge=1)]
    every_hours: Annotated[int, Field(ge=1)]
    validation: Days
    test: Days
    input: Annotated[tuple[FieldInput, ...], BeforeValidator(_as_tuple), Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> FieldsTable:
        if len({f.input for f in self.input}) < len(self.input):
            raise ValueError("two [[fields.input]] tables give one input")
        return self


class RolloutSpec(_Table):
    """A whole rollout.toml."""

    version: Literal[1]
    rollout: RolloutTable
    feedback: Annotated[tuple[Feedback, ...], BeforeValidator(_as_tuple)] = ()
    forcing: Annotated[tuple[Forcing, ...], BeforeValidator(_as_tuple)] = ()
    static: Annotated[tuple[Static, ...], BeforeValidator(_as_tuple)] = ()
    fill: Annotated[tuple[Fill, ...], BeforeValidator(_as_tuple)] = ()
    trajectory: TrajectoryTable
    variable: Annotated[tuple[Variable, ...], BeforeValidator(_as_tuple)] = ()
    windows: Windows | None = None
    fields: FieldsTable | None = None

    @model_validator(mode="after")
    def _has_states(self) -> RolloutSpec:
        if self.rollout.is_made_whole and not self.feedback:
            raise ValueError(
                "flip_invariant and non_negative act on what is fed back: there is no [[feedback]]"
            )
        forced = {f.input for f in self.feedback} & {f.input for f in self.forcing}
        if self.rollout.flip_invariant and forced:
            raise ValueError(
                f"flip_invariant negates states, and input {min(forced)!r} is a forcing in part: "
                "it cannot tell which part"
            )
        if self.fields is not None and self.forcing:
            raise ValueError("[fields] gives no values to a [[forcing]]: give contexts as arrays")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model inputs that the spec covers, each once, in file order."""
        tables: tuple[Feedback | Forcing | Static | Fill, ...]
        tables = (*self.feedback, *self.forcing, *self.static, *self.fill)
        return tuple(dict.fromkeys(t.input for t in tables))

    @property
    def forced(self) -> frozenset[str]:
        """Inputs whose contexts hold a value per step."""
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
            Values kept along time. Default: as before when steps do not shrink, else all.
        horizon : int, optional
            Rows of truth after each context; default: as before.

        Raises
        ------
        InputError
            A number is below 1.
        """
        if min(n for n in (steps, length, horizon) if n is not None) < 1:
            raise InputError("steps, length and horizon must be at least 1")
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
        The file is missing, is no TOML, or a key is unknown, missing or of the wrong type; the key is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=str(path), todo="Give the path of a rollout.toml"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=str(path), todo="Give a rollout.toml") from error
    return parse_spec(text, where=str(path))


def parse_spec(text: str, *, where: str = "rollout.toml") -> RolloutSpec:
    """Return the spec that a TOML text holds; raises as `load_spec` does, with `where` as the file."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not valid TOML: {error}", where=where) from error
    return spec_of(data, where=where)


def spec_of(data: Mapping[str, Any], *, where: str = "rollout.toml") -> RolloutSpec:
    """Return the spec that a dictionary holds, with the tables and keys of a rollout.toml; see `load_spec`."""
    try:
        return RolloutSpec.model_validate(data)
    except ValidationError as error:
        raise _explain(error, where) from error


def content_hash(spec: RolloutSpec) -> str:
    """Return the hexadecimal SHA-256 of what the spec says, whatever its layout and key order.

    Units of variables are for the reader, and not part of it.
    """
    said = spec.model_dump(mode="json", exclude_defaults=True, exclude={"variable": {"__all__": {"unit"}}})
    text = json.dumps(said, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _explain(error: ValidationError, where: str) -> InputError:
    """Report the first complaint, unknown keys first: a misspelt key also shows up as a missing one."""
    found = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")[0]
    union = bool(found["loc"]) and found["loc"][-1] in {
        "int",
        "float",
        "bool",
    }  # the member of a union that was tried, not a key
    key = "".join(_key_parts(found["loc"][: -1 if union else None])).lstrip(".")
    if found["type"] == "extra_forbidden":
        known = {k for m in _tables() for k in m.model_fields}
        todo = close_match(str(found["loc"][-1]), known) or "Remove it"
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


def _tables() -> tuple[type[_Table], ...]:
    return (RolloutSpec, *_Table.__subclasses__())
