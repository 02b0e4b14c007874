"""The `tqs` command: groups the commands, turns errors into one line and an exit code.

Exit codes: 0 done, 1 internal error, 2 usage or bad input, 3 a gate failed, 4 the budget is infeasible.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from tqs_onnx.version import VERSION
from tqs_passes.errors import TqsError, one_line

_COMMANDS = (
    "inspect",
    "score",
    "allocate",
    "emit",
    "verify",
    "quantize",
    "sweep",
    "baseline",
    "package",
    "build",
    "export",
    "demo",
    "doctor",
)


class _Commands(click.Group):
    """A group whose commands are imported when they are asked for: `tqs --help` starts no runtime."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names, in the order of the trip."""
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
        """Return the command of a line; for one that does not exist, name the one closest to it.

        Raises
        ------
        click.UsageError
            There is no such command.
        """
        near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
        if args[0] not in _COMMANDS and near:
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(VERSION, prog_name="tqs")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="Detail of log messages on stderr.",
)
def cli(traceback: bool, log_level: str) -> None:
    """Make an ONNX forecasting model smaller where its rollout forgives it.

    Start with `tqs demo`, then `tqs inspect MODEL` and `tqs quantize MODEL`.
    """
    del traceback  # read by main, before click runs
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--traceback" in given
    # Allowed anywhere on the line.
    rest = [a for a in given if a != "--traceback"]
    try:
        result: Any = cli.main(args=rest, prog_name="tqs", standalone_mode=False)
    except TqsError as error:
        _report(str(error), verbose)
        return error.exit_code
    except click.Abort:
        _report("stopped. Run the same command again to go on", verbose)
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "tqs"
        _report(one_line(f"{error.format_message()} See {asked} --help"), verbose)
        return error.exit_code
    except MemoryError:
        _report("out of memory: use fewer contexts (--max-contexts) or a smaller --batch", verbose)
        return 1
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001  (the last line of defence: a bug becomes one line, not a stack trace)
        _report(f"internal error: {type(error).__name__}: {one_line(str(error))} (see --traceback)", verbose)
        return 1
    return result if isinstance(result, int) else 0


def _report(line: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc(file=sys.stderr)
    print(f"tqs: error: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
