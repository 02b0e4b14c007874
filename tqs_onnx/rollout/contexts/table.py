"""Read a table of time series from text: CSV or whitespace, plain or gzipped, with or without a header.

Every column gets a role, and the table says which are series, which are not, and why (`DataTable.note`):

    numbers                            a series; missing cells take the value before them, those at the start the first
    dates, or times as numbers         the time axis: never a series unless named
    an unnamed first column that counts rows   the index that pandas writes: never a series unless named
    text only, or nothing at all       left out
    numbers and other text             refused: a mark of missing values that is not known would be dropped in silence

Uses the standard library and NumPy only.
"""

from __future__ import annotations

import csv
import hashlib
import math
from array import array
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.cells import (
    date_seconds,
    digits_seconds,
    has_decimal_comma,
    is_missing,
    may_group_thousands,
    number,
)
from tqs_onnx.rollout.contexts.table_text import TableText, head_lines
from tqs_onnx.rollout.spec.signature import close_match
from tqs_passes.errors import InputError, one_line

#: Cells that a table may have: 2 GiB as float64.
MOST_CELLS = 1 << 28
#: Tables of up to so many cells are kept as they were parsed, the last one at a time: 64 MiB as float64.
_MOST_KEPT_CELLS = 8 << 20
#: The last table that was kept, by its path and the digest of its file.
_kept: dict[tuple[Path, str], tuple[list[_Column], array[int], str]] = {}
_TIME_NAMES = frozenset(
    {"date", "time", "datetime", "timestamp", "valid_time", "epoch", "unix", "unixtime", "ds", "utc"}
)
_INDEX_NAMES = frozenset({"", "index", "unnamed: 0"})
#: Numbers of these sizes are seconds, milliseconds, microseconds or nanoseconds since 1970, from 1980 to 2100.
_EPOCHS = tuple((3.15e8 * unit, 4.1e9 * unit, unit) for unit in (1.0, 1e3, 1e6, 1e9))
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class DataTable:
    """Columns of numbers over time.

    Parameters
    ----------
    columns : tuple of str
    values : NDArray[np.float64]
        [row, column], finite.
    digest : str
        SHA-256 of the uncompressed text: it identifies the table whatever its file name.
    seconds : NDArray[np.float64] or None
        Time of every row in seconds since 1970, as written; None when no column of dates was found.
    note : str
        Says which columns are used, which are not and why, and how many cells were missing.
    """

    columns: tuple[str, ...]
    values: NDArray[np.float64]
    digest: str
    seconds: NDArray[np.float64] | None = None
    note: str = ""


@dataclass(slots=True)
class _Column:
    """What the cells of one column were; `numbers` has NaN where a cell was no number.

    `has_quoted_commas`: commas separate the cells, so that one within a cell is quoted.
    """

    name: str
    has_quoted_commas: bool = False
    numbers: array[float] = field(default_factory=lambda: array("d"))
    days: array[float] = field(default_factory=lambda: array("d"))
    months: array[float] = field(default_factory=lambda: array("d"))
    n_missing: int = 0
    n_broken_by_comma: int = 0
    n_commas: int = 0
    n_sure_commas: int = 0
    n_millions: int = 0
    grouped: tuple[str, int] = ("", 0)
    n_dates: int = 0
    n_other: int = 0
    other: tuple[str, int] = ("", 0)

    def add(self, cell: str, line: int) -> None:
        """Take the next cell, which `float` does not read."""
        self.numbers.append(math.nan)
        if is_grouped := may_group_thousands(cell):
            self.grouped = self.grouped if self.grouped[0] else (cell, line)
        if is_missing(cell):
            self.n_missing += 1
        elif not math.isnan(value := number(cell)):
            self.numbers[-1] = value
            has_comma = has_decimal_comma(cell)
            self.n_commas += has_comma
            self.n_sure_commas += has_comma and not is_grouped
            self.n_broken_by_comma += value != math.floor(value)
        elif (read := date_seconds(cell)) is not None:
            pad = len(self.numbers) - 1 - len(self.days)
            self.days.extend([math.nan] * pad + [read[0]])
            self.months.extend([math.nan] * pad + [read[1]])
            self.n_dates += 1
        else:
            if not self.n_other:
                self.other = (cell, line)
            self.n_other += 1
            self.n_millions += is_grouped

    @property
    def n_numbers(self) -> int:
        """Number of cells that are numbers."""
        return len(self.numbers) - self.n_missing - self.n_dates - self.n_other

    @property
    def is_series(self) -> bool:
        """Whether every cell is a number or missing."""
        return self.n_numbers > 0 and not (self.n_dates or self.n_other)

    @property
    def may_group_thousands(self) -> bool:
        """Whether all commas may stand between thousands: as they are written, and as the other numbers are."""
        if not self.grouped[0] or self.n_sure_commas:
            return False
        if self.has_quoted_commas:  # a table that uses commas like this seldom has decimal ones
            return True
        return self.n_numbers > self.n_commas and float(np.nanmax(np.abs(self.numbers))) < 1000


