"""A table as data: it is printed, written as CSV or JSON, and shown in the report."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells.

    Parameters
    ----------
    key : str
        Short name, a file name.
    title : str
        What it shows, in one line.
    columns : tuple of str
    rows : tuple of tuple
    paper : str
        The table or figure of the paper that it answers to; empty if none.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    paper: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON-ready values: one object per row."""
        return {
            "title": self.title,
            "paper": self.paper,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
        }

    def to_csv(self) -> str:
        """Return the table as CSV with a header."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return stream.getvalue()
