"""Complete a spec whose `[windows]` says which columns an input and an output hold: what else follows from the model.

    [b, T, F] → [b, H]       one target among F features: H values a call, appended along time to the target's feature
    [b, T, F] → [b, H, F′]   F′ targets, each appended to its own feature
    [b, T, F] → [b, F′]      one row a call
    [b, F]    → [b, F′]      no time axis: the row is replaced

The other features move on as well: they come from the table (`known`), or keep their last value. So their input is a
forcing, of which the feedback writes the targets. When input and output are scaled differently, the feedback converts:

    input = (width′ · output + offset′ − offset) / width      primes: of the output; not scaled: offset 0, width 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tqs_onnx.rollout.spec.scaling import of_column, of_target
from tqs_onnx.rollout.spec.signature import Dim, ModelSignature, Port, close_match
from tqs_onnx.rollout.spec.spec import Cut, Feedback, Forcing, RolloutSpec, Static, Variable
from tqs_onnx.rollout.spec.windows_table import Windows
from tqs_passes.errors import InputError

_WHERE = "rollout.toml windows"


def wired(spec: RolloutSpec, signature: ModelSignature) -> RolloutSpec:
    """Return the spec with the keys of `[windows]` that follow from the model, and its input fed back.

    A spec that gives them, or feeds the input itself, stays as it is.

    Raises
    ------
    InputError
        Something does not follow from the model; the message names the key to set.
    """
    if spec.windows is None:
        return spec
    port = _known_rank(signature, spec.windows.input)
    windows = _completed(spec, spec.windows, port, signature)
    spec = spec if windows == spec.windows else spec.model_copy(update={"windows": windows})
    if windows.targets is not None and not spec.variable:
        spec = spec.model_copy(update={"variable": _variables(spec, windows, signature)})
    if windows.input in spec.inputs:
        return spec
    if spec.rollout.steps == 1:
        return spec.model_copy(update={"static": (*spec.static, Static(input=windows.input))})
    feedback, whole = _feedback(spec, windows, port, signature)
    forcing = spec.forcing if whole else (*spec.forcing, Forcing(input=windows.input))
    return spec.model_copy(update={"feedback": (*spec.feedback, *feedback), "forcing": forcing})


def time_axis(spec: RolloutSpec, windows: Windows, port: Port) -> tuple[int | None, int | None]:
    """Return (time axis, feature axis) of the input that takes the windows; None: it has no such axis.

    Time comes before the features unless only the other order fits the sizes of `columns` and `context`.
    """
    shape = port.shape or ()
    axes = [a for a in range(len(shape)) if a != spec.rollout.batch_axis]
    wide = [a for a in axes if shape[a] != 1] or axes[:1]
    single = windows.columns is not None and len(windows.columns) == 1
    if windows.layout == "series" or (len(wide) == 1 and single):
        others = [a for a in axes if a != wide[0]]
        return wide[0], others[-1] if others and windows.layout == "table" else None
    if len(axes) == 1:
        return None, axes[0]
    if len(axes) == 2:
        wide = axes
    if len(wide) != 2:
        return (wide[0], None) if len(wide) == 1 else (None, None)
    n = None if windows.columns is None else len(windows.columns)
    turned = _fits((shape[wide[1]], shape[wide[0]]), (windows.context, n))
    if turned and not _fits((shape[wide[0]], shape[wide[1]]), (windows.context, n)):
        return wide[1], wide[0]
    return wide[0], wide[1]


def _fits(sizes: tuple[Dim, Dim], wanted: tuple[int | None, int | None]) -> bool:
    return all(isinstance(s, str) or w is None or s == w for s, w in zip(sizes, wanted, strict=True))


def rest_axes(spec: RolloutSpec, port: Port) -> list[int]:
    """Return the axes of an output besides batch and time that the trajectory keeps."""
    dropped = {c.axis for c in spec.trajectory.select if c.index is not None}
    gone = dropped | {spec.rollout.batch_axis, spec.trajectory.time_axis}
    return [a for a in range(len(port.shape or ())) if a not in gone]


def value_axis(spec: RolloutSpec, port: Port) -> int | None:
    """Return the axis of an output along which its values of one time lie; None if there is one value."""
    wide = [a for a in rest_axes(spec, port) if (port.shape or ())[a] != 1]
    if len(wide) > 1:
        raise InputError(
            f"output {port} has several axes of values",
            where=_WHERE,
            todo="Set trajectory.time_axis, or trajectory.select to cut the others",
        )
    return wide[0] if wide else None


def _known_rank(signature: ModelSignature, name: str) -> Port:
    port = signature.input(name)
    if port.shape is None:
        raise InputError(
            f"the rank of input {port} is unknown", where=_WHERE, todo="Give contexts as an .npz"
        )
    return port


def _completed(spec: RolloutSpec, windows: Windows, port: Port, signature: ModelSignature) -> Windows:
    """Return the table with layout, context, horizon and stride."""
    layout = windows.layout
    if layout is None:
        shape = port.shape or ()
        axes = [a for a in range(len(shape)) if a != spec.rollout.batch_axis and shape[a] != 1]
        layout = "table" if windows.targets is not None or len(axes) > 1 else "series"
    windows = windows if windows.layout else windows.model_copy(update={"layout": layout})
    context = windows.context
    if context is None:
        time, _ = time_axis(spec, windows, port)
        size: Dim = 1 if time is None else (port.shape or ())[time]
        if isinstance(size, str):
            raise InputError(
                f"the time axis of input {port} has no fixed size", where=_WHERE, todo="Set windows.context"
            )
        context = size
    horizon = windows.horizon
    if horizon is None:
        n = values_per_call(spec, signature)
        if n is None:
            raise InputError(
                f"the time axis of output {spec.trajectory.outputs[0]!r} has no fixed size",
                where=_WHERE,
                todo="Set windows.horizon",
            )
        horizon = min(spec.rollout.steps * n, spec.rollout.length or spec.rollout.steps * n)
    found = {"context": context, "horizon": horizon, "stride": windows.stride or max(context, horizon)}
    new = {key: value for key, value in found.items() if getattr(windows, key) is None}
    return windows.model_copy(update=new) if new else windows


def values_per_call(spec: RolloutSpec, signature: ModelSignature) -> int | None:
    """Return the number of time values that a call gives; None if the model does not fix it."""
    time = spec.trajectory.time_axis
    shape = signature.output(spec.trajectory.outputs[0]).shape
    if time is None:
        return 1
    if shape is None or time >= len(shape):
        return None
    size = shape[time]
    for cut in spec.trajectory.select:
        if cut.axis == time and isinstance(size, int):
            size = len(range(size)[slice(*cut.bounds)])
    return size if isinstance(size, int) else None


def _one_output(spec: RolloutSpec, signature: ModelSignature) -> Port:
    name, *others = spec.trajectory.outputs
    if others:
        raise InputError(
            "windows.targets are the columns of one output, but trajectory.outputs names several",
            where=_WHERE,
            todo="Name one output, or give contexts and truth as an .npz",
        )
    port = signature.output(name)
    if port.shape is None:
        raise InputError(f"the rank of output {port} is unknown", where=_WHERE, todo="Give truth as an .npz")
    return port


def _check_count(spec: RolloutSpec, port: Port, n_targets: int) -> int | None:
    """Return the axis of an output that holds the targets; refuse another number of them."""
    axis = value_axis(spec, port)
    size: Dim = 1 if axis is None else (port.shape or ())[axis]
    if isinstance(size, int) and size != n_targets:
        time = spec.trajectory.time_axis is None
        raise InputError(
            f"output {port} holds {size} values a time, but windows.targets names {n_targets}",
            where=_WHERE,
            todo=f"Set trajectory.time_axis = {axis} if they are times, else name a column for each"
            if time and axis is not None
            else "Name a column for each",
        )
    return axis


def _variables(spec: RolloutSpec, windows: Windows, signature: ModelSignature) -> tuple[Variable, ...]:
    port, targets = _one_output(spec, signature), windows.targets or ()
    axis = _check_count(spec, port, len(targets))
    if axis is None or len(targets) == 1:
        return tuple(Variable(name=name, output=port.name) for name in targets)
    return tuple(Variable(name=n, output=port.name, axis=axis, index=i) for i, n in enumerate(targets))


def _feedback(
    spec: RolloutSpec, windows: Windows, port: Port, signature: ModelSignature
) -> tuple[tuple[Feedback, ...], bool]:
    """Return the feedbacks of the windows' input, and whether they write all of it."""
    output = _one_output(spec, signature)
    time, features = time_axis(spec, windows, port)
    values = value_axis(spec, output)
    targets = windows.targets or _all_columns(windows, port, features, output, values)
    if targets is not None:
        _check_count(spec, output, len(targets))
    wire = _Wire(spec, windows, port, output, time, features, values)
    if targets == windows.columns or windows.layout == "series":
        whole = wire.whole(targets)
        if whole is not None:
            return (whole,), True
    if windows.columns is None or targets is None or features is None:
        raise InputError(
            f"the place of each target in input {port} is not known", where=_WHERE, todo="Set windows.columns"
        )
    fed = tuple(wire.part(j, name) for j, name in enumerate(targets) if name in windows.columns)
    if not fed:
        raise InputError(
            f"no target is a column of input {port}: nothing can be fed back",
            where=_WHERE,
            todo=close_match(targets[0], windows.columns) or "Set rollout.steps = 1",
        )
    return fed, set(targets) >= set(windows.columns)


