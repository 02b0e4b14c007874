"""Write the documentation that the code knows best: `docs/cli.md` and the JSON Schemas in `docs/schemas`.

The command reference comes from the commands, the schemas from the classes that read and write the files. Schemas of
files that `tqs` writes list every key that it writes; those of files that you write list what you may leave out. A test
(`tests/house/test_generated_docs.py`) fails when what is stored is not what this script writes. Usage::

    python tools/make_docs.py
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import click
import cloup
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from tqs_onnx.cli.main import cli
from tqs_onnx.jobs.build import BuildFile, State
from tqs_onnx.jobs.pareto import Pareto
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.manifest import Manifest
from tqs_passes.plan.plan import Plan

DOCS = Path(__file__).resolve().parents[1] / "docs"
#: File name to what it describes: the class, and whether `tqs` writes such files or you do.
SCHEMAS: dict[str, tuple[type[BaseModel], Literal["serialization", "validation"]]] = {
    "plan": (Plan, "serialization"),
    "scores": (Scores, "serialization"),
    "manifest": (Manifest, "serialization"),
    "pareto": (Pareto, "serialization"),
    "build-state": (State, "serialization"),
    "rollout": (RolloutSpec, "validation"),
    "tqs": (BuildFile, "validation"),
}
#: Title of the options that belong to no group.
UNGROUPED = "Options"
HEAD = """\
# Command line reference

Written by `python tools/make_docs.py` from the commands themselves: do not edit. `tqs COMMAND --help` prints the same.

Exit codes: 0 done, 1 internal error, 2 usage or bad input, 3 a gate failed, 4 the byte budget cannot be met.
`--json` prints one JSON object on stdout and nothing else there; notes and progress go to stderr.
"""


def documents() -> dict[Path, str]:
    """Return the text of every generated file, by its path."""
    found = {DOCS / "cli.md": cli_reference()}
    for name, (kind, mode) in SCHEMAS.items():
        found[DOCS / "schemas" / f"{name}.schema.json"] = schema_text(kind, mode)
    return found


def schema_text(kind: type[BaseModel], mode: Literal["serialization", "validation"]) -> str:
    """Return the JSON Schema of a file, two-space indented."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema = kind.model_json_schema(schema_generator=_Generator, mode=mode)
    return json.dumps(head | schema, indent=2, ensure_ascii=False) + "\n"


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, which does not see that a rollout spec takes one value where a list may stand."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """Return the schema of a validated field: of one value, or of the list, where `one_or_many` reads it."""
        found = super().function_before_schema(schema)
        if schema["function"]["function"].__name__ != "one_or_many":
            return found
        return {"anyOf": [found["items"], found]}


def cli_reference() -> str:
    """Return the reference of all commands, in the order of the trip."""
    root = click.Context(cli, info_name="tqs")
    parts = [HEAD, "## `tqs`\n", *_option_tables(cli, root)]
    parts.append("`--log-level` and `--traceback` may stand anywhere on the line.\n")
    parts.append(
        "Commands: " + ", ".join(f"[`{name}`](#tqs-{name})" for name in cli.list_commands(root)) + ".\n"
    )
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        assert command is not None
        parts += _command(command, click.Context(command, parent=root, info_name=name))
    return "\n".join(parts)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the section of one command: what it does, its example, its arguments and options."""
    prose, _, example = (command.help or "").partition("\b\n")
    yield f"## `tqs {context.info_name}`\n"
    yield prose.strip() + "\n"
    lines = textwrap.dedent("\n".join(example.splitlines()[1:])).strip()
    yield f"```sh\n{lines}\n```\n"
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    yield (
        "Takes " + ", ".join(f"`{p.human_readable_name.upper()}`" for p in arguments) + ".\n"
        if arguments
        else ""
    )
    yield from _option_tables(command, context)


def _option_tables(command: click.Command, context: click.Context) -> Iterator[str]:
    for title, options in _groups(command):
        rows = [_row(option, context) for option in options if not option.hidden]
        yield "\n".join([f"| {title} | value | meaning |", "|---|---|---|", *rows]) + "\n"


def _groups(command: click.Command) -> Iterator[tuple[str, Iterable[click.Option]]]:
    grouped: list[click.Option] = []
    if isinstance(command, cloup.Command):
        for group in command.option_groups:
            grouped += group.options
            yield group.title, group.options
    rest = [p for p in command.params if isinstance(p, click.Option) and p not in grouped]
    if rest:
        yield UNGROUPED, rest


def _row(option: click.Option, context: click.Context) -> str:
    names = [f"`{name}`" for name in (*option.opts, *option.secondary_opts)]
    text = (option.help or "").replace("\n", " ")
    default: Any = option.get_default(context)
    if option.required:
        text += " **Required.**"
    elif option.show_default and not option.is_flag and default is not None:
        text = f"{text.rstrip('.')} [default: {default}]."
    cells = (" / ".join(names), _value(option), text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(option: click.Option) -> str:
    """Return what an option takes, in words."""
    kind = option.type
    if option.is_flag:
        return ""
    if option.metavar:
        return f"`{option.metavar}`"
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        word = "integer" if isinstance(kind, click.IntRange) else "number"
        least, most = ("" if bound is None else f"{bound:g}" for bound in (kind.min, kind.max))
        if most:
            return f"{word} {least} … {most}"
        return f"{word} {'>' if kind.min_open else '≥'} {least}"
    if isinstance(kind, click.Path):
        return "path"
    return {"integer": "integer", "float": "number"}.get(kind.name, "text")


def main() -> None:
    """Write every generated file, and remove schemas that are no longer made."""
    made = documents()
    for stale in set((DOCS / "schemas").glob("*.json")) - made.keys():
        stale.unlink()
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
