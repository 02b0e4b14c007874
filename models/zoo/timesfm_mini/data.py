"""The six public tables timesfm_mini is trained and judged on: read from disk, never stored here.

    table                                rows      columns  training rows
    ETT-small/ETTh1.csv.gz, ETTh2        17,420    7        0 .. 8,640
    ETT-small/ETTm1.csv.gz, ETTm2        69,680    7        0 .. 34,560
    exchange_rate/exchange_rate.csv.gz   7,588     8        the first 70 %
    weather/weather.csv.gz               52,696    21       the first 70 %

The folder is ``$TQS_DATA``, or ``../shared/data`` beside the repository. This module must never import torch
or onnxruntime.
"""

from __future__ import annotations

import csv
import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MISSING = -9999.0
"""The cell value that `weather` uses for "not measured"."""


@dataclass(frozen=True, slots=True)
class Split:
    """Row ranges of one table, each ``(first, one past the last)``."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Table:
    """One table: `values` is float64 [rows, columns] in the table's own units, without missing cells."""

    name: str
    values: np.ndarray
    split: Split
    season: int
    """Rows in one day; 1 where the rows are days."""
    stride: int
    """Rows between two evaluation windows."""


def data_root() -> Path:
    """Return the folder that holds the tables: ``$TQS_DATA`` or ``../shared/data`` beside the repository."""
    named = os.environ.get("TQS_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[3].parent / "shared" / "data"


def forward_filled(values: np.ndarray, missing: float = MISSING) -> np.ndarray:
    """Return float64 [rows, columns] in which each `missing` cell repeats the last measured one above it.

    Cells before the first measured one take that one's value.
    """
    rows = np.arange(len(values))[:, None]
    good = values != missing
    first = np.argmax(good, axis=0)[None, :]
    last_good = np.maximum.accumulate(np.where(good, rows, first), axis=0)
    return np.take_along_axis(values, last_good, axis=0)


def read_table(path: Path) -> np.ndarray:
    """Return float64 [rows, columns] of a gzipped CSV file with a header, without its first (date) column."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
        lines = csv.reader(stream)
        next(lines)
        return np.array([line[1:] for line in lines], dtype=np.float64)


def _fractions(rows: int) -> Split:
    a, b = int(0.7 * rows), int(0.8 * rows)
    return Split((0, a), (a, b), (b, rows))


def load_tables(root: Path | None = None) -> list[Table]:
    """Return the six tables, in a fixed order.

    Raises
    ------
    FileNotFoundError
        A table is not under `root` (default: :func:`data_root`).
    """
    root = data_root() if root is None else root
    hours = Split((0, 8640), (8640, 11520), (11520, 14400))
    quarters = Split((0, 34560), (34560, 46080), (46080, 57600))
    ett = root / "ETT-small"
    tables = [Table(f"ETTh{i}", read_table(ett / f"ETTh{i}.csv.gz"), hours, 24, 192) for i in (1, 2)]
    tables += [Table(f"ETTm{i}", read_table(ett / f"ETTm{i}.csv.gz"), quarters, 96, 960) for i in (1, 2)]
    exchange = read_table(root / "exchange_rate" / "exchange_rate.csv.gz")
    tables.append(Table("exchange_rate", exchange, _fractions(len(exchange)), 1, 48))
    weather = forward_filled(read_table(root / "weather" / "weather.csv.gz"))
    tables.append(Table("weather", weather, _fractions(len(weather)), 144, 864))
    return tables


def windows(table: Table, rows: tuple[int, int], context: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut evaluation windows that lie wholly inside `rows`.

    Returns
    -------
    tuple of numpy.ndarray
        float32 contexts [windows, columns, context] and truths [windows, columns, horizon].
    """
    starts = range(rows[0], rows[1] - context - horizon + 1, table.stride)
    cut = np.stack([table.values[s : s + context + horizon].T for s in starts]).astype(np.float32)
    return cut[:, :, :context], cut[:, :, context:]
