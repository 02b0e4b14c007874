"""Cut contexts from a table: windows of `context` rows, followed by `horizon` rows of truth.

    rows        a ─────────────────────────────── b          the split [a, b)
    window      [start, start + context)[… + horizon)        start = a, a + stride, …

Test windows lie in the split together with their horizon. For other splits only the context must lie there: they serve
scoring, which compares the model with itself; their truth is attached when all of it lies in the split.

Layout `series`: each column is a separate series, [batch, context]; `table`: [batch, context, column].

If the input is a forcing, it gets a window for every step, each as many rows later as a call gives. After the context
only what `known` names is read from the table, and calendars; any other feature keeps its last value.
Never imports onnxruntime.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts, cast, check_finite, context_shape, std, thin
from tqs_onnx.rollout.contexts.features import Features, read_features, sources
from tqs_onnx.rollout.contexts.table import DataTable
from tqs_onnx.rollout.spec.completion import rest_axes, time_axis, value_axis, values_per_call, wired
from tqs_onnx.rollout.spec.scaling import of_column, of_target
from tqs_onnx.rollout.spec.signature import Dim, ModelSignature, Port
from tqs_onnx.rollout.spec.spec import Fill, RolloutSpec
from tqs_onnx.rollout.spec.windows_table import TableWindows, Windows
from tqs_passes.errors import InputError

Rows = tuple[int | float, int | float]


@dataclass(frozen=True, slots=True)
class _Cut:
    """What windows are cut from: the values that the input and the output hold, row by row, and the rows themselves."""

    spec: RolloutSpec
    windows: Windows
    port: Port
    inputs: Features
    outputs: Features
    path: Path

    @property
    def context(self) -> int:
        """Rows of a context."""
        return self.windows.context or 1

    @property
    def horizon(self) -> int:
        """Rows of truth."""
        return self.windows.horizon or 1

    @property
    def is_forced(self) -> bool:
        """Whether the input gets a window for every step."""
        return self.port.name in self.spec.forced

    def ahead(self, per_call: int) -> int:
        """Return the rows after a context that the windows of all steps read."""
        most = (self.spec.rollout.steps - 1) * per_call if self.is_forced else 0
        return max((most if r is None else min(r, most) for r in self.inputs.reach), default=0)

    def past(self, start: int, steps: int, per_call: int) -> NDArray[np.float64]:
        """Return the windows of all steps as [step, row, feature].

        A feature that is not known after the context keeps its last known value.
        """
        last = start + self.context - 1
        reach = np.array([steps * per_call if r is None else r for r in self.inputs.reach])
        rows = start + np.arange(self.context) + per_call * np.arange(steps)[:, None]
        known = np.minimum(rows[..., None], last + reach)
        windows: NDArray[np.float64] = self.inputs.values[known, np.arange(len(reach))]
        return windows

    def future(self, start: int) -> NDArray[np.float64]:
        """Return the truth of a context as [row, target]."""
        return self.outputs.values[start + self.context : start + self.context + self.horizon]


def cut_windows(
    path: Path, spec: RolloutSpec, signature: ModelSignature, *, split: str | None, limit: int | None = None
) -> Contexts:
    """Read a table and cut the contexts of one split; see `load_contexts` for parameters and errors."""
    given = spec.windows
    if given is None:
        raise InputError(
            "a table needs a [windows] section in rollout.toml",
            where=str(path),
            todo="Add one, or give contexts as an .npz",
        )
    if split not in {"train", "validation", "test"}:
        raise InputError(f"unknown split {split!r}", where=str(path), todo="Use train, validation or test")
    spec = wired(spec, signature)
    windows = spec.windows or given
    _check_sources(spec, signature, windows, path)
    is_series = windows.layout == "series"
    table, inputs, outputs, factors = _scaled_features(windows, path)
    special = special_of(windows, path)
    cut = _Cut(spec, windows, signature.input(windows.input), inputs, outputs, path)
    per_call = _per_call(cut, signature)
    start, stop = split_rows(split, rows_of(split, windows, special), len(table.values), path)
    stride = (special.stride if special else None) or windows.stride or 1
    ahead, first = cut.ahead(per_call), start + inputs.lag
    needed = cut.context + max(cut.horizon if split == "test" else 0, ahead)
    starts = list(range(first, stop - needed + 1, stride))
    if not starts:
        raise InputError(
            f"the {split} rows {first}–{stop - 1} are too few: one window needs {needed}",
            where=str(path),
            todo="Widen the split, or shorten context or horizon in [windows]",
        )
    with_truth = starts[-1] + cut.context + cut.horizon <= stop
    n_labels = len(inputs.names) if is_series else 1
    cells = list(itertools.product(starts, range(n_labels)))
    labels = [inputs.names[c] for _, c in cells] if is_series else None
    cells = [cells[i] for i in thin(len(cells), limit, labels)]
    steps = spec.rollout.steps if cut.is_forced else 1
    pasts = np.stack([cut.past(s, steps, per_call)[..., [c] if is_series else slice(None)] for s, c in cells])
    array = _input_array(pasts if cut.is_forced else pasts[:, 0], cut)
    arrays = {windows.input: array}
    arrays |= {f.input: _fill_array(f, len(cells), spec, signature, windows, path) for f in spec.fill}
    futures = np.stack([cut.future(s)[:, [c] if is_series else slice(None)] for s, c in cells])
    length = cut.context + max(cut.horizon if with_truth else 0, ahead)
    return Contexts(
        arrays={p.name: arrays[p.name] for p in signature.inputs},
        truth={o: _truth(futures, o, cut, signature) for o in spec.trajectory.outputs} if with_truth else {},
        series=tuple(inputs.names[c] for _, c in cells) if is_series else None,
        rows=np.array([[s - inputs.lag, s + length] for s, _ in cells], np.int64),
        source=str(path),
        scales=_scales(cut, special, len(table.values)),
        columns=None if is_series else outputs.names,
        table=table.digest,
        notes=(table.note,),
        factors=factors,
    )


def _scaled_features(
    windows: Windows, path: Path
) -> tuple[DataTable, Features, Features, dict[str, float] | None]:
    """Read the table; return it, what the input and the output hold as they are scaled, and `Contexts.factors`."""
    targets = windows.targets if windows.targets is not None else windows.columns
    table, inputs, outputs = read_features(
        path, windows.columns, targets or (), windows.known, windows.missing
    )
    outputs = outputs if targets is not None else inputs
    if windows.layout == "series" and (inputs.lag or set(inputs.names) - set(table.columns)):
        raise InputError(
            "a series is a plain column: lags and calendar features belong to a table",
            where="rollout.toml windows.columns",
            todo='Set layout = "table", or leave them out',
        )
    if windows.standardise:
        return table, _standardised(inputs), _standardised(outputs), _factors(windows, outputs)
    taken = [of_column(windows, i) for i in range(len(inputs.names))]
    given = [of_target(windows, i) for i in range(len(outputs.names))]
    return table, _by(inputs, taken), _by(outputs, given), _factors(windows, outputs)


def _by(features: Features, numbers: Sequence[tuple[float, float]]) -> Features:
    offsets, widths = (np.array(n) for n in zip(*numbers, strict=True))
    return replace(features, values=(features.values - offsets) / widths)


def _standardised(features: Features) -> Features:
    """Return each feature with mean 0 and deviation 1, and a constant one as 0 (paper, A.11)."""
    known = features.values[features.lag :]
    return replace(features, values=(features.values - known.mean(axis=0)) / _deviations(features))


def _deviations(features: Features) -> NDArray[np.float64]:
    """Return what standardising divides by: the native units in one standardised unit."""
    result: NDArray[np.float64] = features.values[features.lag :].std(axis=0) + 1e-8
    return result


def _factors(windows: Windows, outputs: Features) -> dict[str, float] | None:
    """Return for each variable what turns a difference of the scaled output into one of the table."""
    if windows.standardise:
        return dict(zip(outputs.names, _deviations(outputs).tolist(), strict=True))
    if windows.scaler is None and windows.target_scaler is None:
        return None
    return {name: of_target(windows, i)[1] for i, name in enumerate(outputs.names)}


def _per_call(cut: _Cut, signature: ModelSignature) -> int:
    """Return the rows by which the windows of a forcing move from call to call."""
    n = values_per_call(cut.spec, signature)
    if n is None and cut.is_forced:
        raise InputError(
            f"the time axis of output {cut.spec.trajectory.outputs[0]!r} has no fixed size",
            where="rollout.toml windows",
            todo="Give contexts as an .npz",
        )
    if cut.is_forced and any(
        0 < (r or 0) < (cut.spec.rollout.steps - 1) * (n or 1)
        and sources([name])[0] in (cut.windows.targets or ())
        for name, r in zip(cut.inputs.names, cut.inputs.reach, strict=True)
    ):
        raise InputError(
            "a lag of a target reaches values that the rollout itself forecasts",
            where="rollout.toml windows.columns",
            todo="Roll out fewer steps, or leave the lag out",
        )
    return n or 1


def _check_sources(spec: RolloutSpec, signature: ModelSignature, windows: Windows, path: Path) -> None:
    """Refuse inputs without a source: a table supplies one input, and masks start full of their constant."""
    fills = {f.input for f in spec.fill}
    signature.input(windows.input)
    for port in signature.inputs:
        if port.name not in fills | {windows.input}:
            raise InputError(
                f"a table supplies no values for input {port}",
                where=str(path),
                todo="Give contexts as an .npz",
            )
    if windows.input in fills:
        raise InputError(
            f"windows.input {windows.input!r} is a fill",
            where="rollout.toml",
            todo="Name an input that takes rows of the table",
        )


def special_of(windows: Windows, path: Path) -> TableWindows | None:
    """Return the splits and stride of a file's own, if a `[[windows.table]]` matches its name."""
    return next((t for t in windows.table if fnmatch.fnmatch(path.name, t.match)), None)


