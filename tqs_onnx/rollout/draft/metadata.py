"""Read the forecast's layout where an exporter wrote it into the file: darts (`darts.onnx_spec`, version 0.45)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

_DARTS = "darts.onnx_spec"
_TARGET = "past_target"


@dataclass(frozen=True, slots=True)
class Declared:
    """What the metadata says about inputs and outputs.

    Parameters
    ----------
    source : str
        Who wrote it.
    states : tuple of (str, str)
        (output, input) of the recurrent states.
    target : str
        The input that holds the history of what is forecast.
    forecast : str
        The output that is the forecast.
    given : frozenset of str
        Inputs whose values are given for every step.
    fixed : frozenset of str
        Inputs that never change.
    rolls : bool
        Whether a forecast may be fed back: not if the outputs are parameters of a distribution.
    """

    source: str
    states: tuple[tuple[str, str], ...]
    target: str
    forecast: str
    given: frozenset[str]
    fixed: frozenset[str]
    rolls: bool


def declared(metadata: Mapping[str, str]) -> Declared | None:
    """Return what the metadata of a file says; None if nothing is there, or it is not what darts writes."""
    text = metadata.get(_DARTS)
    if text is None:
        return None
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    facts = cast("dict[str, object]", found)
    features, outputs = _names(facts, "feature_input_names"), _names(facts, "output_names")
    into, out = _names(facts, "state_input_names"), _names(facts, "state_output_names")
    forecasts = [name for name in outputs if name not in out]
    if len(into) != len(out) or _TARGET not in features or len(forecasts) != 1:
        return None
    fixed = {name for name in features if name.startswith("static")}
    return Declared(
        source="darts",
        states=tuple(zip(out, into, strict=True)),
        target=_TARGET,
        forecast=forecasts[0],
        given=frozenset(features) - fixed - {_TARGET},
        fixed=frozenset(fixed),
        rolls=not _names(facts, "likelihood_parameter_names")
        and facts.get("output_chunk_shift") in (0, None),
    )


def _names(facts: Mapping[str, object], key: str) -> list[str]:
    value = facts.get(key)
    if not isinstance(value, list):
        return []
    return [item for item in cast("list[object]", value) if isinstance(item, str)]
