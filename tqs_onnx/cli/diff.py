"""`tqs diff`: what changed between a model and a file made from it."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from tqs_onnx.analysis.changes import changes_of
from tqs_onnx.cli.options import FILE, json_option
from tqs_onnx.cli.show import print_json, print_table


@cloup.command("diff")
@cloup.argument("source", type=FILE)
@cloup.argument("file", type=FILE)
@json_option
def command(source: Path, file: Path, as_json: bool) -> None:
    r"""Say what changed from SOURCE to FILE: by weight, by node, and as a whole. Nothing is run.

    \b
    Example:
      tqs diff model.onnx run/model.tqs.onnx
    """
    found = changes_of(source, file)
    if as_json:
        tables = {"weights": found.weights.to_dict(), "nodes": found.nodes.to_dict()}
        print_json({"changes": list(found.lines), **tables})
        return
    for line in found.lines:
        click.echo(line)
    print_table(found.weights.columns, found.weights.rows, left=3, title=f"\n{found.weights.title}")
    print_table(found.nodes.columns, found.nodes.rows, title=f"\n{found.nodes.title}")
