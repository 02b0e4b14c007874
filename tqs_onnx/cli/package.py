"""`tqs package`: wrap an emitted file for those who serve it."""

from __future__ import annotations

from pathlib import Path

import click

from tqs_onnx.cli.options import FILE, force_option, json_option
from tqs_onnx.cli.show import print_json
from tqs_onnx.packaging.olive import write_olive
from tqs_onnx.packaging.tensorrt import write_engine_build
from tqs_onnx.packaging.triton import write_repository
from tqs_passes.errors import InputError


@click.command("package")
@click.argument("emitted", type=FILE)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["triton", "tensorrt", "olive"]),
    required=True,
    help="A Triton model repository, a folder with a trtexec script, or the files an Olive run needs.",
)
@click.option("--name", help="Triton: name of the model [default: the file's, without .onnx].")
@click.option(
    "--max-batch",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Triton: largest batch it may form; 0: none.",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    help="TensorRT: least, usual and largest size of a free dimension, e.g. batch=1:8:32. Repeatable.",
)
@click.option("--out", type=FILE, required=True, help="Folder to write into.")
@force_option
@json_option
def command(
    emitted: Path,
    kind: str,
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
    title = name or emitted.name.removesuffix(".onnx").removesuffix(".tqs")
    taken = out / title if kind == "triton" else out
    if taken.is_file() or (taken.is_dir() and any(taken.iterdir()) and not force):
        raise InputError("exists", where=str(taken), todo="Choose another --out, or give --force")
    if kind == "triton":
        written = write_repository(emitted, out, title, max_batch)
    elif kind == "tensorrt":
        written = write_engine_build(emitted, out, parse_limits(limits))
    else:
        written = write_olive(emitted, out)
    if as_json:
        print_json({"format": kind, "files": [str(path) for path in written]})
        return
    for path in written:
        click.echo(str(path))


def parse_limits(texts: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """Return sizes by dimension.

    Raises
    ------
    InputError
        A text is not NAME=LEAST:USUAL:LARGEST with rising sizes.
    """
    found: dict[str, tuple[int, int, int]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.split(":")
        if not name or len(parts) != 3 or not all(p.isdecimal() for p in parts):
            raise InputError(f"--limit {text!r} is not NAME=LEAST:USUAL:LARGEST", todo="Write batch=1:8:32")
        least, usual, largest = (int(p) for p in parts)
        if not 1 <= least <= usual <= largest:
            raise InputError(
                f"--limit {text!r}: the sizes must rise from 1 or more", todo="Write batch=1:8:32"
            )
        found[name] = (least, usual, largest)
    return found
