"""`tqs package`: wrap an emitted file for a server."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from tqs_onnx.cli.options import FILE, force_option, json_option, out_option
from tqs_onnx.cli.show import print_json
from tqs_onnx.packaging.package import FORMATS, Format, PackageOptions, package


@cloup.command("package")
@cloup.argument("emitted", type=FILE)
@cloup.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    required=True,
    help="A Triton model repository, a folder with a trtexec script, or the files an Olive run needs.",
)
@out_option("Folder to write into.")
@cloup.option("--name", help="Triton: name of the model [default: the file's, without .onnx].")
@cloup.option(
    "--max-batch",
    type=click.IntRange(min=0),
    default=PackageOptions("triton").max_batch,
    show_default=True,
    help="Triton: maximum batch size it may form; 0: no batching.",
)
@cloup.option(
    "--limit",
    "limits",
    multiple=True,
    help="TensorRT: minimum, typical and maximum size of a free dimension, e.g. batch=1:8:32. Repeatable.",
)
@force_option
@json_option
def command(
    emitted: Path,
    kind: Format,
    name: str | None,
    max_batch: int,
    limits: tuple[str, ...],
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    r"""Wrap EMITTED for a server.

    \b
    Example:
      tqs package run/model.tqs.onnx --format triton --out models --name surrogate
    """
    written = package(emitted, out, PackageOptions(kind, name, max_batch, limits), force=force)
    if as_json:
        print_json({"format": kind, "files": [str(path) for path in written]})
        return
    for path in written:
        click.echo(str(path))
