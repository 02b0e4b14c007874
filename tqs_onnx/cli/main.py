"""The `tqs` command: groups the commands; turns errors into one line and an exit code.

Exit codes: 0 done, 1 internal error, 2 usage or bad input, 3 a gate failed, 4 the budget is infeasible.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import click

from tqs_onnx.cli.in_flags import in_flags
from tqs_onnx.cli.logs import LEVELS, log_to_stderr
from tqs_onnx.cli.only_json import only_json
from tqs_onnx.scoring.workers.ray_connect import end_if_abandoned
from tqs_onnx.version import VERSION
from tqs_passes.errors import TqsError, one_line

_HELP = ("-h", "--help")
_COMMANDS = {
    "inspect": "List the weights of a model, and suggest its rollout spec.",
    "quantize": "Make a model smaller: score, allocate, emit and verify in one go.",
    "build": "Run the steps declared in tqs.toml; unchanged steps are skipped.",
    "score": "Measure how strongly each weight's rounding error grows over the forecast.",
    "allocate": "Choose a precision for every weight within a byte budget.",
    "emit": "Write the file of a plan.",
    "verify": "Roll out an emitted file, compare it with its source, and check gates.",
    "sweep": "Write and measure a model at many compressions.",
    "baseline": "Round a model uniformly, for comparison.",
    "compare": "Roll out other files of a model beside it, in one table.",
    "diff": "Say what changed between a model and a file emitted from it.",
    "curvature": "Measure the Hessian and Fisher of every weight, to hold against its sensitivity.",
    "analyse": "Print the tables of the paper for the files of some runs.",
    "report": "Show runs as one HTML page, with a model card.",
    "package": "Wrap an emitted file for Triton, TensorRT or Olive.",
    "export": "Write the ONNX file of a known architecture.",
    "demo": "Quantize a bundled model as a demonstration.",
    "doctor": "Test which execution providers work on this machine.",
}
_SECTIONS = {
    "Start here": ("demo", "inspect", "quantize", "build"),
    "One stage at a time": ("score", "allocate", "emit", "verify"),
    "Compare": ("sweep", "baseline", "compare", "diff", "curvature", "analyse", "report"),
    "More": ("package", "export", "doctor"),
}


class _Commands(click.Group):
    """A group whose commands are imported on demand: `tqs --help` starts no runtime."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by section; their one-line help is stored here, so that none is imported."""
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, _COMMANDS[name]) for name in names])

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names, in the order of the stages."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by name."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"tqs_onnx.cli.{cmd_name}")
        command: click.Command = module.command
        if (
            command.help
        ):  # click's mark for a paragraph that keeps its lines; docstrings with backslashes are raw
            command.help = command.help.replace(r"\b", "\b")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of a line; if it does not exist, suggest the closest name.

        Raises
        ------
        click.UsageError
            The command does not exist.
        """
        near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
        if args[0] not in _COMMANDS and near:
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": list(_HELP), "max_content_width": 110})
@click.version_option(VERSION, prog_name="tqs")
@click.option("--traceback", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="info",
    show_default=True,
    help="Level of detail of the log on stderr.",
)
def cli(traceback: bool, log_level: str) -> None:
    """Make an ONNX forecasting model smaller where its rollout tolerates rounding errors.

    Start with `tqs demo`, then `tqs inspect MODEL` and `tqs quantize MODEL`.
    """
    del traceback  # read by main, before click runs
    log_to_stderr(log_level)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if arguments is None:
        code = main(sys.argv[1:])
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
        ):  # the command is done: its code must not become the signal's
            signal.signal(number, signal.SIG_IGN)
        end_if_abandoned(code)
        return code
    given = list(arguments)
    verbose = "--traceback" in given
    # Both options are allowed anywhere on the line.
    rest = _level_first([a for a in given if a != "--traceback"])
    try:
        with only_json() if "--json" in rest and not set(_HELP).intersection(rest) else nullcontext():
            result: Any = cli.main(args=rest, prog_name="tqs", standalone_mode=False)
    except TqsError as error:
        _report(in_flags(error), verbose)
        return error.exit_code
    except click.Abort:
        _report("stopped. Run the same command again to resume", verbose)
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "tqs"
        _report(one_line(f"{' '.join(error.format_message().split())} See {asked} --help"), verbose)
        return error.exit_code
    except MemoryError:
        _report(
            "out of memory: use fewer contexts (--max-contexts), a smaller --batch, or smaller files", verbose
        )
        return 1
    except BrokenPipeError:
        _report("the output was closed before everything was written", verbose)
        return 1
    except OSError as error:  # a path, a disk or a device that no stage has explained
        where = f"{one_line(str(error.filename))}: " if error.filename is not None else ""
        _report(f"{where}the system refuses: {error.strerror or error}", verbose)
        return 2
    except Exception as error:  # noqa: BLE001  (a bug becomes one line, not a stack trace)
        _report(f"internal error: {type(error).__name__}: {one_line(str(error))} (see --traceback)", verbose)
        return 1
    return result if isinstance(result, int) else 0


def _level_first(words: list[str]) -> list[str]:
    """Return a command line with its --log-level, wherever it stands, before the command."""
    for i, word in enumerate(words):
        if word == "--log-level" and i + 1 < len(words):
            return [*words[i : i + 2], *words[:i], *words[i + 2 :]]
        if word.startswith("--log-level="):
            return [word, *words[:i], *words[i + 1 :]]
    return words


def _report(line: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc(file=sys.stderr)
    print(f"tqs: error: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
