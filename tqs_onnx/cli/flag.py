"""A flag that fills a field of an option class, and the settings that given flags make.

Flags have no defaults of their own: a flag that is not given leaves the default of its field, and `--help` shows that
default. `tqs_onnx.cli.flags` is the table of all flags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, StrEnum
from typing import Any

from tqs_onnx.jobs.options import BaselineOptions, QuantizeOptions
from tqs_passes.errors import InputError


class Group(StrEnum):
    """The title under which `--help` lists a flag."""

    EVERYDAY = "Everyday"
    DATA = "Data"
    PRECISION = "Precision"
    SERVING = "Serving"
    ROUNDING = "Rounding"
    SCORING = "Scoring"
    GATES = "Gates"
    MACHINE = "Machine"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    Parameters
    ----------
    name : str
        Its name with dashes; ``--rows/--no-rows`` if it can be turned off.
    path : str
        Path of the field that it fills, with dots; `data.` denotes the fields of `DataOptions`.
    group : Group
    help : str
    kind : click type, optional
        Type of the value; None: text.
    read : callable, optional
        Converts the value to that of the field.
    switch : bool
        Whether it takes no value.
    several : bool
        Whether it may be repeated; its values are added to those of the field.
    metavar : str, optional
    """

    name: str
    path: str
    group: Group
    help: str
    kind: Any = None
    read: Callable[[Any], Any] | None = None
    switch: bool = False
    several: bool = False
    metavar: str | None = None

    @property
    def key(self) -> str:
        """The name in a build file and in the command's function."""
        return self.name.partition("/")[0].removeprefix("--").replace("-", "_")

    @property
    def has_off(self) -> bool:
        """Whether it can be turned off."""
        return "/" in self.name


def nested(flags: Iterable[Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that flags fill, as nested dictionaries; flags that are not given are left out.

    Parameters
    ----------
    flags : iterable of Flag
    given : mapping of str to value
        By `Flag.key`, as click passes them: None, False and () mean that a flag was not given.

    Raises
    ------
    InputError
        A text is invalid; `where` is the name of the flag.
    """
    found: dict[str, Any] = {}
    flags = tuple(flags)
    for flag in flags:
        value = given.get(flag.key)
        if value is None or value == () or (value is False and not flag.has_off):
            continue
        values: list[Any] = [*value] if isinstance(value, tuple) else [value]
        try:
            read = [v if flag.read is None else flag.read(v) for v in values]
        except InputError as error:
            raise InputError(error.what, where=flag.name, todo=error.todo) from error
        *parents, last = flag.path.split(".")
        place = found
        for name in parents:
            place = place.setdefault(name, {})
        if flag.path == "gates" or flag.several:
            place[last] = [*place.get(last, []), *read]
        elif last in place:
            rivals = " and ".join(f.name for f in flags if f.path == flag.path)
            raise InputError(f"give one of {rivals}", where=flag.name)
        else:
            place[last] = read[0]
    return found


def default_of(
    flag: Flag, kind: type[QuantizeOptions] | type[BaselineOptions] = QuantizeOptions
) -> str | None:
    """Return the default of the field, which `--help` shows; None if there is none to show."""
    if (flag.switch and not flag.has_off) or flag.path.startswith("data.") or "[default:" in flag.help:
        return None
    value: Any = kind()
    for name in flag.path.split("."):
        if value is None:
            return None
        value = getattr(value, name)
    if value is None or value == ():
        return None
    if isinstance(value, tuple):
        return ",".join(str(v) for v in value)
    if isinstance(value, bool):
        return flag.name.partition("/")[0 if value else 2].removeprefix("--")
    return str(value.value if isinstance(value, Enum) else value)


def field_paths(kind: object, prefix: str = "") -> list[str]:
    """Return the paths of all fields of an option class that are not option classes themselves."""
    found: list[str] = []
    for field in fields(kind):  # type: ignore[arg-type]
        value = getattr(kind, field.name)
        path = f"{prefix}{field.name}"
        found += field_paths(value, f"{path}.") if is_dataclass(value) else [path]
    return found
