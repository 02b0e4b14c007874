"""Read a table of time series from text: CSV or whitespace, plain or gzipped, with or without a header.

Uses the standard library and NumPy only. Missing cells are filled forward from the past; those before the first value
of a column take that value.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.spec.signature import close_match
from tqs_passes.errors import InputError

_GZIP_MAGIC = b"\x1f\x8b"
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})


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
    """

    columns: tuple[str, ...]
    values: NDArray[np.float64]
    digest: str


def read_table(path: Path, columns: Sequence[str] | None = None, missing: Sequence[float] = ()) -> DataTable:
    """Read a table and fill its missing cells.

    Parameters
    ----------
    path : Path
        UTF-8 (undecodable bytes are replaced); comma, semicolon, tab or blanks between cells. A first row
        with a cell that is not a number is a header; without a header the columns are named 0, 1, …
    columns : sequence of str, optional
        The columns to read, in this order. Default: all, except the first when it is not numeric (the date).
    missing : sequence of float
        Values that mark a missing cell, besides empty cells and NaN.

    Raises
    ------
    InputError
        The file cannot be read, a row has a different number of cells, a column is unknown, contains a cell that is
        not a number or is infinite, or has no value at all.
    """
    text, digest = _text(path)
    rows, line_numbers = _rows(text, path)
    header, first = _header(rows[0])
    body = rows[first:]
    if not body:
        raise InputError("contains no rows", where=str(path), todo="Give a table with rows of numbers")
    for row, number in zip(body, line_numbers[first:], strict=True):
        if len(row) != len(header):
            raise InputError(
                f"line {number} has {len(row)} cells instead of {len(header)}",
                where=str(path),
                todo="Correct this line",
            )
    wanted = _wanted(header, body, columns, path)
    values = np.empty((len(body), len(wanted)))
    for place, index in enumerate(wanted):
        values[:, place] = _filled(
            _numbers([r[index] for r in body], header[index], line_numbers[first:], path), missing
        )
        if np.isnan(values[:, place]).any():
            raise InputError(
                f"column {header[index]!r} has no values",
                where=str(path),
                todo="Leave it out of windows.columns",
            )
    return DataTable(tuple(header[i] for i in wanted), values, digest)


def _text(path: Path) -> tuple[str, str]:
    try:
        raw = path.read_bytes()
        if raw.startswith(_GZIP_MAGIC):
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot be read ({reason})", where=str(path), todo="Check the path and the file"
        ) from error
    return raw.decode("utf-8-sig", errors="replace"), hashlib.sha256(raw).hexdigest()


def _rows(text: str, path: Path) -> tuple[list[list[str]], list[int]]:
    lines = text.splitlines()
    numbers = [n for n, line in enumerate(lines, 1) if line.strip()]
    kept = [lines[n - 1] for n in numbers]
    if not kept:
        raise InputError("is empty", where=str(path), todo="Give a table with rows of numbers")
    counts = {separator: kept[0].count(separator) for separator in ",;\t"}
    separator = max(counts, key=lambda s: counts[s])
    if counts[separator] == 0:
        return [line.split() for line in kept], numbers
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(kept, delimiter=separator)], numbers
    except csv.Error as error:
        raise InputError(f"is not a table: {error}", where=str(path), todo="Write it as CSV") from error


def _header(row: list[str]) -> tuple[list[str], int]:
    """Return the column names, and the index of the first row of data."""
    if any(math.isnan(_number(cell)) and cell.lower() not in _MISSING for cell in row):
        return row, 1
    return [str(i) for i in range(len(row))], 0


def _wanted(header: list[str], body: list[list[str]], columns: Sequence[str] | None, path: Path) -> list[int]:
    if columns is None:
        dated = any(math.isnan(_number(r[0])) and r[0].lower() not in _MISSING for r in body)
        return list(range(1 if dated else 0, len(header)))
    for name in columns:
        if header.count(name) != 1:
            what = f"has no column {name!r}" if name not in header else f"has several columns {name!r}"
            raise InputError(
                what,
                where=str(path),
                todo=close_match(name, header) or f"Its columns are: {', '.join(header)}",
            )
    return [header.index(name) for name in columns]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _numbers(cells: list[str], name: str, line_numbers: list[int], path: Path) -> NDArray[np.float64]:
    try:
        values = np.array(cells).astype(np.float64)  # fast: most columns have a number in every cell
    except ValueError:
        values = np.array([_number(c) for c in cells])
    bad = [i for i in np.flatnonzero(~np.isfinite(values)) if cells[i].lower() not in _MISSING]
    if bad:
        raise InputError(
            f"column {name!r} contains {cells[bad[0]]!r} in line {line_numbers[bad[0]]}",
            where=str(path),
            todo="Use finite numbers or empty cells only, or name the numeric columns in windows.columns",
        )
    return values


def _filled(values: NDArray[np.float64], missing: Sequence[float]) -> NDArray[np.float64]:
    gaps = np.isnan(values) | np.isin(values, missing)
    if not gaps.any():
        return values
    if gaps.all():
        return np.full_like(values, np.nan)
    last = np.maximum.accumulate(np.where(gaps, -1, np.arange(len(values))))
    first = int(np.flatnonzero(~gaps)[0])
    filled: NDArray[np.float64] = values[np.where(last < 0, first, last)]
    return filled