def _all_columns(
    windows: Windows, port: Port, features: int | None, output: Port, values: int | None
) -> tuple[str, ...] | None:
    """Return the columns as targets (None: all of the table), if the output holds as many as the input."""
    if windows.layout == "series":
        return None
    n: Dim = 1 if features is None else (port.shape or ())[features]
    held: Dim = 1 if values is None else (output.shape or ())[values]
    if windows.columns is not None:
        n = len(windows.columns)
    if n != held and isinstance(n, int) and isinstance(held, int):
        raise InputError(
            f"output {output} holds {held} of the {n} features of input {port}",
            where=_WHERE,
            todo="Name in windows.targets the columns that it forecasts, and in windows.columns those of the input",
        )
    return windows.columns


@dataclass(frozen=True, slots=True)
class _Wire:
    """One output and the input that takes it, with the axes of time and of features or values in both."""

    spec: RolloutSpec
    windows: Windows
    port: Port
    output: Port
    time: int | None
    features: int | None
    values: int | None

    @property
    def _places(self) -> dict[int, int | None]:
        """Map the axes of the output that are kept, but for that of values, to axes of the input."""
        batch, call_time = self.spec.rollout.batch_axis, self.spec.trajectory.time_axis
        places: dict[int, int | None] = {} if batch is None else {batch: batch}
        if call_time is not None and self.time is not None:
            places[call_time] = self.time
        return places

    @property
    def _select(self) -> tuple[Cut, ...]:
        """Cut what neither place nor values need; if the input is one row, keep the last row of a call."""
        rest = rest_axes(self.spec, self.output)
        call_time = self.spec.trajectory.time_axis
        last = () if call_time is None or self.time is not None else (Cut(axis=call_time, index=-1),)
        ones = tuple(Cut(axis=a, index=0) for a in rest if a != self.values)
        return (*self.spec.trajectory.select, *ones, *last)

    def _fed(self, select: tuple[Cut, ...], **more: Any) -> Feedback:  # noqa: ANN401  (keys of a table)
        mode: Literal["replace", "shift"] = "replace" if self.time is None else "shift"
        return Feedback(
            output=self.output.name, input=self.port.name, mode=mode, axis=self.time, select=select, **more
        )

    def whole(self, targets: Sequence[str] | None) -> Feedback | None:
        """Return the feedback of all features at once; None if the axes are in another order."""
        places = self._places
        if self.values is not None and self.features is not None:
            places[self.values] = self.features
        order = [places[axis] for axis in sorted(places)]
        if order != sorted(a for a in order if a is not None):
            return None
        n = len(targets) if targets is not None else 1
        if targets is None and self.windows.layout == "table" and self.windows.scaled != "both":
            raise InputError(
                "the feedback needs the numbers of every column", where=_WHERE, todo="Set windows.columns"
            )
        pairs = [self._conversion(i, i) for i in range(n)]
        pairs = pairs[:1] if len(set(pairs)) == 1 else pairs
        return self._fed(
            self._select,
            expand=tuple(a for a in range(len(self.port.shape or ())) if a not in order),
            scale=tuple(scale for scale, _ in pairs),
            offset=tuple(offset for _, offset in pairs),
            along=self.features if len(pairs) > 1 else None,
        )

    def part(self, index: int, name: str) -> Feedback:
        """Return the feedback that writes one target into its feature."""
        place = (self.windows.columns or ()).index(name)
        chosen = () if self.values is None else (Cut(axis=self.values, index=index),)
        given = self._places
        order = [given[axis] for axis in sorted(given)]
        if order != sorted(a for a in order if a is not None):
            raise InputError(
                f"batch and time are in another order in {self.output} than in {self.port}",
                where=_WHERE,
                todo="Export the model with them in one order",
            )
        # The fed array lacks the axis of features: axes are counted without it.
        left = [a for a in range(len(self.port.shape or ())) if a != self.features]
        scale, offset = self._conversion(index, place)
        return self._fed(
            (*self._select, *chosen),
            into=Cut(axis=self.features or 0, index=place),
            expand=tuple(i for i, a in enumerate(left) if a not in order),
            scale=(scale,),
            offset=(offset,),
        )

    def _conversion(self, target: int, column: int) -> tuple[float, float]:
        """Return scale and offset that turn a target as the model gives it into a feature as it takes it."""
        if self.windows.scaled == "both" and self.windows.target_scaler is None:
            return 1.0, 0.0
        offset, width = of_column(self.windows, column)
        theirs, spread = of_target(self.windows, target)
        if (offset, width) == (theirs, spread):
            return 1.0, 0.0
        return spread / width, (theirs - offset) / width
