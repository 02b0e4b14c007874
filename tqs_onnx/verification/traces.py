"""Forecasts of a few evaluation contexts, kept for a look: `traces.npz` beside the manifest.

    variables                [n] names
    fp32/I, file/I, truth/I  [context, time, ...] of variable I, float32, in the trajectory's units; truth if known
    contexts/I               [context] indices among the evaluation contexts
    time_after               number of time values after 0, 1, … steps

NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.archive import DAMAGE, read_named_arrays
from tqs_onnx.rollout.contexts.context_set import Contexts, thin
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.stream import Piece
from tqs_onnx.rollout.variables import by_variable
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import atomic_file

TRACES_NAME = "traces.npz"
#: Contexts kept by default, as long as their forecasts take no more than these bytes.
_USUAL, _USUAL_BYTES = 3, 4 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """The forecasts of one variable, each ``[context, time, …]``.

    Parameters
    ----------
    contexts : tuple of int
    fp32, file : NDArray
    truth : NDArray or None
        As far as it goes in time.
    """

    contexts: tuple[int, ...]
    fp32: NDArray[np.float32]
    file: NDArray[np.float32]
    truth: NDArray[np.float32] | None


class Tracer:
    """Keeps the forecasts of chosen contexts while two rollouts are compared.

    Parameters
    ----------
    spec : RolloutSpec
    contexts : Contexts
    wanted : int or None
        Number of contexts to keep, spread over all; None: three, or as many as take no more than 4 MiB.
    """

    def __init__(self, spec: RolloutSpec, contexts: Contexts, wanted: int | None = None) -> None:
        self._spec, self._contexts, self._wanted = spec, contexts, wanted
        self._rows: list[int] | None = None
        self._after = [0]
        self._parts: dict[tuple[str, str], dict[int, list[NDArray[Any]]]] = {}

    def add(self, nominal: Piece, other: Piece) -> None:
        """Take one step of one chunk of both rollouts."""
        if self._rows is None:
            self._rows = self._chosen(nominal)
        if len(self._after) == nominal.step:
            self._after.append(nominal.time.stop)
        here = [row for row in self._rows if nominal.rows.start <= row < nominal.rows.stop]
        if not here:
            return
        truth = {
            name: self._contexts.truth[name][nominal.rows, nominal.time]
            if name in self._contexts.truth
            else array[:, :0]
            for name, array in nominal.outputs.items()
        }
        for kind, outputs in (("fp32", nominal.outputs), ("file", other.outputs), ("truth", truth)):
            for row in here:
                at = row - nominal.rows.start
                only = {name: array[at : at + 1] for name, array in outputs.items()}
                for name, part in by_variable(only, self._spec, self._contexts, slice(row, row + 1)).items():
                    kept = self._parts.setdefault((name, kind), {}).setdefault(row, [])
                    kept.append(part.astype(np.float32))

    def _chosen(self, piece: Piece) -> list[int]:
        wanted = self._wanted
        if wanted is None:
            wanted = min(_USUAL, _USUAL_BYTES // (12 * piece.n_values * self._spec.rollout.steps))
        if wanted == 0:
            return []
        return thin(self._contexts.n_contexts, wanted, self._contexts.series)

    def arrays(self) -> dict[str, Any]:
        """Return the arrays of the file; empty if no context was kept."""
        names = list(dict.fromkeys(name for name, _ in self._parts))
        if not names:
            return {}
        found: dict[str, Any] = {"variables": np.array(names), "time_after": np.array(self._after)}
        for i, name in enumerate(names):
            found[f"contexts/{i}"] = np.array(sorted(self._parts[name, "fp32"]), np.int64)
            for kind in ("fp32", "file", "truth"):
                rows = self._parts[name, kind]
                joined = [np.concatenate(rows[row], axis=1) for row in sorted(rows)]
                if joined[0].shape[1]:
                    found[f"{kind}/{i}"] = np.concatenate(joined)
        return found

    def write(self, path: Path) -> None:
        """Write the file, or remove an earlier one if no context was kept."""
        arrays = self.arrays()
        if not arrays:
            path.unlink(missing_ok=True)
            return
        with atomic_file(path) as tmp, tmp.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)


def read_traces(path: Path) -> tuple[dict[str, Trace], tuple[int, ...]]:
    """Read `traces.npz`: the trace of every variable, and the number of time values after 0, 1, … steps.

    Raises
    ------
    InputError
        The file cannot be read, or holds no traces.
    """
    try:
        stored = read_named_arrays(path, "Run tqs verify again")
        after = tuple(int(t) for t in stored["time_after"])
        names = np.atleast_1d(stored["variables"])
        traces = {str(name): _trace(stored, str(i), after) for i, name in enumerate(names)}
    except DAMAGE as error:
        raise InputError("holds no traces", where=str(path), todo="Run tqs verify again") from error
    return traces, after


def _trace(stored: Mapping[str, NDArray[Any]], index: str, after: tuple[int, ...]) -> Trace:
    """Return one trace of a file.

    Raises
    ------
    KeyError, ValueError
        Its arrays do not fit each other.
    """
    fp32, file, truth = stored[f"fp32/{index}"], stored[f"file/{index}"], stored.get(f"truth/{index}")
    contexts = tuple(int(c) for c in stored[f"contexts/{index}"])
    found = (fp32, file) if truth is None else (fp32, file, truth)
    alike = all(a.dtype == np.float32 and a.ndim >= 2 and a.shape[2:] == fp32.shape[2:] for a in found)
    if not alike or fp32.shape != file.shape or {len(a) for a in found} != {len(contexts)}:
        raise ValueError("the arrays of a trace differ in shape")
    if list(after) != sorted(after) or not 0 <= after[0] <= after[-1] <= fp32.shape[1]:
        raise ValueError("the steps do not fit the time values")
    return Trace(contexts, fp32, file, truth)
