"""The README names every command, and the commands it shows can be given as they are."""

import re
import shlex
from pathlib import Path

import click
import pytest

from tqs_onnx.cli.main import cli

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = cli.list_commands(click.Context(cli))


def shown_commands() -> list[str]:
    """Return the tqs command lines of the README's console and sh blocks, continuation lines joined."""
    found: list[str] = []
    for block in re.findall(r"^```(?:console|sh|bash)\n(.*?)^```", README, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.removeprefix("$ ").split("&&"):
                words = part.split()
                if words and words[0] in ("tqs", ".venv/bin/tqs"):
                    found.append(" ".join(words))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_names_the_command(name: str) -> None:
    assert re.search(rf"\b{name}\b", README)


def test_the_readme_shows_commands() -> None:
    assert any(line.split()[1] == "demo" for line in shown_commands())


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_of_the_readme_exists_with_its_options(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    if name.startswith("-"):
        assert name in {o for p in cli.params for o in p.opts} | {"--help"}
        return
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"no command {name}"
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {
        "--help",
        "-h",
        "--traceback",
    }
    given = {a.partition("=")[0] for a in arguments if re.match(r"--?[a-z]", a)}
    assert given <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_says_what_it_does(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []
