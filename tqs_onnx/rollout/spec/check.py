"""Check a rollout spec against a model: every input is fed exactly once, and every fed array can fit.

Only what both declare is compared: symbolic dimensions and unknown ranks are left to the rollout, which checks the
actual shapes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from tqs_onnx.rollout.spec.fit import check_feedback, check_fills, cut_shape
from tqs_onnx.rollout.spec.signature import Dim, ModelSignature, Port, close_match
from tqs_onnx.rollout.spec.spec import Cut, Feedback, RolloutSpec
from tqs_passes.errors import InputError


def check_spec(spec: RolloutSpec, signature: ModelSignature) -> None:
    """Check that the spec fits the model.

    Parameters
    ----------
    spec : RolloutSpec
    signature : ModelSignature
        Signature of the user's model (no weights exposed as inputs).

    Raises
    ------
    InputError
        An input or output is unknown, an input is fed by no table or by two, an axis does not exist, or the
        rank, sizes or type of a feedback cannot fit; the message names the table and what to do.
    """
    _check_names(spec, signature)
    _check_coverage(spec, signature)
    _check_batch(spec, signature)
    _check_flipped(spec, signature)
    for index, feedback in enumerate(spec.feedback):
        check_feedback(feedback, spec, signature, f"rollout.toml feedback[{index}]")
    check_fills(spec, signature)
    _check_trajectory(spec, signature)
    _check_variables(spec, signature)
    _check_steps(spec, signature)


def unjudged(spec: RolloutSpec, signature: ModelSignature) -> tuple[str, ...]:
    """Return a note for each trajectory output that `[[variable]]` covers only in part: the rest is not judged."""
    notes: list[str] = []
    for output in spec.trajectory.outputs if spec.variable else ():
        named = [v for v in spec.variable if v.output == output]
        if not named:
            notes.append(f"no [[variable]] names output {output!r}: it is not judged")
        axes = {v.axis for v in named}
        shape = signature.output(output).shape
        if len(axes) != 1 or None in axes or shape is None:
            continue
        (axis,) = axes
        size = shape[axis] if axis is not None and axis < len(shape) else None
        n_named = len({v.index for v in named})
        if isinstance(size, int) and n_named < size:
            notes.append(
                f"[[variable]] names {n_named} of {size} parts of {output!r}: the others are not judged"
            )
    return tuple(notes)


def _check_names(spec: RolloutSpec, signature: ModelSignature) -> None:
    inputs = [p.name for p in signature.inputs]
    outputs = [p.name for p in signature.outputs]
    named = [("input", t.input, f"feedback[{i}].input") for i, t in enumerate(spec.feedback)]
    named += [("output", t.output, f"feedback[{i}].output") for i, t in enumerate(spec.feedback)]
    named += [("input", t.input, f"forcing[{i}].input") for i, t in enumerate(spec.forcing)]
    named += [("input", t.input, f"static[{i}].input") for i, t in enumerate(spec.static)]
    named += [("input", t.input, f"fill[{i}].input") for i, t in enumerate(spec.fill)]
    named += [("input", t.input, f"input[{i}].input") for i, t in enumerate(spec.input)]
    named += [("output", name, "trajectory.outputs") for name in spec.trajectory.outputs]
    named += [("output", t.output, f"variable[{i}].output") for i, t in enumerate(spec.variable)]
    if spec.windows is not None:
        named.append(("input", spec.windows.input, "windows.input"))
    if spec.fields is not None:
        named += [("input", f.input, f"fields.input[{i}].input") for i, f in enumerate(spec.fields.input)]
    for kind, name, key in named:
        known = inputs if kind == "input" else outputs
        if name not in known:
            todo = close_match(name, known) or f"Its {kind}s are: " + ", ".join(known)
            raise InputError(f"the model has no {kind} {name!r}", where=f"rollout.toml {key}", todo=todo)


def _check_coverage(spec: RolloutSpec, signature: ModelSignature) -> None:
    for port in signature.inputs:
        if port.name not in spec.inputs:
            raise InputError(
                f"nothing feeds the model input {port}",
                where="rollout.toml",
                todo=f'Add [[feedback]], [[forcing]], [[static]] or [[fill]] with input = "{port.name}"',
            )
    for kind, tables in (
        ("forcing", spec.forcing),
        ("static", spec.static),
        ("fill", spec.fill),
        ("input", spec.input),
    ):
        for name, count in Counter(t.input for t in tables).items():
            if count > 1:
                raise InputError(
                    f"input {name!r} has two [[{kind}]] tables", where="rollout.toml", todo="Keep one"
                )
    fed = {t.input for t in spec.feedback}
    kinds = {
        "feedback": fed,
        "forcing": set(spec.forced),
        "static": {t.input for t in spec.static},
        "fill": {t.input for t in spec.fill},
    }
    for (first, one), (second, other) in itertools.combinations(kinds.items(), 2):
        for name in sorted(one & other):
            partial = all(t.into is not None for t in spec.feedback if t.input == name)
            if {first, second} == {"feedback", "forcing"} and partial:
                continue
            todo = "Keep one"
            if {first, second} == {"feedback", "forcing"}:
                todo = "Keep one, or name with into the part of the input that the feedback writes"
            raise InputError(
                f"input {name!r} is both [[{first}]] and [[{second}]]", where="rollout.toml", todo=todo
            )
    for name in sorted(fed):
        _check_parts(name, [t for t in spec.feedback if t.input == name])


def _check_parts(name: str, tables: list[Feedback]) -> None:
    """Refuse several feedbacks of one input unless they write parts of one axis that do not overlap."""
    if len(tables) < 2:
        return
    parts = [t.into for t in tables if t.into is not None]
    if len(parts) < len(tables):
        raise InputError(
            f"two [[feedback]] tables write input {name!r}",
            where="rollout.toml",
            todo="Keep one, or give each of them an into part",
        )
    spans = sorted(_span(p) for p in parts)
    overlap = any(end > start for (_, end), (start, _) in itertools.pairwise(spans))
    if len({p.axis for p in parts}) > 1 or spans[0][0] < 0 or overlap:
        raise InputError(
            f"the into parts of the feedbacks of input {name!r} overlap or lie on different axes",
            where="rollout.toml",
            todo="Give separate ranges of one axis, counted from its start",
        )


def _span(part: Cut) -> tuple[int, float]:
    start, stop = part.bounds
    return start, float("inf") if stop is None else stop


def _check_batch(spec: RolloutSpec, signature: ModelSignature) -> None:
    axis = spec.rollout.batch_axis
    if axis is None:
        if spec.shared:
            raise InputError(
                "shared marks an input without a batch axis, but the whole model has no batch axis",
                where="rollout.toml",
                todo="Remove shared, or set rollout.batch_axis",
            )
        return
    outputs = {t.output for t in spec.feedback} | set(spec.trajectory.outputs)
    ports = [p for p in signature.inputs if p.name not in spec.shared]
    ports += [p for p in signature.outputs if p.name in outputs]
    sizes: dict[int, Port] = {}
    for port in ports:
        if port.shape is None:
            continue
        if axis >= len(port.shape):
            raise InputError(
                f"{port} has no axis {axis}",
                where="rollout.toml rollout.batch_axis",
                todo="Choose another axis or remove batch_axis; mark an input without it as shared = true",
            )
        size = port.shape[axis]
        if isinstance(size, int):
            sizes[size] = port
    _check_batch_name(ports, axis)
    if len(sizes) > 1:
        one, other = list(sizes.values())[:2]
        raise InputError(
            f"{one} and {other} differ in the batch axis {axis}",
            where="rollout.toml rollout.batch_axis",
            todo="Choose another axis or remove batch_axis; mark an input without it as shared = true",
        )


def _check_batch_name(ports: Sequence[Port], axis: int) -> None:
    """Refuse an array whose batch, identified by its name, lies on another axis than in the others."""
    shapes = {port.name: port.shape or () for port in ports}
    here = {size for shape in shapes.values() for size in shape[axis : axis + 1]}
    names = {size for size in here if isinstance(size, str) and size not in ("", "?")}
    for port in ports:
        shape = shapes[port.name]
        elsewhere = next((i for i, size in enumerate(shape) if size in names), None)
        if elsewhere is not None and shape[axis] not in names:
            raise InputError(
                f"{port} has its batch {shape[elsewhere]!r} on axis {elsewhere}, others have it on axis {axis}",
                where="rollout.toml rollout.batch_axis",
                todo="Remove batch_axis (one context per call), or export the model with the batch on one axis",
            )


def _check_steps(spec: RolloutSpec, signature: ModelSignature) -> None:
    """Refuse several steps of a rollout in which nothing changes from one step to the next."""
    steps = spec.rollout.steps
    if steps == 1 or spec.feedback or spec.forcing or spec.fill:
        return
    alike = [
        (one.name, other.name)
        for one in signature.outputs
        for other in signature.inputs
        if one.dtype == other.dtype and one.shape is not None and one.shape == other.shape
    ]
    pair = f'output = "{alike[0][0]}" and input = "{alike[0][1]}"' if alike else "an output and its input"
    raise InputError(
        f"nothing is fed back, so all {steps} steps would be equal",
        where="rollout.toml rollout.steps",
        todo=f"Set steps = 1, or add a [[feedback]] with {pair}",
    )


def _check_flipped(spec: RolloutSpec, signature: ModelSignature) -> None:
    for feedback in spec.feedback if spec.rollout.flip_invariant else ():
        port = signature.input(feedback.input)
        if port.dtype.kind in "bu":
            raise InputError(
                f"flip_invariant negates states, but {port} cannot be negative",
                where="rollout.toml rollout.flip_invariant",
                todo="Remove flip_invariant",
            )


def _check_trajectory(spec: RolloutSpec, signature: ModelSignature) -> None:
    trajectory, where = spec.trajectory, "rollout.toml trajectory"
    dropped = {c.axis for c in trajectory.select if c.index is not None}
    if spec.rollout.batch_axis is not None and spec.rollout.batch_axis in {c.axis for c in trajectory.select}:
        raise InputError("select cuts the batch axis", where=where, todo="Select another axis")
    if trajectory.time_axis is not None and trajectory.time_axis in dropped | {spec.rollout.batch_axis}:
        raise InputError(
            f"time_axis {trajectory.time_axis} is the batch axis, or select removes it",
            where=where,
            todo="Choose another time_axis: axes count in the ONNX output",
        )
    for name in trajectory.outputs:
        port = signature.output(name)
        if port.shape is None:
            continue
        if trajectory.time_axis is not None and trajectory.time_axis >= len(port.shape):
            raise InputError(
                f"{port} has no axis {trajectory.time_axis}",
                where=f"{where}.time_axis",
                todo="Choose another time_axis",
            )
        shape = cut_shape(trajectory.select, port.shape, f"{where}.select")
        _check_length(spec, port, shape)


def _check_length(spec: RolloutSpec, port: Port, shape: tuple[Dim, ...]) -> None:
    time_axis, length = spec.trajectory.time_axis, spec.rollout.length
    dropped = sum(c.index is not None and c.axis < (time_axis or 0) for c in spec.trajectory.select)
    n: Dim = 1 if time_axis is None else shape[time_axis - dropped]
    if length is not None and isinstance(n, int) and length > n * spec.rollout.steps:
        raise InputError(
            f"{spec.rollout.steps} steps of {port} give fewer values than length {length}",
            where="rollout.toml rollout.length",
            todo=f"Set steps to {-(-length // n)}, or a smaller length",
        )


def _check_variables(spec: RolloutSpec, signature: ModelSignature) -> None:
    taken = {spec.rollout.batch_axis, spec.trajectory.time_axis} | {c.axis for c in spec.trajectory.select}
    names: set[str] = set()
    for index, variable in enumerate(spec.variable):
        where = f"rollout.toml variable[{index}]"
        if variable.name in names:
            raise InputError(f"two variables are called {variable.name!r}", where=where, todo="Rename one")
        names.add(variable.name)
        if variable.output not in spec.trajectory.outputs:
            raise InputError(
                f"output {variable.output!r} is not in the trajectory",
                where=where,
                todo="Add it to trajectory.outputs",
            )
        if variable.axis is None:
            continue
        if variable.axis in taken:
            raise InputError(
                f"axis {variable.axis} is the batch or time axis, or cut by trajectory.select",
                where=where,
                todo="Choose the axis of the ONNX output along which the variables lie",
            )
        shape = signature.output(variable.output).shape
        if shape is not None:
            cut_shape((Cut(axis=variable.axis, index=variable.index),), shape, where)


def fixed_batch(spec: RolloutSpec, signature: ModelSignature) -> int | None:
    """Return the batch size that the model's inputs fix, or None."""
    axis = spec.rollout.batch_axis
    if axis is None:
        return None
    for name in spec.inputs:
        shape = signature.input(name).shape
        if name not in spec.shared and shape is not None and axis < len(shape):
            size = shape[axis]
            if isinstance(size, int):
                return size
    return None
