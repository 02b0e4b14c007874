"""Suggest how a model's outputs re-enter as inputs, as the first draft of a rollout.toml.

Pairs are matched by element type and shape first, then by name (`x` → `x_next`, `past.0` → `present.0`):

* equal shapes: the output replaces the input;
* equal except for one shorter (or symbolic) axis, or one missing axis: the output is appended along it (shift);
* equal except for one longer axis: the end of the output replaces the input.

The result is a guess from names and shapes that a person must check: the model is not run here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum

import onnx

from tqs_passes.errors import one_line
from tqs_passes.files.model import Model

Dim = int | str | None
_FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})
#: Words that mark the side of a step a name is on, and do not identify the value.
_SIDES = frozenset(
    {
        *("in", "input", "inputs", "out", "output", "outputs", "next", "new", "old", "prev", "previous"),
        *(
            "last",
            "past",
            "present",
            "pred",
            "prediction",
            "predictions",
            "forecast",
            "hat",
            "updated",
            "values",
        ),
        *("initial", "init", "final", "t", "n", "0"),
    }
)
_STATES = frozenset({"state", "states", "hidden", "cell", "h", "c", "cache", "key", "value", "kv", "memory"})
_WORD = re.compile(r"[A-Za-z]+|\d+")


class Mode(StrEnum):
    """How an output enters an input."""

    REPLACE = "replace"
    SHIFT = "shift"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One output that may feed one input.

    Parameters
    ----------
    output, input : str
        Names of the output and the input.
    mode : Mode
    axis : int or None
        Axis of the input along which the output is appended (shift).
    select : tuple of int, or None
        (axis, start, stop) of the part of the output that is used; None for all of it.
    expand : bool
        The output lacks `axis` (replace: an axis of length one), so it is inserted there.
    why : str
        The reason for the suggestion.
    """

    output: str
    input: str
    mode: Mode
    axis: int | None = None
    select: tuple[int, int, int] | None = None
    expand: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Port:
    name: str
    element: str
    dims: tuple[Dim, ...] | None


