"""`tqs analyse`: the tables of the paper, from the files of any run."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from tqs_onnx.cli.options import FILE, force_option, json_option
from tqs_onnx.cli.show import print_json, print_table, say
from tqs_onnx.report.run import read_runs, tables_of
from tqs_onnx.report.write import write_report
from tqs_passes.errors import InputError


@cloup.command("analyse")
@cloup.argument("runs", type=FILE, nargs=-1, required=True)
@cloup.option("--table", "wanted", multiple=True, help="Only this table, by name, e.g. growth. Repeatable.")
@cloup.option("--out", type=FILE, help="Write the tables as CSV into this folder instead.")
@force_option
@json_option
def command(
    runs: tuple[Path, ...], wanted: tuple[str, ...], out: Path | None, force: bool, as_json: bool
) -> None:
    r"""Print the tables of the paper for RUN, a folder that quantize, build, baseline, score or sweep wrote.

    Several runs stand in one table: probes or contexts are compared if the runs scored the same model, errors and wins
    if they were verified. docs/paper.md says which run each table of the paper needs.

    \b
    Example:
      tqs analyse run --table growth --table concentration
    """
    tables = tables_of(read_runs(runs))
    known = [table.key for table in tables]
    for name in wanted:
        if name not in known:
            raise InputError(
                f"there is no table {name!r} for these runs", todo=f"Choose from {', '.join(known)}"
            )
    if out is not None:
        for path in write_report(runs, out, as_csv=True, force=force):
            click.echo(str(path))
        return
    chosen = [table for table in tables if not wanted or table.key in wanted]
    if as_json:
        print_json({table.key: table.to_dict() for table in chosen})
        return
    for table in chosen:
        paper = f" ({table.paper})" if table.paper else ""
        title = f"\n{table.key}: {table.title}{paper}"
        print_table(table.columns, table.rows, left=_leading_text(table.rows), title=title)
    if not chosen:
        say("these runs hold nothing to tabulate")


def _leading_text(rows: tuple[tuple[object, ...], ...]) -> int:
    """Return the number of leading columns that hold text."""
    width = len(rows[0]) if rows else 1
    return next((i for i in range(width) if not any(isinstance(row[i], str) for row in rows)), width)
