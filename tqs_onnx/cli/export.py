"""`tqs export`: write the ONNX file of a known architecture, with its rollout spec.

Exporters are found through the entry-point group `tqs.models`: every module there that has a function `export`.
This package never imports them directly.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import click

from tqs_onnx.cli.options import FILE, force_option, json_option
from tqs_onnx.cli.show import print_json
from tqs_onnx.inputs.bundled import GROUP
from tqs_onnx.jobs.run_directory import created, resolved
from tqs_passes.errors import InputError
from tqs_passes.files.model import file_facts
from tqs_passes.files.temporary import claimed


class Exporter(Protocol):
    """The function `export` of a module in the entry-point group."""

    def __call__(
        self,
        folder: Path,
        *,
        checkpoint: Path | None,
        grid: tuple[int, int] | None,
        levels: tuple[int, ...] | None,
        seed: int,
        contexts: int,
        settings: Mapping[str, str],
    ) -> tuple[Path, ...]:
        """Write the files into `folder` and return their paths, the model first."""
        ...


@click.command("export")
@click.argument("name")
@click.option("--out", type=FILE, required=True, help="Folder to write to; created if missing.")
@click.option("--checkpoint", type=FILE, help="Trained weights [default: random weights].")
@click.option("--grid", help="Latitudes x longitudes, e.g. 721x96 [default: the model's].")
@click.option("--levels", help="Pressure levels in hPa, e.g. 1000,850,500 [default: the model's].")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of random weights.")
@click.option("--contexts", type=click.IntRange(min=0), default=0, help="Number of random contexts to write.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of this model, e.g. bias=table. Repeatable.",
)
@force_option
@json_option
def command(name: str, out: Path, force: bool, as_json: bool, **options: Any) -> None:
    r"""Write model.onnx and rollout.toml of the architecture NAME: pangu, timesfm or aurora.

    \b
    Example:
      tqs export pangu --out pangu --grid 49x96 --set dim=24 --set heads=2 --set window=2,3,6
    """
    exporter = _find(name)
    resolved(out)
    if (out / "model.onnx").exists() and not force:
        raise InputError("already holds a model", where=str(out), todo="Give another --out, or --force")
    grid, levels = _numbers(options["grid"], "x", "--grid"), _numbers(options["levels"], ",", "--levels")
    if grid is not None and len(grid) != 2:
        raise InputError(f"--grid {options['grid']!r} is not a grid", todo="Write e.g. 721x96")
    settings = _settings(options["settings"])
    with created(out), claimed(out, at=out):
        written = exporter(
            out,
            checkpoint=options["checkpoint"],
            grid=None if grid is None else (grid[0], grid[1]),
            levels=levels,
            seed=options["seed"],
            contexts=options["contexts"],
            settings=settings,
        )
    facts = file_facts(written[0])
    if as_json:
        print_json({"model": str(written[0]), "bytes": facts.n_bytes, "files": [str(f) for f in written]})
        return
    click.echo(f"{written[0]}: {facts.n_bytes:,} bytes; beside it {', '.join(f.name for f in written[1:])}")
    click.echo(f"next: tqs inspect {shlex.quote(str(written[0]))}")


def _find(name: str) -> Exporter:
    modules = {e.name: e for e in entry_points(group=GROUP) if ":" not in e.value}
    if name not in modules:
        raise InputError(f"there is no exporter {name!r}", todo=f"Choose from {', '.join(sorted(modules))}")
    exporter: Exporter = modules[name].load().export
    return exporter


def _numbers(text: str | None, separator: str, option: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(separator))
    except ValueError as error:
        raise InputError(
            f"{option} {text!r} is not a list of whole numbers", todo=f"Separate them by {separator!r}"
        ) from error
    if min(numbers) < 1:
        raise InputError(f"{option} {text!r} must contain only numbers of at least 1", todo="Correct them")
    return numbers


def _settings(given: tuple[str, ...]) -> dict[str, str]:
    result: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise InputError(f"--set {text!r} is not a setting", todo="Write NAME=VALUE, e.g. bias=table")
        result[key] = value
    return result
