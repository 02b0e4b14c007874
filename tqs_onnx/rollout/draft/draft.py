"""Draft the rollout spec of a model that nobody described, with the reasons and what its owner has to say.

The draft always rolls out: where nothing is certain, it is one call with nothing fed back, which is right for every
model, though it shows no growth of errors. `text` writes it as a rollout.toml.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqs_onnx.rollout.draft import names
from tqs_onnx.rollout.draft.behaviour import Behaviour
from tqs_onnx.rollout.draft.cases import cases_of, fill_of
from tqs_onnx.rollout.draft.metadata import declared
from tqs_onnx.rollout.draft.pairs import Pair, Way
from tqs_onnx.rollout.draft.trial import Layout, Trial, try_out
from tqs_onnx.rollout.draft.wiring import Clues, Link, Wiring, wire
from tqs_onnx.rollout.session import Session
from tqs_onnx.rollout.spec.signature import ModelSignature, Port
from tqs_onnx.rollout.spec.spec import RolloutSpec, spec_of
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.graph import scope
from tqs_passes.survey.ends import initial_states, made_by

#: Calls of a model whose states are fed back.
_STEPS = 16
_FEWEST = 4
#: An output of more channels is judged as one variable.
_MOST_VARIABLES = 32
_CASES = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the whole spec that each answer would give.

    Parameters
    ----------
    about : str
        Name of the output.
    text : str
    answers : tuple of RolloutSpec
    """

    about: str
    text: str
    answers: tuple[RolloutSpec, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A spec that fits a model, why it is so, and what is left to say.

    Parameters
    ----------
    spec : RolloutSpec
    reasons : dict of str to str
        Why each input is what it is, by its name, and why `steps` and `batch_axis` are.
    questions : tuple of Asked
        What the owner has to say.
    remarks : tuple of str
        What is not fed back though its shape would allow it, and what calling the model showed.
    sizes : dict of str to tuple of int
        Shape of each input of one case, as the model was called; empty if it was not.
    """

    spec: RolloutSpec
    reasons: dict[str, str]
    questions: tuple[Asked, ...]
    remarks: tuple[str, ...]
    sizes: dict[str, tuple[int, ...]]


def draft(
    model: Model, signature: ModelSignature, metadata: Mapping[str, str], session: Session | None
) -> Draft:
    """Return a draft.

    Parameters
    ----------
    model : Model
    signature : ModelSignature
    metadata : mapping of str to str
        Metadata of the file.
    session : Session or None
        The model, loaded; None: names and shapes only.
    """
    remarks: list[str] = []
    trial: Trial | None = None
    if session is not None:
        try:
            trial = try_out(session, fill_of(model))
        except InputError as error:
            remarks.append(f"trial calls failed, so names and declared shapes decide: {error.what}")
    layout = trial.layout if trial is not None else _declared_layout(signature)
    behaviour = None if trial is None else Behaviour(trial, cases_of(model, signature, layout, _CASES))
    wiring = scope.wire(model.proto.graph)
    floats = {p.name for p in (*signature.inputs, *signature.outputs) if p.dtype.kind == "f"}
    same = {p.name: layout.batch.get(p.name) for p in (*signature.inputs, *signature.outputs)}
    clues = Clues(
        inputs={
            p.name: layout.cores[p.name] for p in signature.inputs if p.name in floats & set(layout.cores)
        },
        outputs={
            p.name: layout.cores[p.name] for p in signature.outputs if p.name in floats & set(layout.cores)
        },
        free=layout.free,
        bounded=made_by(wiring),
        initial=initial_states(wiring),
        apart=frozenset(
            (o.name, i.name)
            for o in signature.outputs
            for i in signature.inputs
            if same[o.name] != same[i.name]
        ),
        declared=declared(metadata),
        behaviour=behaviour,
    )
    found = wire(clues)
    return _assembled(signature, layout, found, clues, [*remarks, *layout.notes, *found.remarks])


def _declared_layout(signature: ModelSignature) -> Layout:
    """Return the layout that declared shapes suggest; axes of one symbol get one size, others another."""
    ports = (*signature.inputs, *signature.outputs)
    shapes = {p.name: p.shape for p in ports if p.shape is not None}
    firsts = {shape[0] if shape else None for shape in shapes.values()}
    batched = len(shapes) == len(ports) and all(isinstance(size, str) for size in firsts)
    symbols = dict.fromkeys(size for shape in shapes.values() for size in shape if isinstance(size, str))
    sizes = {symbol: 64 + 7 * index for index, symbol in enumerate(symbols)}
    cores = {
        name: tuple(
            sizes[size] if isinstance(size, str) else size for size in (shape[1:] if batched else shape)
        )
        for name, shape in shapes.items()
    }
    free = frozenset(
        n for n, s in shapes.items() if any(isinstance(d, str) for d in (s[1:] if batched else s))
    )
    return Layout(dict.fromkeys(shapes, 0) if batched else {}, cores, free)


def _assembled(
    signature: ModelSignature, layout: Layout, found: Wiring, clues: Clues, remarks: list[str]
) -> Draft:
    spec, reasons = _spec(signature, layout, found.links, clues)
    if spec.rollout.batch_axis is None and layout.batch:
        remarks.append("not all that is fed or judged has its batch on one axis, so a call takes one context")
    questions = tuple(
        Asked(
            q.about, q.text, tuple(_answered(signature, layout, found.links, clues, pair) for pair in q.pairs)
        )
        for q in found.questions
    )
    sizes = {p.name: layout.cores[p.name] for p in signature.inputs if p.name in layout.cores}
    return Draft(spec, reasons, questions, tuple(remarks), sizes)


def _answered(
    signature: ModelSignature, layout: Layout, links: tuple[Link, ...], clues: Clues, pair: Pair
) -> RolloutSpec:
    """Return the spec in which one more pair is fed back."""
    return _spec(signature, layout, (*links, Link(pair, "an answer")), clues)[0]


def _spec(
    signature: ModelSignature, layout: Layout, links: tuple[Link, ...], clues: Clues
) -> tuple[RolloutSpec, dict[str, str]]:
    """Return the spec with these links, and the reasons for its tables."""
    reasons = {link.pair.input: link.why for link in links}
    table: dict[str, Any] = {"version": 1, "rollout": {"steps": 1}}
    feedback = [feedback_table(link.pair, layout) for link in links]
    forcing: list[dict[str, Any]] = [{"input": x.pair.input} for x in links if x.pair.feature is not None]
    static: list[dict[str, Any]] = []
    fed = {link.pair.input for link in links}
    given = clues.declared.given if clues.declared is not None else frozenset[str]()
    fixed = clues.declared.fixed if clues.declared is not None else frozenset[str]()
    for port in signature.inputs:
        if port.name in fed:
            continue
        kind, reasons[port.name] = _outside(port, bool(links), given, fixed)
        (forcing if kind == "forcing" else static).append({"input": port.name})
    outputs, time_axis = _trajectory(signature, layout, links)
    axis = _batch_axis(signature, layout, fed, {link.pair.output for link in links} | set(outputs))
    if axis is not None:
        table["rollout"]["batch_axis"] = axis
        for entry in (*forcing, *static):
            if entry["input"] not in layout.batch:
                entry["shared"] = True
    table["rollout"]["steps"], reasons["steps"] = _steps(layout, links)
    trajectory: dict[str, Any] = {"outputs": outputs}
    if time_axis is not None:
        trajectory["time_axis"] = time_axis
    cuts = (f["select"] for f in feedback if f["output"] in outputs and "index" in f.get("select", {}))
    cut = next(cuts, None)
    if cut is not None:
        trajectory["select"] = cut
    table |= {"feedback": feedback, "forcing": forcing, "static": static, "trajectory": trajectory}
    table["variable"] = _variables(outputs, layout, time_axis, cut)
    return spec_of(table, where="the draft"), reasons


def feedback_table(pair: Pair, layout: Layout) -> dict[str, Any]:
    """Return the `[[feedback]]` table of a pair; its axes count the batch."""
    table: dict[str, Any] = {"output": pair.output, "input": pair.input}
    table["mode"] = "replace" if pair.axis is None else "shift"
    if pair.axis is not None:
        table["axis"] = layout.axis(pair.input, pair.axis)
    if pair.way is Way.GROWN:
        table["mode"] = "grow"
    if pair.select is not None:
        axis, start, stop = pair.select
        part = {"index": start} if start == stop else {"start": start}
        if stop > start >= 0:
            part["stop"] = stop
        table["select"] = {"axis": layout.axis(pair.output, axis), **part}
    if pair.expand is not None:
        table["expand"] = layout.axis(pair.input, pair.expand)
    if pair.feature is not None:
        table["into"] = {"axis": layout.axis(pair.input, 1), "index": pair.feature}
    return table


def _outside(port: Port, rolls: bool, given: frozenset[str], fixed: frozenset[str]) -> tuple[str, str]:
    """Return whether an input that is not fed back is a forcing or static, and why."""
    if not rolls:
        return "static", "one call: nothing is fed back"
    if port.name in given:
        return "forcing", "the metadata says that it is given for every step"
    if port.name in fixed or names.is_fixed(port.name):
        return "static", "its name says that it does not change"
    if names.is_given(port.name):
        return "forcing", "its name says that it is given for every step"
    if port.dtype.kind != "f" and not port.shape:
        return "static", "a single number that is no measurement"
    if port.dtype.kind == "f":
        return (
            "forcing",
            "nothing computes its next value; [[static]] if it does not change during a forecast",
        )
    return "static", "not floating-point; [[forcing]] if it changes with the step"


def _trajectory(
    signature: ModelSignature, layout: Layout, links: tuple[Link, ...]
) -> tuple[list[str], int | None]:
    """Return the outputs that are judged, and their time axis."""
    floats = [p.name for p in signature.outputs if p.dtype.kind == "f"] or [p.name for p in signature.outputs]
    states = {link.pair.output for link in links if link.state}
    judged = [name for name in floats if name not in states] or floats
    series = [
        link.pair
        for link in links
        if not link.state and link.pair.output in judged and _is_block(link.pair, layout)
    ]
    if not series:
        return judged, None
    pair = series[0]
    core = _time_axis(pair)
    axis, length = layout.axis(pair.output, core), layout.cores[pair.output][core]
    alike = [
        name
        for name in judged
        if len(layout.cores[name]) > core
        and layout.cores[name][core] == length
        and layout.axis(name, core) == axis
    ]
    return alike, axis


def _is_block(pair: Pair, layout: Layout) -> bool:
    """Return whether a call gives several times along an axis of the output."""
    appended = pair.axis is not None and pair.expand != pair.axis
    longer = pair.select is not None and pair.select[1] != pair.select[2]
    return appended or longer


def _time_axis(pair: Pair) -> int:
    """Return the time axis of the output of a block."""
    if pair.select is not None and pair.select[1] != pair.select[2]:
        return pair.select[0]
    assert pair.axis is not None
    return pair.axis if pair.expand is None or pair.expand > pair.axis else pair.axis - 1


def _batch_axis(signature: ModelSignature, layout: Layout, fed: set[str], outputs: set[str]) -> int | None:
    """Return the batch axis that all arrays share but inputs that could be marked as shared; None if they do not.

    A model that takes one case a call although it declares any number has none either: calls must not be put together.
    """
    if layout.largest is not None:
        ports = [p for p in signature.inputs if p.shape and p.name in layout.batch]
        if any(isinstance((p.shape or ())[layout.batch[p.name]], str) for p in ports):
            return None
    needed = {layout.batch.get(name) for name in (*fed, *outputs)}
    others = {layout.batch[p.name] for p in signature.inputs if p.name in layout.batch}
    axes = needed | others
    return axes.pop() if len(axes) == 1 else None


def _steps(layout: Layout, links: tuple[Link, ...]) -> tuple[int, str]:
    if not links:
        return 1, "nothing is fed back"
    blocks = [link.pair for link in links if link.pair.axis is not None and not link.state]
    if not blocks:
        return _STEPS, "a first choice: take the horizon that you forecast"
    pair = blocks[0]
    assert pair.axis is not None
    window = layout.cores[pair.input][pair.axis]
    new = 1 if not _is_block(pair, layout) else layout.cores[pair.output][_time_axis(pair)]
    steps = min(max(math.ceil(window / new), _FEWEST), _STEPS)
    return steps, f"{new} new values a call, {window} in the window: take the horizon that you forecast"


def _variables(
    outputs: list[str], layout: Layout, time_axis: int | None, cut: dict[str, int] | None
) -> list[dict[str, Any]]:
    """Return a variable for each channel of each output, and one for an output without channels."""
    tables: list[dict[str, Any]] = []
    for name in outputs:
        axis = _channel_axis(name, layout, {time_axis, None if cut is None else cut["axis"]})
        if axis is None:
            tables.append({"name": name, "output": name})
            continue
        size = _size(name, layout, axis)
        tables += [{"name": f"{name}_{k}", "output": name, "axis": axis, "index": k} for k in range(size)]
    return tables if any("axis" in t for t in tables) else []


def _channel_axis(name: str, layout: Layout, taken: set[int | None]) -> int | None:
    """Return the axis of an output along which its channels lie: the last, of fields the shortest of first and last."""
    core = layout.cores.get(name)
    if core is None:
        return None
    axes = [layout.axis(name, k) for k in range(len(core))]
    left = [axis for axis in axes if axis not in taken]
    if not left:
        return None
    ends = [left[-1]] if len(left) < 3 else [left[0], left[-1]]
    axis = min(ends, key=lambda a: _size(name, layout, a))
    return axis if 1 < _size(name, layout, axis) <= _MOST_VARIABLES else None


def _size(name: str, layout: Layout, axis: int) -> int:
    batch = layout.batch.get(name)
    return layout.cores[name][axis if batch is None or axis < batch else axis - 1]
