"""Write a draft as a rollout.toml: tables, reasons as comments, and questions with their answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tqs_onnx.rollout.draft.draft import Draft
from tqs_passes.errors import one_line

#: Answers that are written out.
_MOST_ANSWERS = 3


def draft_text(draft: Draft) -> str:
    """Return the TOML text; it parses to the draft's spec."""
    spec = draft.spec.model_dump(mode="json", exclude_defaults=True)
    rollout: dict[str, Any] = spec["rollout"]
    lines = [
        "# Drafted from names, shapes, metadata and trial calls. What is not certain is asked at the end."
    ]
    lines += [f"# {one_line(remark)}" for remark in draft.remarks]
    lines += [
        "version = 1",
        "",
        "[rollout]",
        f"steps = {rollout['steps']}  # {one_line(draft.reasons['steps'])}",
    ]
    if "batch_axis" in rollout:
        lines.append(f"batch_axis = {rollout['batch_axis']}")
    for kind in ("feedback", "forcing", "static"):
        for table in spec.get(kind, ()):
            why = draft.reasons[table["input"]]
            lines += ["", f"[[{kind}]]  # {one_line(why)}", *_pairs(table)]
    lines += ["", "[trajectory]  # the outputs that are judged", *_pairs(spec["trajectory"])]
    for table in spec.get("variable", ()):
        lines += ["", "[[variable]]", *_pairs(table)]
    if "windows" in spec:
        lines += ["", "[windows]  # how contexts are cut from the table", *_pairs(spec["windows"])]
    for text, answers in draft.questions:
        lines += ["", f"# QUESTION. {one_line(text)}", *_answers(answers)]
    return "\n".join(lines) + "\n"


def _answers(answers: tuple[Mapping[str, Any], ...]) -> list[str]:
    lines: list[str] = []
    for number, table in enumerate(answers[:_MOST_ANSWERS]):
        lines.append(
            f"# {'If so' if len(answers) == 1 else f'Answer {number}'}, in place of the table of this input:"
        )
        lines += [f"# {line}" for line in ("[[feedback]]", *_pairs(table))]
        if "into" in table:
            lines += [
                "# [[forcing]]  # the other features of every step",
                f"# input = {toml_value(table['input'])}",
            ]
    if len(answers) > _MOST_ANSWERS:
        lines.append(f"# … and so on, {len(answers)} answers in all.")
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
