"""The pages name every command, the commands they show exist with their options, and their links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import tqs_onnx as tqs
from tqs_onnx.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
COMMANDS = cli.list_commands(click.Context(cli))
#: Longest README: one screen and a half.
MOST_LINES = 110
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def shown_commands() -> list[tuple[str, str]]:
    """Return (page, line) of the tqs command lines: those of shell blocks, and those set as code in the prose.

    Continuation lines are joined; what an ellipsis leaves out is left out.
    """
    found: list[tuple[str, str]] = []
    for page in (p for p in PAGES if p.name != "CHANGELOG.md"):
        text = page.read_text(encoding="utf-8")
        blocks = [body for kind, body in FENCE.findall(text) if kind in ("console", "sh", "bash", "make")]
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]
        for line in lines:
            for part in re.split(r"&&|\|", line.strip().removeprefix("$ ")):
                words = part.replace("…", " ").replace(r"\|", " ").split()
                if len(words) > 1 and words[0] in ("tqs", ".venv/bin/tqs") and re.match(r"[a-z-]", words[1]):
                    found.append((shown(page), " ".join(words)))
    return found


def sections(text: str) -> dict[str, str]:
    """Return the body of every section of the command reference, by the name of the command."""
    parts = re.split(r"^## `tqs (\w+)`$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def slugs(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> list[tuple[Path, str]]:
    return [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", prose(page))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_reference_with_an_example(name: str) -> None:
    assert f"```sh\ntqs {name}" in sections(REFERENCE)[name]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "doctor"])
def test_a_page_that_a_person_wrote_shows_the_command(name: str) -> None:
    assert any(line.split()[1] == name for page, line in shown_commands() if page != "docs/cli.md")


def test_the_readme_is_short_and_shows_demo_and_quantize() -> None:
    assert len(README.splitlines()) <= MOST_LINES
    assert {"demo", "quantize"} <= {line.split()[1] for page, line in shown_commands() if page == "README.md"}


def test_the_readme_has_the_test_command_that_ci_runs() -> None:
    assert "python3 -m venv .venv && .venv/bin/pip install '.[dev]' && .venv/bin/pytest" in README


@pytest.mark.parametrize(("page", "line"), sorted(set(shown_commands())))
def test_a_command_of_a_page_exists_with_its_options(page: str, line: str) -> None:
    _, *words = shlex.split(line, comments=True)
    group = {o for p in cli.params for o in p.opts} | {"--help", "-h"}
    while words and words[0].startswith("-"):
        assert words[0] in group, page
        words = words[2:] if words[0] == "--log-level" else words[1:]
    if not words or words[0].isupper():
        return
    name, *arguments = words
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"{page}: no command {name}"
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {
        "--help",
        "-h",
        "--traceback",
    }
    given = {a.partition("=")[0] for a in arguments if re.match(r"--?[a-z]", a)}
    assert given <= known, page


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_says_what_it_does(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []


def test_every_option_that_the_prose_names_exists() -> None:
    known = {"--help", "--no-deps"} | {
        o
        for name in COMMANDS
        for p in getattr(cli.get_command(click.Context(cli), name), "params", ())
        for o in (*p.opts, *p.secondary_opts)
    }
    known |= {o for p in cli.params for o in p.opts}
    written = {
        (shown(page), option)
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for option in re.findall(r"`(--[a-z][a-z0-9-]*)", prose(page))
    }
    assert {(page, option) for page, option in written if option not in known} == set()


@pytest.mark.parametrize(("page", "link"), links(), ids=lambda part: str(part).rpartition("/")[2])
def test_a_link_leads_somewhere(page: Path, link: str) -> None:
    if link.startswith(("http:", "https:", "mailto:")):
        return
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists()
    if anchor:
        assert anchor in slugs(target)


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_python_that_a_page_shows_parses_and_names_what_there_is(page: Path) -> None:
    for kind, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            names = [
                node.attr
                for node in ast.walk(ast.parse(body))
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "tqs"
            ]
            assert set(names) <= set(tqs.__all__)


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_a_page_has_one_title_and_no_long_lines(page: Path) -> None:
    text = prose(page)
    assert len(re.findall(r"^# ", text, re.M)) == 1
    long = [line for line in text.splitlines() if len(line) > 130 and not line.startswith(("|", "["))]
    assert page.name == "cli.md" or long == []
