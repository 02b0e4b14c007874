"""The command line that makes a run again, from the settings in its manifest."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from tqs_onnx.cli import flags as table
from tqs_onnx.cli.flag import Flag
from tqs_onnx.jobs.options import BaselineOptions, QuantizeOptions, settings_of

_DATA = {
    "rollout": "--rollout",
    "contexts": "--contexts",
    "evaluation": "--eval-contexts",
    "calibration": "--calibration",
}
_LIMITS = {"steps": "--steps", "max_contexts": "--max-contexts", "max_eval_contexts": "--max-eval-contexts"}
_COMPUTE = {"float16": "fp16", "bfloat16": "bf16"}


def command_line(settings: Mapping[str, Any]) -> str | None:
    """Return the command that made a run; paths are relative to its folder.

    None if it cannot be told: the model or data were given as values, or another command verified the file.
    """
    command = settings.get("command")
    if command not in ("quantize", "baseline") or settings.get("in_memory") or not settings.get("model"):
        return None
    words = ["tqs", command, str(settings["model"])]
    data = settings.get("data", {})
    words += [w for key, flag in _DATA.items() if key in data for w in (flag, str(data[key]))]
    words += [w for key, flag in _LIMITS.items() if data.get(key) is not None for w in (flag, str(data[key]))]
    kind = QuantizeOptions if command == "quantize" else BaselineOptions
    flags = table.QUANTIZE if command == "quantize" else table.BASELINE
    words += _words(flags, settings.get("options", {}), settings_of(kind()))
    return shlex.join([*words, "--out", "again"])


def _words(flags: Iterable[Flag], given: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    words = [w for gate in given.get("gates", ()) for w in ("--gate", str(gate))]
    for flag in flags:
        if flag.path == "gates" or flag.path.startswith("data."):
            continue
        value, default = _at(given, flag.path), _at(usual, flag.path)
        if value is None or value == default:
            continue
        on, _, off = flag.name.partition("/")
        if flag.switch:
            words += [on] if value not in (False,) else [off] if off else []
        elif flag.several:
            words += [w for part in value for w in (on, _text(part))]
        else:
            words += [on, _text(value)]
    return words


def _at(settings: Mapping[str, Any], path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _text(value: object) -> str:
    if isinstance(value, Mapping):  # a rule: a pattern and its tiers
        *_, pattern, tiers = value.values()
        return f"{pattern}={_text(tiers)}"
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return _COMPUTE.get(str(value), str(value))
