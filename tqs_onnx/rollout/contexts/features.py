"""The features of a table by name: its columns, their lags, and the calendar of its time axis.

    load                      a column
    lag(load, 24)             the column 24 rows before
    time.hour                 minute, hour, day, weekday (Monday 0), month, dayofyear of the row's time, as written
    sin(time.hour), cos(…)    sin and cos of 2π · value / period: 60, 24, 31, 7, 12, 365.25

NumPy only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.table import DataTable, read_table
from tqs_onnx.rollout.spec.signature import close_match
from tqs_passes.errors import InputError

_LAG = re.compile(r"lag\((.+?), *(\d+)\)")
_CALENDAR = re.compile(r"(?:time\.(\w+)|(sin|cos)\(time\.(\w+)\))")
_PERIODS = {"minute": 60.0, "hour": 24.0, "day": 31.0, "weekday": 7.0, "month": 12.0, "dayofyear": 365.25}
_DAY = 86400


@dataclass(frozen=True, slots=True)
class Features:
    """Values of named features over the rows of a table.

    Parameters
    ----------
    names : tuple of str
    values : NDArray[np.float64]
        [row, feature]; NaN where a lag reaches beyond the first row.
    reach : tuple of int or None
        For each feature the number of rows after a context at which its value is known: 0 for a column that is not
        known in advance, k for its lag by k rows; None: without end.
    lag : int
        Rows before the first that lags need.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    reach: tuple[int | None, ...]
    lag: int


def sources(names: Sequence[str]) -> list[str]:
    """Return the columns of the table that features are made of, each once.

    >>> sources(["load", "lag(load, 24)", "sin(time.hour)", "rain"])
    ['load', 'rain']
    """
    found: list[str] = []
    for name in names:
        lag = _LAG.fullmatch(name)
        if lag is not None or _CALENDAR.fullmatch(name) is None:
            found.append(lag[1] if lag is not None else name)
    return list(dict.fromkeys(found))


def read_features(
    path: Path,
    names: Sequence[str] | None,
    targets: Sequence[str],
    known: Sequence[str],
    missing: Sequence[float],
) -> tuple[DataTable, Features, Features]:
    """Read a table and return it with the features of the input and the targets.

    Parameters
    ----------
    path : Path
    names : sequence of str or None
        Features of the input; None: all series of the table.
    targets : sequence of str
        Features of the output.
    known : sequence of str
        Columns whose values after a context are known, e.g. a weather forecast.
    missing : sequence of float
        See `read_table`.

    Raises
    ------
    InputError
        See `read_table`; or a calendar feature needs times that the table lacks.
    """
    wanted = None if names is None else sources([*names, *targets, *known])
    if wanted == []:
        raise InputError(
            "names no column of the table", where="rollout.toml windows.columns", todo="Name one"
        )
    _check_known(names, targets, known)
    table = read_table(path, wanted, missing)
    return (
        table,
        _features(table, names or table.columns, known, path),
        _features(table, targets, known, path),
    )


def _check_known(names: Sequence[str] | None, targets: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a known column that no feature is made of, or that is itself forecast."""
    held = known if names is None else sources(names)
    unused = next((name for name in known if name not in held), None)
    if unused is not None:
        raise InputError(
            f"known names {unused!r}, which no column of the input is made of",
            where="rollout.toml windows.known",
            todo=close_match(unused, held) or "Add it to windows.columns",
        )
    forecast = next((name for name in known if name in targets), None)
    if forecast is not None:
        raise InputError(
            f"known names the target {forecast!r}, which the model forecasts",
            where="rollout.toml windows.known",
            todo="Leave it out",
        )


def _features(table: DataTable, names: Sequence[str], known: Sequence[str], path: Path) -> Features:
    columns: list[NDArray[np.float64]] = []
    reach: list[int | None] = []
    most = 0
    for name in names:
        lag, calendar = _LAG.fullmatch(name), _CALENDAR.fullmatch(name)
        if lag is not None:
            rows = int(lag[2])
            columns.append(_lagged(_column(table, lag[1], path), rows))
            reach.append(None if lag[1] in known else rows)
            most = max(most, rows)
        elif calendar is not None:
            columns.append(_calendar(table, calendar, path))
            reach.append(None)
        else:
            columns.append(_column(table, name, path))
            reach.append(None if name in known else 0)
    values = np.stack(columns, axis=1) if columns else np.empty((len(table.values), 0))
    return Features(tuple(names), values, tuple(reach), most)


def _column(table: DataTable, name: str, path: Path) -> NDArray[np.float64]:
    if name not in table.columns:
        raise InputError(
            f"has no series {name!r}", where=str(path), todo=f"Its series are: {', '.join(table.columns)}"
        )
    column: NDArray[np.float64] = table.values[:, table.columns.index(name)]
    return column


def _lagged(column: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    result = np.full_like(column, np.nan)
    result[rows:] = column[: len(column) - rows]
    return result


def _calendar(table: DataTable, found: re.Match[str], path: Path) -> NDArray[np.float64]:
    part = found[1] or found[3]
    if part not in _PERIODS:
        raise InputError(
            f"{found[0]!r} is no calendar feature",
            where="rollout.toml windows.columns",
            todo=f"Use one of: {', '.join('time.' + p for p in _PERIODS)}",
        )
    if table.seconds is None:
        raise InputError(
            f"{found[0]!r} needs the time of every row, but no column holds dates that can be read",
            where=str(path),
            todo="Write dates as 2020-01-31 06:00, or leave the feature out",
        )
    values = _part(table.seconds, part)
    if found[2] is None:
        return values
    angle = 2 * np.pi * values / _PERIODS[part]
    return np.sin(angle) if found[2] == "sin" else np.cos(angle)


def _part(seconds: NDArray[np.float64], part: str) -> NDArray[np.float64]:
    whole = seconds.astype(np.int64)
    days = whole // _DAY
    if part == "minute":
        return (whole // 60 % 60).astype(np.float64)
    if part == "hour":
        return (whole // 3600 % 24).astype(np.float64)
    if part == "weekday":  # 1970 began on a Thursday
        return ((days + 3) % 7).astype(np.float64)
    dates = days.astype("datetime64[D]")
    if part == "month":
        return (dates.astype("datetime64[M]").astype(np.int64) % 12 + 1).astype(np.float64)
    start = "datetime64[M]" if part == "day" else "datetime64[Y]"
    return (days - dates.astype(start).astype("datetime64[D]").astype(np.int64) + 1).astype(np.float64)