def read_table(path: Path, columns: Sequence[str] | None = None, missing: Sequence[float] = ()) -> DataTable:
    """Read a table and fill its missing cells.

    Parameters
    ----------
    path : Path
        UTF-8 (undecodable bytes are replaced); tab, semicolon, comma or blanks between cells, quoted or not; decimal
        points or commas. A first row with a cell that is neither number nor date nor missing is a header; without a
        header the columns are named 0, 1, …
    columns : sequence of str, optional
        The columns to read, in this order. Default: all series (see module docstring).
    missing : sequence of float
        Values that mark a missing cell, besides `cells.MISSING`.

    Raises
    ------
    InputError
        The file cannot be read, a row has a different number of cells, a column is unknown, contains a cell that is
        not a number or is infinite, or has no value at all, or no column is a series.
    """
    found, lines, digest = _parsed_once(path)
    seconds, left_out = _not_series(found)
    names = [c.name for c in found]
    wanted = _wanted(found, set(left_out), columns, path)
    values = np.empty((len(lines), len(wanted)))
    n_filled = 0
    for place, index in enumerate(wanted):
        values[:, place], n = _filled(_numbers(found[index], lines, path), missing)
        n_filled += n
        if np.isnan(values[:, place]).any():
            raise InputError(
                f"column {names[index]!r} has no values",
                where=str(path),
                todo="Leave it out of windows.columns",
            )
    reasons = {i: left_out.get(i, "not named in [windows]") for i in range(len(found)) if i not in wanted}
    commas = any(found[i].n_commas for i in wanted)
    note = _note(path, [names[i] for i in wanted], [(names[i], r) for i, r in reasons.items()])
    note += "; decimal commas" if commas else ""
    note += f"; {n_filled} missing cells take the value before them" if n_filled else ""
    return DataTable(tuple(names[i] for i in wanted), values, digest, seconds, note)


def _note(path: Path, used: list[str], unused: list[tuple[str, str]]) -> str:
    text = f"{path.name}: columns {_listed([repr(n) for n in used])}"
    by_reason: dict[str, list[str]] = {}
    for name, reason in unused:
        by_reason.setdefault(reason, []).append(repr(name))
    parts = [f"{_listed(names)} ({reason})" for reason, names in by_reason.items()]
    return one_line(text + (f"; not used: {', '.join(parts)}" if parts else ""), 600)


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _parsed_once(path: Path) -> tuple[list[_Column], array[int], str]:
    """Return what `_parsed` does, and keep it: scoring and evaluation contexts are cut from one table."""
    key = _identity(path)
    if key is not None and key in _kept:
        return _kept[key]
    _kept.clear()
    found = _parsed(path)
    if key is not None and len(found[0]) * len(found[1]) <= _MOST_KEPT_CELLS:
        _kept[key] = found
    return found


