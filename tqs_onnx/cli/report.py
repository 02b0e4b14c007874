"""`tqs report`: one page that shows runs, and a model card."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from tqs_onnx.cli.again import command_line
from tqs_onnx.cli.options import FILE, force_option, json_option
from tqs_onnx.cli.show import print_json
from tqs_onnx.report.write import REPORT_NAME, write_report


@cloup.command("report")
@cloup.argument("runs", type=FILE, nargs=-1, required=True)
@cloup.option("--out", type=FILE, help=f"The page to write [default: {REPORT_NAME} in the first RUN].")
@cloup.option(
    "--format",
    "kind",
    type=click.Choice(["html", "csv"]),
    default="html",
    show_default=True,
    help="html: one page, whose charts save themselves as SVG; csv: its tables, one file each, in the folder --out.",
)
@force_option
@json_option
def command(runs: tuple[Path, ...], out: Path | None, kind: str, force: bool, as_json: bool) -> None:
    r"""Show RUN (a folder that quantize, build, baseline or sweep wrote), or several side by side, as one HTML page.

    The page needs no network: charts, tables to search, sort and download, and the command that makes the run again.
    A model card, card.md, is written beside the page if the first run was verified.

    \b
    Example:
      tqs report run
    """
    written = write_report(runs, out, as_csv=kind == "csv", again=command_line, force=force)
    if as_json:
        print_json({"files": [str(path) for path in written]})
        return
    for path in written:
        click.echo(str(path))
