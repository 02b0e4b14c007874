"""Markdown tables of cells that are text already, and of the tables of `tqs analyse`."""

from __future__ import annotations

import tqs_onnx.analysis.table as analysis

Table = list[list[str]]


def markdown(head: list[str], rows: Table) -> str:
    """Return a table; columns of numbers are right-aligned."""
    marks = ["---:" if row_is_number(rows, i) else "---" for i in range(len(head))]
    lines = [head, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def row_is_number(rows: Table, column: int) -> bool:
    """Return whether a column holds numbers."""
    return all(row[column][:1].isdigit() or row[column][:1] in "–-−+" for row in rows)


def verdict(holds: bool) -> str:
    """Return the verdict on a claim."""
    return "**true**" if holds else "**false**"


def shown(table: analysis.Table, columns: tuple[str, ...] = ()) -> str:
    """Return a table of `tqs analyse` in Markdown: these columns of it, or all."""
    kept = [table.columns.index(name) for name in columns] or list(range(len(table.columns)))
    rows = [[cell_text(row[i]) for i in kept] for row in table.rows]
    return markdown([table.columns[i] for i in kept], rows)


def cell_text(value: object) -> str:
    """Return a cell: numbers with three digits, a dash for None."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")