def _ports(values: list[onnx.ValueInfoProto]) -> list[_Port]:
    ports: list[_Port] = []
    for value in values:
        tensor = value.type.tensor_type
        try:
            element = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        except (KeyError, ValueError, TypeError, AttributeError):
            element = "unknown"
        dims = tuple(_dim(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None
        ports.append(_Port(value.name, element, dims))
    return ports


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def _model_ports(model: Model) -> tuple[list[_Port], list[_Port]]:
    """Return the inputs that are fed (without initializers) and the outputs."""
    graph = model.proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    return _ports([v for v in graph.input if v.name not in stored]), _ports(list(graph.output))


def suggest_feedback(model: Model) -> tuple[Suggestion, ...]:
    """Return the likely feedback pairs in the order of the inputs; each input and output appears at most once.

    Deterministic; ties go to the earlier output, then the earlier input.
    """
    inputs, outputs = _model_ports(model)
    rated: list[tuple[float, int, int, Suggestion]] = []
    for o, output in enumerate(outputs):
        for i, target in enumerate(inputs):
            fit = _fit(output, target)
            if fit is not None:
                rank, suggestion = fit
                rated.append((rank - 2.0 * _likeness(output.name, target.name), o, i, suggestion))
    rated.sort(key=lambda row: row[:3])
    used_outputs: set[int] = set()
    chosen: dict[int, Suggestion] = {}
    for _, o, i, suggestion in rated:
        if o not in used_outputs and i not in chosen:
            used_outputs.add(o)
            chosen[i] = suggestion
    return tuple(chosen[i] for i in sorted(chosen))


def _fit(output: _Port, target: _Port) -> tuple[float, Suggestion] | None:
    """Return how badly two ports match (0 is best) and how to connect them; None when they do not match."""
    if output.element != target.element or output.dims is None or target.dims is None:
        return None
    out, into = output.dims, target.dims
    if len(out) == len(into):
        differ = [axis for axis, (a, b) in enumerate(zip(out, into, strict=True)) if a != b]
        if not differ:
            return 0.0, Suggestion(output.name, target.name, Mode.REPLACE, why="equal shape and type")
        if len(differ) != 1:
            return None
        return _one_axis(output, target, differ[0], out[differ[0]], into[differ[0]])
    if len(out) == len(into) - 1:
        missing = [axis for axis in range(len(into)) if into[:axis] + into[axis + 1 :] == out]
        axis = next((a for a in missing if a > 0), missing[0] if missing else None)
        if axis is None:
            return None
        mode = Mode.REPLACE if into[axis] == 1 else Mode.SHIFT
        why = f"equal shape but for the missing axis {axis}"
        return 1.0, Suggestion(output.name, target.name, mode, axis, expand=True, why=why)
    return None


def _one_axis(output: _Port, target: _Port, axis: int, got: Dim, wanted: Dim) -> tuple[float, Suggestion]:
    name = (output.name, target.name)
    if axis == 0 and not (isinstance(got, int) and isinstance(wanted, int)):
        return 0.5, Suggestion(*name, Mode.REPLACE, why="equal shape but for the name of axis 0")
    if isinstance(got, int) and isinstance(wanted, int) and got > wanted:
        part = (axis, got - wanted, got)
        why = f"axis {axis} is longer ({got} against {wanted}): its end is used"
        return 2.0, Suggestion(*name, Mode.REPLACE, select=part, why=why)
    if isinstance(got, int):
        why = f"equal shape but for axis {axis}: {got} values are appended"
        return 1.0, Suggestion(*name, Mode.SHIFT, axis, why=why)
    why = f"axis {axis} has another length: check that the output holds the whole new input"
    return 1.0, Suggestion(*name, Mode.REPLACE, why=why)


def _words(name: str) -> list[str]:
    """Return the words and numbers of a name; `hn` and `cn`, torch's final states, become `h` and `c`."""
    words = [word.lower() for word in _WORD.findall(name)]
    return [word[0] if word in ("hn", "cn") else word for word in words]


def _likeness(output: str, target: str) -> float:
    """Return the similarity of two names in 0 to 1, ignoring words that mark a side of a step."""
    a, b = (frozenset(w for w in _words(name) if w not in _SIDES) for name in (output, target))
    if not a and not b:
        return 1.0
    return len(a & b) / len(a | b)


def _toml(text: str) -> str:
    """Return a TOML basic string: TOML has JSON's escapes, except for the delete character."""
    shown = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in shown)


def render_rollout(model: Model, suggestions: tuple[Suggestion, ...], n_steps: int = 4) -> str:
    """Return a draft of rollout.toml: the suggested feedback, and every other input as a static one.

    Parameters
    ----------
    model : Model
    suggestions : tuple of Suggestion
        Result of `suggest_feedback`, possibly edited.
    n_steps : int, optional
        Number of calls of the model.
    """
    inputs, outputs = _model_ports(model)
    fed = {s.input for s in suggestions}
    lines = [
        "# Draft from names and shapes: check every line.",
        "version = 1",
        "",
        "[rollout]",
        f"steps = {n_steps}",
    ]
    if _has_batch_axis(inputs, outputs):
        lines.append("batch_axis = 0")
    else:
        lines.append("# batch_axis = 0  # when the first axis of every input and output is the batch")
    for suggestion in suggestions:
        lines += ["", *_feedback_lines(suggestion)]
    for port in inputs:
        if port.name not in fed:
            lines += [
                "",
                "[[static]]  # or [[forcing]] when it changes with the step",
                f"input = {_toml(port.name)}",
            ]
    names = ", ".join(_toml(name) for name in _trajectory(outputs))
    lines += ["", "[trajectory]  # what is judged: recurrent state left out", f"outputs = [{names}]"]
    return "\n".join(lines) + "\n"


def _feedback_lines(suggestion: Suggestion) -> list[str]:
    lines = [
        f"[[feedback]]  # {one_line(suggestion.why)}",
        f"output = {_toml(suggestion.output)}",
        f"input = {_toml(suggestion.input)}",
        f'mode = "{suggestion.mode}"',
    ]
    if suggestion.mode is Mode.SHIFT and suggestion.axis is not None:
        lines.append(f"axis = {suggestion.axis}")
    if suggestion.select is not None:
        axis, start, stop = suggestion.select
        lines.append(f"select = {{ axis = {axis}, start = {start}, stop = {stop} }}")
    if suggestion.expand and suggestion.axis is not None:
        lines.append(f"expand = [{suggestion.axis}]")
    return lines


def _has_batch_axis(inputs: list[_Port], outputs: list[_Port]) -> bool:
    """Return whether the first axis of all ports has the same symbolic length."""
    firsts = {port.dims[0] if port.dims else None for port in (*inputs, *outputs)}
    return len(firsts) == 1 and isinstance(next(iter(firsts)), str)


def _trajectory(outputs: list[_Port]) -> list[str]:
    floats = [port.name for port in outputs if port.element in _FLOATS] or [port.name for port in outputs]
    judged = [name for name in floats if not _STATES & set(_words(name))]
    return judged or floats