def rows_of(split: str, windows: Windows, special: TableWindows | None) -> Rows | None:
    """Return the rows of a split as the spec gives them."""
    own: Rows | None = getattr(special, split) if special else None
    return own if own is not None else getattr(windows, split)


def split_rows(split: str, rows: Rows | None, n: int, path: Path) -> tuple[int, int]:
    """Return the row numbers of a split; if either bound is a float, both are fractions of the table."""
    if rows is None:
        raise InputError(
            f"rollout.toml has no {split} rows for this table", where=str(path), todo=f"Set windows.{split}"
        )
    if any(isinstance(r, float) for r in rows):
        if max(rows) > 1:
            raise InputError(
                f"windows.{split} {list(rows)} has fractions outside 0 to 1",
                where="rollout.toml",
                todo="Give fractions between 0 and 1, or integer row numbers",
            )
        # 1e-9: in floating point 0.7 * 10 is 6.999…
        rows = (int(rows[0] * n + 1e-9), int(rows[1] * n + 1e-9))
    start, stop = int(rows[0]), int(rows[1])
    if not 0 <= start < stop <= n:
        raise InputError(
            f"windows.{split} [{start}, {stop}) does not fit a table of {n} rows",
            where=str(path),
            todo="Change the split, or add a [[windows.table]] for this file",
        )
    return start, stop


