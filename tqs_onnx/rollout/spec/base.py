"""What the tables of a rollout spec are made of: strict, frozen models, and the types of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def as_tuple(value: object) -> object:
    """Convert a TOML array, which is a list, to the tuple that strict fields require."""
    return tuple(value) if isinstance(value, list) else value


def one_or_many(value: object) -> object:
    """Accept a single table or number in place of a sequence of one."""
    if isinstance(value, Mapping | int | float) and not isinstance(value, bool):
        return (value,)
    return as_tuple(value)


Axis = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Bound = Annotated[int | float, Field(ge=0)]
Rows = Annotated[tuple[Bound, Bound], BeforeValidator(as_tuple)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Numbers = Annotated[tuple[Finite, ...], BeforeValidator(one_or_many), Field(min_length=1)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(as_tuple), Field(min_length=1)]


class Table(BaseModel):
    """A TOML table: unknown keys are refused, types are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def every_table() -> list[type[Table]]:
    """Return every kind of table, for messages about keys."""
    return list(Table.__subclasses__())
