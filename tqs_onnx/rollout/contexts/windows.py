"""Cut contexts from a table: windows of `context` rows, followed by `horizon` rows of truth.

    rows        a ─────────────────────────────── b          the split [a, b)
    window      [start, start + context)[… + horizon)        start = a, a + stride, …

Test windows lie in the split together with their horizon. For other splits only the context must lie there: they serve
scoring, which compares the model with itself; their truth is attached when all of it lies in the split.

Layout `series`: each column is a separate series, [batch, context]; `table`: [batch, context, column].
Never imports onnxruntime.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts, cast, check_finite, context_shape, std, thin
from tqs_onnx.rollout.contexts.table import DataTable, read_table
from tqs_onnx.rollout.spec.signature import Dim, ModelSignature, Port
from tqs_onnx.rollout.spec.spec import Fill, RolloutSpec, TableWindows, Windows
from tqs_passes.errors import InputError

Rows = tuple[int | float, int | float]


def cut_windows(
    path: Path, spec: RolloutSpec, signature: ModelSignature, *, split: str | None, limit: int | None = None
) -> Contexts:
    """Read a table and cut the contexts of one split; see `load_contexts` for parameters and errors."""
    windows = spec.windows
    if windows is None:
        raise InputError(
            "a table needs a [windows] section in rollout.toml",
            where=str(path),
            todo="Add one, or give contexts as an .npz",
        )
    if split not in {"train", "validation", "test"}:
        raise InputError(f"unknown split {split!r}", where=str(path), todo="Use train, validation or test")
    _check_sources(spec, signature, windows, path)
    table = read_table(path, windows.columns, windows.missing)
    if windows.standardise:
        table = replace(table, values=_standardised(table.values))
    special = next((t for t in windows.table if fnmatch.fnmatch(path.name, t.match)), None)
    n = len(table.values)
    start, stop = _bounds(split, _rows_of(split, windows, special), n, path)
    stride = (special.stride if special else None) or windows.stride
    needed = windows.context + (windows.horizon if split == "test" else 0)
    starts = list(range(start, stop - needed + 1, stride))
    if not starts:
        raise InputError(
            f"the {split} rows {start}–{stop - 1} are too few: one window needs {needed}",
            where=str(path),
            todo="Widen the split, or shorten context or horizon in [windows]",
        )
    with_truth = starts[-1] + windows.context + windows.horizon <= stop
    scales = _scales(table, windows, special, path)
    if windows.layout == "series":
        cells = list(itertools.product(starts, range(len(table.columns))))
        labels = [table.columns[c] for _, c in cells]
        cells = [cells[i] for i in thin(len(cells), limit, labels)]
        pasts = np.stack([table.values[s : s + windows.context, c] for s, c in cells])
        futures = np.stack([_future(table, windows, s)[:, c] for s, c in cells]) if with_truth else None
        series = tuple(table.columns[c] for _, c in cells)
        rows = [s for s, _ in cells]
    else:
        rows = [starts[i] for i in thin(len(starts), limit)]
        pasts = np.stack([table.values[s : s + windows.context] for s in rows])
        futures = np.stack([_future(table, windows, s) for s in rows]) if with_truth else None
        series = None
    length = windows.context + (windows.horizon if with_truth else 0)
    port = signature.input(windows.input)
    arrays = {port.name: _input_array(pasts, port, spec, path)}
    arrays |= {f.input: _fill_array(f, len(rows), spec, signature, windows, path) for f in spec.fill}
    return Contexts(
        arrays={p.name: arrays[p.name] for p in signature.inputs},
        truth={}
        if futures is None
        else {o: _truth(futures, o, spec, signature) for o in spec.trajectory.outputs},
        series=series,
        rows=np.array([[s, s + length] for s in rows], np.int64),
        source=str(path),
        scales=scales,
        columns=None if windows.layout == "series" else table.columns,
        table=table.digest,
        notes=(table.note,),
    )


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each column with mean 0 and deviation 1, and a constant column as 0 (paper, A.11)."""
    result: NDArray[np.float64] = (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-8)
    return result


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
    if windows.input in spec.forced | fills:
        raise InputError(
            f"windows.input {windows.input!r} is a forcing or a fill",
            where="rollout.toml",
            todo="Name an input that is a state",
        )


def _rows_of(split: str, windows: Windows, special: TableWindows | None) -> Rows | None:
    own: Rows | None = getattr(special, split) if special else None
    return own if own is not None else getattr(windows, split)


def _bounds(split: str, rows: Rows | None, n: int, path: Path) -> tuple[int, int]:
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


def _scales(
    table: DataTable, windows: Windows, special: TableWindows | None, path: Path
) -> dict[str, float] | None:
    rows = _rows_of("train", windows, special)
    if rows is None:
        return None
    start, stop = _bounds("train", rows, len(table.values), path)
    return {name: std(table.values[start:stop, i]) for i, name in enumerate(table.columns)}


def _future(table: DataTable, windows: Windows, start: int) -> NDArray[np.float64]:
    return table.values[start + windows.context : start + windows.context + windows.horizon]


def _input_array(pasts: NDArray[np.float64], port: Port, spec: RolloutSpec, path: Path) -> NDArray[Any]:
    """Return [context, time] or [context, time, column] in the shape and dtype of the input; add axes of 1."""
    shape = context_shape(spec, port)
    got = pasts.shape[1:]
    if shape is not None and not _fits(got, shape):
        if not _fits([g for g in got if g != 1], [d for d in shape if d != 1]):
            raise InputError(
                f"windows of {list(got)} do not fit input {port}",
                where=str(path),
                todo="Change context, columns or layout in [windows]",
            )
        sizes = iter(g for g in got if g != 1)
        got = tuple(1 if d == 1 else next(sizes) for d in shape)
    result = cast(pasts.reshape(len(pasts), *got), port, str(path))
    check_finite(result, f"input {port.name!r}", str(path))
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
        windows.context if axis == fill.axis and isinstance(size, str) else size
        for axis, size in enumerate(port.shape)
        if axis != batch
    ]
    if any(isinstance(size, str) for size in shape):
        raise InputError(
            f"the shape of input {port} is unknown", where=str(path), todo="Give contexts as an .npz"
        )
    return np.full((n, *(int(s) for s in shape)), fill.value, port.dtype)


def _truth(
    futures: NDArray[np.float64], output: str, spec: RolloutSpec, signature: ModelSignature
) -> NDArray[np.float64]:
    """Add the axes of 1 to [context, time] that the trajectory of the output has after time."""
    shape = signature.output(output).shape
    if shape is None or spec.windows is None or spec.windows.layout == "table":
        return futures
    dropped = sum(c.index is not None for c in spec.trajectory.select)
    gone = dropped + (spec.rollout.batch_axis is not None) + (spec.trajectory.time_axis is not None)
    return futures.reshape(*futures.shape, *(1,) * (len(shape) - gone))