def _scales(cut: _Cut, special: TableWindows | None, n: int) -> dict[str, float] | None:
    rows = rows_of("train", cut.windows, special)
    if rows is None:
        return None
    start, stop = split_rows("train", rows, n, cut.path)
    start = max(start, cut.outputs.lag)
    return {name: std(cut.outputs.values[start:stop, i]) for i, name in enumerate(cut.outputs.names)}


def _input_array(pasts: NDArray[np.float64], cut: _Cut) -> NDArray[Any]:
    """Return [context, (step,) row, feature] in the shape and dtype of the input; add and remove axes of 1."""
    port, where = cut.port, str(cut.path)
    lead = pasts.shape[: 2 if cut.is_forced else 1]
    time, features = time_axis(cut.spec, cut.windows, port)
    if time is not None and features is not None and features < time:
        pasts = np.moveaxis(pasts, -1, -2)
    shape = context_shape(cut.spec, port)
    got: tuple[int, ...] = pasts.shape[len(lead) :]
    if cut.windows.layout == "series":
        got = got[:1]
    if shape is not None and not _fits(got, shape):
        if not _fits([g for g in got if g != 1], [d for d in shape if d != 1]):
            raise InputError(
                f"windows of {list(got)} do not fit input {port}",
                where=where,
                todo="Change context, columns or layout in [windows]",
            )
        sizes = iter(g for g in got if g != 1)
        got = tuple(1 if d == 1 else next(sizes) for d in shape)
    result = cast(pasts.reshape(*lead, *got), port, where)
    check_finite(result, f"input {port.name!r}", where)
    return result


def _fits(got: Sequence[int], shape: Sequence[Dim]) -> bool:
    return len(got) == len(shape) and all(
        isinstance(d, str) or d == g for d, g in zip(shape, got, strict=True)
    )


def _fill_array(
    fill: Fill, n: int, spec: RolloutSpec, signature: ModelSignature, windows: Windows, path: Path
) -> NDArray[Any]:
    """Return the initial mask: filled with its value, as long as the context along its axis."""
    port = signature.input(fill.input)
    batch = spec.rollout.batch_axis
    if port.shape is None:
        raise InputError(
            f"the shape of input {port} is unknown", where=str(path), todo="Give contexts as an .npz"
        )
    shape = [
        (windows.context or 1) if axis == fill.axis and isinstance(size, str) else size
        for axis, size in enumerate(port.shape)
        if axis != batch
    ]
    if any(isinstance(size, str) for size in shape):
        raise InputError(
            f"the shape of input {port} is unknown", where=str(path), todo="Give contexts as an .npz"
        )
    return np.full((n, *(int(s) for s in shape)), fill.value, port.dtype)


def _truth(
    futures: NDArray[np.float64], output: str, cut: _Cut, signature: ModelSignature
) -> NDArray[np.float64]:
    """Return [context, time, target] as the trajectory of the output: with its axes after time."""
    port = signature.output(output)
    if port.shape is None or (cut.windows.layout == "table" and cut.windows.targets is None):
        return futures[..., 0] if cut.windows.layout == "series" else futures
    rest = rest_axes(cut.spec, port)
    values = None if cut.windows.layout == "series" else value_axis(cut.spec, port)
    return futures.reshape(*futures.shape[:2], *(futures.shape[2] if a == values else 1 for a in rest))
