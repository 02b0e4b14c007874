"""`tqs report`: one page that shows runs, and a model card."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from tqs_onnx.cli.again import command_line
from tqs_onnx.cli.options import FILE, force_option, json_option
from tqs_onnx.cli.show import print_json
from tqs_onnx.report.mlflow_run import log_to_mlflow
from tqs_onnx.report.run import read_run
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
@cloup.option(
    "--mlflow",
    "to_mlflow",
    is_flag=True,
    help="Also log the first RUN, with the page and the card, through MLflow's client, which must be installed.",
)
@force_option
@json_option
def command(
    runs: tuple[Path, ...], out: Path | None, kind: str, to_mlflow: bool, force: bool, as_json: bool
) -> None:
    r"""Show RUN (a folder that quantize, build, baseline or sweep wrote), or several side by side, as one HTML page.

    The page needs no network: charts, tables to search, sort and download, and the command that makes the run again.
    A model card, card.md, is written beside the page if the first run was verified.

    \b
    Example:
      tqs report run
    """
    written = write_report(runs, out, as_csv=kind == "csv", again=command_line, force=force)
    logged = log_to_mlflow(read_run(runs[0]), written) if to_mlflow else None
    if as_json:
        print_json({"files": [str(path) for path in written], "mlflow_run": logged})
        return
    for path in written:
        click.echo(str(path))
    if logged is not None:
        click.echo(f"MLflow run {logged}")
