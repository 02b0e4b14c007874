"""`tqs build`: all stages declared in one file, for a Makefile or a CI job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import cloup

from tqs_onnx.cli import flags as table
from tqs_onnx.cli.flag import Flag, nested
from tqs_onnx.cli.options import FILE, json_option
from tqs_onnx.cli.outcome import finish
from tqs_onnx.cli.show import print_json, progress
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.jobs.build import BuildFile, DataSection, Declared, read_build, run_build, steps_of
from tqs_onnx.jobs.options import QuantizeOptions, options_from
from tqs_onnx.jobs.rebuild import declared_by
from tqs_onnx.jobs.run_directory import resolved
from tqs_onnx.packaging.package import PackageOptions
from tqs_onnx.rollout.made.request import input_scale, made_request
from tqs_onnx.rollout.spec.signature import close_match
from tqs_onnx.scoring.score import Progress
from tqs_onnx.verification.manifest import read_manifest, versions
from tqs_onnx.verification.verdict import verdict
from tqs_passes.errors import GateError, InputError

#: The flags that each table of a build file accepts, by their long names.
TABLES: dict[str, tuple[Flag, ...]] = {
    "score": (*table.SCORING, *table.ENGINE),
    "plan": (*table.BUDGET, *table.PLANNING, *table.SERVING, *table.REFINING),
    "gates": table.GATES,
    "run": table.RUN,
}


@cloup.command("build")
@cloup.argument("file", type=FILE, default=Path("tqs.toml"))
@cloup.option("--out", type=FILE, help="Run directory [default: as in FILE].")
@cloup.option("--force", is_flag=True, help="Run every step, changed or not.")
@json_option
def command(file: Path, out: Path | None, force: bool, as_json: bool) -> int:
    r"""Run the steps that FILE declares [default: tqs.toml]; steps whose inputs are unchanged are skipped.

    Tables [score], [plan], [gates] and [run] take the long options of `tqs quantize`; [[package]] takes those of `tqs
    package`. The exit code is that of the failed step: 3 for a gate, also if an unchanged `verify` was skipped.
    FILE may also be the manifest.json of an earlier run, with --out: the same inputs give the same bytes again.

    \b
    Example:
      tqs build tqs.toml
    """
    folder = resolved(file).parent
    with progress("score") as tick:
        again = file.suffix == ".json"
        trip = declared_by(file, out, tick) if again else declared(read_build(file), folder, out, tick)
        steps = steps_of(trip)
        report = run_build(steps, folder, trip.out, versions(), anew=force)
    if report.exit_code == GateError.exit_code:
        finish(read_manifest(trip.out / "manifest.json").gates)
    if as_json:
        print_json(
            {
                "ran": list(report.ran),
                "skipped": list(report.skipped),
                "exit_code": report.exit_code,
                "files": report.files,
            }
        )
    else:
        click.echo(f"{len(report.ran)} steps run, {len(report.skipped)} unchanged; see {trip.out}")
        if (trip.out / "manifest.json").exists():
            click.echo(verdict(read_manifest(trip.out / "manifest.json").verification))
    return report.exit_code


def declared(build: BuildFile, folder: Path, out: Path | None, tick: Progress) -> Declared:
    """Return a build file with its options parsed; its paths are relative to `folder`.

    Raises
    ------
    InputError
        A table has an unknown option, or an option has an invalid value.
    """
    data = build.data

    def place(text: str) -> Path | str:
        return folder / text if made_request(text) is None else text

    files = DataOptions(
        folder / data.rollout if data.rollout else None,
        place(data.contexts),
        place(data.eval_contexts) if data.eval_contexts else None,
        data.steps,
        data.max_contexts,
        data.max_eval_contexts,
        place(data.calibration) if data.calibration else None,
        tuple(input_scale(text) for text in data.input_scale),
        data.made_beside,
    )
    tables = {"score": build.score, "plan": build.plan, "gates": build.gates, "run": build.run}
    settings: dict[str, Any] = {}
    for name, given in tables.items():
        _merge(settings, nested(TABLES[name], _values(TABLES[name], given, name)))
    model = folder / build.model
    target = out or folder / build.out
    packages = tuple(options_from(_hyphened(p), PackageOptions) for p in build.package)
    return Declared(
        model,
        target,
        target / (build.name or f"{model.stem}.tqs.onnx"),
        files,
        options_from(settings, QuantizeOptions),
        packages,
        tick,
    )


def _values(flags: Iterable[Flag], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values of a table by `Flag.key`, as click would pass them."""
    known = {flag.key: flag for flag in flags}
    found: dict[str, Any] = {}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in known:
            todo = close_match(key, known) or f"Choose from {', '.join(known)}"
            home = next((name for name, table in TABLES.items() if any(f.key == key for f in table)), None)
            if key in DataSection.model_fields:
                home = "data"
            if home is not None:
                todo = f"It belongs in [{home}]"
            raise InputError(f"there is no option {name!r}", where=f"[{where}]", todo=todo)
        found[key] = _value(known[key], value, f"[{where}] {name}")
    return found


def _value(flag: Flag, value: Any, where: str) -> Any:
    if flag.switch:
        if not isinstance(value, bool):
            raise InputError(f"must be true or false, not {value!r}", where=where, todo="Write true or false")
        return value
    if flag.several:
        return tuple(str(v) for v in (value if isinstance(value, list) else [value]))
    text = ",".join(str(v) for v in value) if isinstance(value, list) else str(value)
    if flag.kind is None:
        return text
    try:
        return click.types.convert_type(flag.kind).convert(text, None, None)
    except click.BadParameter as error:
        raise InputError(error.message, where=where) from error


def _hyphened(given: Mapping[str, Any]) -> dict[str, Any]:
    named = {key.replace("-", "_"): value for key, value in given.items()}
    if "limit" in named:
        limits = named.pop("limit")
        named["limits"] = limits if isinstance(limits, list) else [limits]
    return named


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value
