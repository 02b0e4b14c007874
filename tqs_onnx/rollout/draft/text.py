"""Write a draft as a rollout.toml: tables, reasons as comments, and questions with their answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tqs_onnx.rollout.draft.draft import Draft
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_passes.errors import one_line

#: Answers that are written out.
_MOST_ANSWERS = 3


def draft_text(draft: Draft) -> str:
    """Return the TOML text; it parses to the draft's spec."""
    lines = [
        "# Drafted from names, shapes, metadata and trial calls. What is not certain is asked at the end."
    ]
    lines += [f"# {one_line(remark)}" for remark in draft.remarks]
    lines += _tables(draft.spec, draft.reasons)
    for asked in draft.questions:
        lines += ["", f"# QUESTION. {one_line(asked.text)}"]
        for number, answer in enumerate(asked.answers[:_MOST_ANSWERS]):
            which = "If so" if len(asked.answers) == 1 else f"Answer {number}"
            lines.append(f"# {which}, this is the whole file:")
            lines += [f"# {line}".rstrip() for line in _tables(answer, {})]
        if len(asked.answers) > _MOST_ANSWERS:
            lines.append(f"# … and so on, {len(asked.answers)} answers in all.")
    return "\n".join(lines) + "\n"


def _tables(spec: RolloutSpec, reasons: Mapping[str, str]) -> list[str]:
    """Return the lines of a spec; a table is followed by its reason."""

    def noted(line: str, key: str) -> str:
        return f"{line}  # {one_line(reasons[key])}" if key in reasons else line

    said = spec.model_dump(mode="json", exclude_defaults=True)
    rollout: dict[str, Any] = said["rollout"]
    lines = [
        "version = 1",
        "",
        "[rollout]",
        noted(f"steps = {rollout.pop('steps')}", "steps"),
        *_pairs(rollout),
    ]
    for kind in ("feedback", "forcing", "static"):
        for table in said.get(kind, ()):
            lines += ["", noted(f"[[{kind}]]", table["input"]), *_pairs(table)]
    lines += ["", "[trajectory]  # the outputs that are judged", *_pairs(said["trajectory"])]
    for table in said.get("variable", ()):
        lines += ["", "[[variable]]", *_pairs(table)]
    if "windows" in said:
        lines += ["", "[windows]  # how contexts are cut from the table", *_pairs(said["windows"])]
    return lines


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {toml_value(value)}" for key, value in table.items()]


def toml_value(value: object) -> str:
    """Return a value as TOML: text, numbers, booleans, lists and tables of these."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return toml_text(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items() if item is not None)
        return f"{{ {inner} }}"
    if isinstance(value, list | tuple):
        items = list(value)
        return (
            toml_value(items[0]) if len(items) == 1 and isinstance(items[0], Mapping | int) else _list(items)
        )
    return str(value)


def _list(items: list[Any]) -> str:
    return "[" + ", ".join(toml_value(item) for item in items) + "]"


def toml_text(text: str) -> str:
    """Return a TOML basic string: TOML has JSON's escapes, except for the delete character."""
    shown = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in shown)