def _identity(path: Path) -> tuple[Path, str] | None:
    """Return the path and the digest of a file; None if it cannot be read, which parsing then reports."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return path, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _parsed(path: Path) -> tuple[list[_Column], array[int], str]:
    """Return the columns, the line number of every row, and the digest."""
    head = head_lines(path)
    if not head:
        raise InputError("is empty", where=str(path), todo="Give a table with rows of numbers")
    text = TableText(path)
    separator = _separator(head)
    rows = _rows(text.lines(), separator, path)
    line, first = next(rows)
    has_header = any(not _is_value(cell) for cell in first)
    columns = [_Column(name if has_header else str(i), separator == ",") for i, name in enumerate(first)]
    lines: array[int] = array("q")
    if not has_header:
        _add_row(columns, first, line, lines)
    for line, row in rows:
        if len(row) != len(columns):
            raise InputError(
                f"line {line} has {len(row)} cells instead of {len(columns)}",
                where=str(path),
                todo="Correct this line",
            )
        _add_row(columns, row, line, lines)
        if len(lines) * len(columns) > MOST_CELLS:
            raise InputError(
                f"has more than {MOST_CELLS} cells", where=str(path), todo="Cut it into smaller tables"
            )
    if not lines:
        raise InputError("contains no rows", where=str(path), todo="Give a table with rows of numbers")
    return columns, lines, text.digest


def _add_row(columns: list[_Column], row: list[str], line: int, lines: array[int]) -> None:
    lines.append(line)
    for column, cell in zip(columns, row, strict=True):
        try:
            value = float(cell)
        except ValueError:
            column.add(cell, line)
            continue
        if value != value or len(cell) > 64 or "_" in cell:
            column.add(cell, line)
        else:
            column.numbers.append(value)


def _is_value(cell: str) -> bool:
    """Return whether a cell may stand in a row of data."""
    return is_missing(cell) or not math.isnan(number(cell)) or date_seconds(cell) is not None


def _separator(head: list[str]) -> str | None:
    """Return the separator: the first of tab, semicolon and comma that splits every line alike; None: blanks."""
    for separator in "\t;,":
        if separator in head[0]:
            try:
                widths = {len(row) for row in csv.reader(head, delimiter=separator) if row}
            except csv.Error:
                continue
            if len(widths) == 1:
                return separator
    return max("\t;,", key=head[0].count) if any(s in head[0] for s in "\t;,") else None


def _rows(lines: Generator[str], separator: str | None, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every row that is not blank."""
    if separator is None:
        for n, line in enumerate(lines, 1):
            if line.strip():
                yield n, [cell.strip('"') for cell in line.split()]
        return
    reader = csv.reader(lines, delimiter=separator)
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise InputError(f"is not a table: {error}", where=str(path), todo="Write it as CSV") from error


def _not_series(found: list[_Column]) -> tuple[NDArray[np.float64] | None, dict[int, str]]:
    """Return the time of every row, and the columns that are no series by default, each with the reason."""
    seconds: NDArray[np.float64] | None = None
    left_out: dict[int, str] = {}
    for index, column in enumerate(found):
        times = None
        if column.n_dates and not column.n_other and not column.n_numbers:
            times, reason = _dates(column), "dates"
        elif column.is_series and not column.n_missing:
            times, reason = _numbered_times(column, index)
        else:
            reason = ""
        if reason:
            left_out[index] = reason
            if seconds is None and times is not None and not np.isnan(times).any():
                seconds = times
        elif not column.n_numbers and not column.n_other == column.n_millions > 0:
            left_out[index] = "text" if column.n_other else "no values"
    return seconds, left_out


def _dates(column: _Column) -> NDArray[np.float64] | None:
    """Return the times of a column of dates; None where neither reading of day and month is sure."""
    pad = len(column.numbers) - len(column.days)
    read = [np.array(list(a) + [math.nan] * pad) for a in (column.days, column.months)]
    if np.array_equal(read[0], read[1], equal_nan=True):
        return read[0]
    rising = [r for r in read if not np.isnan(r).any() and (np.diff(r) >= 0).all()]
    return rising[0] if len(rising) == 1 else None


