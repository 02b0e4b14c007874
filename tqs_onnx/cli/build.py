"""`tqs build`: the whole trip declared in one file, for a Makefile or a CI job."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path

import click

from tqs_onnx.cli.options import FILE, json_option
from tqs_onnx.cli.outcome import finish
from tqs_onnx.cli.show import print_json, say
from tqs_onnx.jobs.build import OptionValue, Step, read_build, run_build, steps_of
from tqs_onnx.rollout.spec.signature import close_match
from tqs_onnx.verify.manifest import read_manifest, versions
from tqs_passes.errors import GateError, InputError


@click.command("build")
@click.argument("file", type=FILE, default=Path("tqs.toml"))
@click.option("--force", is_flag=True, help="Run every step, changed or not.")
@json_option
def command(file: Path, force: bool, as_json: bool) -> int:
    r"""Run what FILE declares [default: tqs.toml]; steps whose inputs are unchanged are skipped.

    Tables [score], [plan], [gates] and [[package]] take the long options of `tqs score`, `allocate`, `verify` and
    `package`; [run] takes --providers, --batch and --threads. Exits as the step that failed does: 3 for a gate, also
    when `verify` was skipped because nothing changed.

    \b
    Example:
      tqs build tqs.toml
    """
    build = read_build(file)
    folder = file.resolve().parent
    steps = steps_of(build, folder)
    lines = [
        (step, command_line(step)) for step in steps
    ]  # all of them are checked before the first one runs
    arguments = {step.name: line for step, line in lines}
    report = run_build(
        steps,
        folder,
        folder / build.out,
        lambda step: _run(step, arguments[step.name]),
        versions(),
        say,
        anew=force,
    )
    if report.exit_code == GateError.exit_code and "verify" in report.skipped:
        # Nothing ran that would have said which gate failed.
        finish(read_manifest(next(s.writes[0] for s in steps if s.name == "verify")).gates)
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
        click.echo(f"{len(report.ran)} steps run, {len(report.skipped)} unchanged; see {folder / build.out}")
    return report.exit_code


def _command(name: str) -> click.Command:
    found: click.Command = importlib.import_module(f"tqs_onnx.cli.{name}").command
    return found


def _run(step: Step, arguments: list[str]) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to --json
        result: object = _command(step.command).main(arguments, prog_name=step.command, standalone_mode=False)
    return result if isinstance(result, int) else 0


def command_line(step: Step) -> list[str]:
    """Return the arguments of a step's command.

    Raises
    ------
    InputError
        An option is unknown to the command, or is no flag and has no value.
    """
    known = {
        opt.removeprefix("--"): param
        for param in _command(step.command).params
        if isinstance(param, click.Option)
        for opt in param.opts
    }
    words = [*step.arguments, *(["--force"] if "force" in known else [])]
    for given, value in step.options.items():
        name = given.replace("_", "-")
        if name not in known:
            todo = close_match(name, known) or f"See tqs {step.command} --help"
            raise InputError(f"tqs {step.command} has no option {given!r}", where=step.name, todo=todo)
        words += _words(f"--{name}", value, known[name])
    return words


def _words(option: str, value: OptionValue, param: click.Option) -> list[str]:
    if param.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{option} is true or false", where="build file")
        return [option] if value else list(param.secondary_opts[:1])  # a flag such as --rows/--no-rows
    if isinstance(value, list):
        texts = [str(v) for v in value]
        return [w for t in texts for w in (option, t)] if param.multiple else [option, ",".join(texts)]
    return [option, str(value)]