def _numbered_times(column: _Column, index: int) -> tuple[NDArray[np.float64] | None, str]:
    """Return the times and the reason of a column of numbers that is a time or an index; the reason is '' if not."""
    values = np.array(column.numbers)
    gaps = np.diff(values)
    named = column.name.lower() in _TIME_NAMES
    if len(values) < 2 or (gaps <= 0).any() or not (named or index == 0):
        return None, ""
    if (values != np.floor(values)).any():
        return None, "times" if named else ""
    if column.name.lower() in _INDEX_NAMES or (
        column.name == "0" and set(gaps) == {1.0} and values[0] in (0, 1)
    ):
        return None, "an index of rows"
    digits = np.array([digits_seconds(v) for v in values])
    if not np.isnan(digits).any():
        return digits, "dates written as numbers"
    for least, most, unit in _EPOCHS:
        regular = named or np.mean(gaps == np.median(gaps)) >= 0.5
        if least <= values[0] and values[-1] <= most and regular:
            return values / unit, "time since 1970 as a number"
    return None, "times" if named else ""


def _wanted(found: list[_Column], left_out: set[int], columns: Sequence[str] | None, path: Path) -> list[int]:
    header = [c.name for c in found]
    if columns is None:
        chosen = [i for i in range(len(header)) if i not in left_out]
        if not chosen:
            raise InputError(
                "no column holds a series of numbers",
                where=str(path),
                todo="Name the columns in windows.columns",
            )
        return chosen
    for name in columns:
        if header.count(name) != 1:
            what = f"has no column {name!r}" if name not in header else f"has several columns {name!r}"
            raise InputError(
                what,
                where=str(path),
                todo=close_match(name, header) or f"Its columns are: {', '.join(header)}",
            )
    return [header.index(name) for name in columns]


def _numbers(column: _Column, lines: array[int], path: Path) -> NDArray[np.float64]:
    """Return the numbers of a column, NaN where missing; refuse any other cell."""
    values = np.array(column.numbers)
    broken = int(np.count_nonzero(np.isfinite(values) & (values != np.floor(values))))
    if column.n_commas and broken > column.n_broken_by_comma:
        raise InputError(
            f"column {column.name!r} mixes decimal points and commas",
            where=str(path),
            todo="Write one of them: a comma between thousands is not read",
        )
    if column.may_group_thousands:
        cell, line = column.grouped
        raise InputError(
            f"column {column.name!r} contains {cell!r} in line {line}, whose comma may be decimal or between thousands",
            where=str(path),
            todo="Write decimal points, and nothing between thousands",
        )
    infinite = np.flatnonzero(np.isinf(values))
    if column.n_other or column.n_dates or len(infinite):
        cell, line = column.other
        if not column.n_other:
            row = int(infinite[0]) if len(infinite) else int(np.flatnonzero(~np.isnan(column.days))[0])
            cell, line = ("inf" if len(infinite) else "a date"), lines[row]
        raise InputError(
            f"column {column.name!r} contains {one_line(repr(cell), 60)} in line {line}",
            where=str(path),
            todo="Use finite numbers or empty cells only, or name the numeric columns in windows.columns",
        )
    return values


def _filled(values: NDArray[np.float64], missing: Sequence[float]) -> tuple[NDArray[np.float64], int]:
    """Return the values with gaps filled, and how many there were."""
    gaps = np.isnan(values) | np.isin(values, missing)
    if not gaps.any():
        return values, 0
    if gaps.all():
        return np.full_like(values, np.nan), len(values)
    last = np.maximum.accumulate(np.where(gaps, -1, np.arange(len(values))))
    first = int(np.flatnonzero(~gaps)[0])
    filled: NDArray[np.float64] = values[np.where(last < 0, first, last)]
    return filled, int(gaps.sum())
