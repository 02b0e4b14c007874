"""Sums of differences between trajectories, per variable, context and time value, taken as the rollout goes.

For every variable v, context s and time value t, over the values x in space ::

    Σ|Δ|   Σ Δ²   ΣΔ        Δ = the file − FP32,  FP32 − truth,  and the file − truth

Every error that is reported (drift, MAE, RMSE, bias, their parts by step and by context, resamples of contexts) is a
function of these sums, and they do not grow with the size of a state: a field of 721 × 1,440 values becomes three
numbers. On a grid the sums of squares are also taken with latitude weights, and those of anomalies for their
correlation (`Grid`). NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.stream import Piece
from tqs_onnx.rollout.variables import by_variable
from tqs_onnx.verification.grid import Anomaly, anomaly_of, grid_of, weighted_sums
from tqs_onnx.verification.other_outputs import OtherSums
from tqs_passes.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Sums over space of one difference Δ, each float64 ``[context, time]``.

    Parameters
    ----------
    absolute, squared, signed : NDArray
        Σ|Δ|, ΣΔ² and ΣΔ.
    n_space : int
        Number of values that were summed.
    """

    absolute: Floats
    squared: Floats
    signed: Floats
    n_space: int

    @property
    def mae(self) -> Floats:
        """Mean absolute difference per context and time."""
        return self.absolute / self.n_space

    @property
    def mse(self) -> Floats:
        """Mean squared difference per context and time."""
        return self.squared / self.n_space

    @property
    def bias(self) -> Floats:
        """Mean difference per context and time."""
        return self.signed / self.n_space


@dataclass(frozen=True, slots=True, eq=False)
class VariableSums:
    """The sums of one variable.

    Parameters
    ----------
    rows : NDArray
        Its contexts, among all.
    between : Sums
        The other trajectory minus the nominal one.
    nominal, other : Sums or None
        The two minus the truth, as far as the truth goes in time; None without truth.
    nominal_grid, other_grid : Anomaly or None
        Their scores on a grid; None without a grid or truth.
    """

    rows: NDArray[np.int64]
    between: Sums
    nominal: Sums | None = None
    other: Sums | None = None
    nominal_grid: Anomaly | None = None
    other_grid: Anomaly | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Two rollouts compared, and with the truth.

    Parameters
    ----------
    variables : dict of str to VariableSums
    time_after : tuple of int
        Number of time values after 0, 1, … steps.
    n_values : int
        Number of values of one context's trajectory.
    n_contexts : int
    outputs : dict of str to float
        ‖Δ‖ / ‖nominal‖ of every graph output outside the trajectory that was compared; for those that are not of
        floats, the share of values that differ.
    """

    variables: dict[str, VariableSums]
    time_after: tuple[int, ...]
    n_values: int
    n_contexts: int
    outputs: dict[str, float]


@dataclass(slots=True)
class _Cells:
    """Blocks ``[context, time, kind]`` of one variable: a list of steps for every chunk of contexts."""

    chunks: list[list[Floats]] = field(default_factory=list[list[Floats]])

    def add(self, block: Floats, *, first: bool) -> None:
        if first:
            self.chunks.append([])
        self.chunks[-1].append(block)

    def joined(self) -> Floats:
        return np.concatenate([np.concatenate(chunk, 1) for chunk in self.chunks])


class Meter:
    """Takes two rollouts piece by piece, and returns their comparison.

    Parameters
    ----------
    spec : RolloutSpec
    contexts : Contexts
        All contexts of the rollouts.
    truth : bool
        Compare both with the truth of the contexts, too.
    """

    def __init__(self, spec: RolloutSpec, contexts: Contexts, *, truth: bool = True) -> None:
        self._spec, self._contexts = spec, contexts
        self._truth = contexts.truth if truth else {}
        self._grid = grid_of(contexts) if truth else None
        self._rows: dict[str, list[NDArray[np.int64]]] = {}
        self._space: dict[str, int] = {}
        self._cells: dict[tuple[str, str], _Cells] = {}
        self._unknown: dict[str, list[int]] = {}
        self._after = [0]
        self._values: dict[int, int] = {}
        self._means: dict[str, Floats] | None = None
        self._others: dict[str, OtherSums] = {}

    def add(self, nominal: Piece, other: Piece) -> None:
        """Take one step of one chunk of both rollouts.

        Raises
        ------
        InputError
            The truth of an output does not have the shape of its trajectory.
        """
        first = nominal.step == 1
        if len(self._after) == nominal.step:
            self._after.append(nominal.time.stop)
        self._values.setdefault(nominal.step, nominal.n_values)
        for name, array in nominal.other.items():
            self._others.setdefault(name, OtherSums()).add(array, other.other[name], first=first)
        spec, contexts, rows = self._spec, self._contexts, nominal.rows
        truth = self._truth_of(nominal)
        theirs = by_variable(other.outputs, spec, contexts, rows)
        known = by_variable(truth, spec, contexts, rows) if truth else {}
        if truth and self._means is None:
            self._means = self._means_of(nominal)
        means = self._means or {}
        for name, mine in by_variable(nominal.outputs, spec, contexts, rows).items():
            if first:
                self._rows.setdefault(name, []).append(self._indices(name, nominal))
            self._space.setdefault(name, math.prod(mine.shape[2:]))
            a, b = mine.astype(np.float64), theirs[name].astype(np.float64)
            self._cell("between", name).add(_sums(b - a), first=first)
            if name not in known:
                continue
            reference = known[name].astype(np.float64)
            n = reference.shape[1]
            unknown = self._unknown.setdefault(name, [0, 0])
            unknown[0] += int(np.isnan(reference).sum())
            unknown[1] += reference.size
            for kind, forecast in (("nominal", a[:, :n]), ("other", b[:, :n])):
                self._cell(kind, name).add(_sums(forecast - reference), first=first)
                if name in means and self._grid is not None:
                    block = weighted_sums(forecast, reference, means[name], self._grid.weights)
                    self._cell(f"{kind} grid", name).add(block, first=first)

    def result(self) -> Comparison:
        """Return the comparison of everything taken."""
        variables: dict[str, VariableSums] = {}
        for name, rows in self._rows.items():
            space = self._space[name]
            missing, of = self._unknown.get(name, (0, 0))
            known = of > missing
            found = {
                kind: _as_sums(self._cells[kind, name].joined(), space)
                for kind in ("between", *(("nominal", "other") if known else ()))
            }
            grids = {
                kind: anomaly_of(self._cells[f"{kind} grid", name].joined(), space)
                for kind in ("nominal", "other")
                if known and (f"{kind} grid", name) in self._cells
            }
            variables[name] = VariableSums(
                np.concatenate(rows),
                found["between"],
                found.get("nominal"),
                found.get("other"),
                grids.get("nominal"),
                grids.get("other"),
            )
        return Comparison(
            variables,
            tuple(self._after),
            sum(self._values.values()),
            self._contexts.n_contexts,
            {n: v for n, o in self._others.items() if (v := o.result()) is not None},
        )

    def _cell(self, kind: str, name: str) -> _Cells:
        return self._cells.setdefault((kind, name), _Cells())

    def _truth_of(self, piece: Piece) -> dict[str, NDArray[Any]]:
        """Return the truth of a step, as far as it goes in time; none of its values for an output without truth."""
        if not self._truth:
            return {}
        found: dict[str, NDArray[Any]] = {}
        for name, trajectory in piece.outputs.items():
            whole = self._truth.get(name)
            if whole is None:
                found[name] = trajectory[:, :0]
                continue
            if whole.shape[2:] != trajectory.shape[2:]:
                raise InputError(
                    f"truth/{name} is {list(whole.shape)}, the trajectory is "
                    f"[{', '.join(['context', 'time', *map(str, trajectory.shape[2:])])}]",
                    where=self._contexts.source,
                    todo="Store the truth as [context, time, ...], like the trajectory",
                )
            found[name] = whole[piece.rows, piece.time]
        return found

    def _means_of(self, piece: Piece) -> dict[str, Floats]:
        """Return the climatology of every variable on a grid, ``[*space]``."""
        if self._grid is None:
            return {}
        n = piece.rows.stop - piece.rows.start
        given = {
            name: np.broadcast_to(
                self._grid.climatology.get(name, np.zeros(a.shape[2:])), (n, 1, *a.shape[2:])
            )
            for name, a in piece.outputs.items()
        }
        parts = by_variable(given, self._spec, self._contexts, piece.rows)
        n_lat = len(self._grid.weights)
        return {
            name: part[0, 0]
            for name, part in parts.items()
            if len(part) and part.ndim >= 4 and part.shape[-2] == n_lat
        }

    def _indices(self, name: str, piece: Piece) -> NDArray[np.int64]:
        """Return the contexts of a variable in a piece."""
        start, stop = piece.rows.start, piece.rows.stop
        ids = {
            n: np.broadcast_to(
                np.arange(start, stop).reshape(-1, *[1] * (a.ndim - 1)), (len(a), 1, *a.shape[2:])
            )
            for n, a in piece.outputs.items()
        }
        index = by_variable(ids, self._spec, self._contexts, piece.rows)[name]
        return index.reshape(len(index), math.prod(index.shape[1:]))[:, 0].astype(np.int64)


def _sums(delta: Floats) -> Floats:
    flat = delta.reshape(*delta.shape[:2], math.prod(delta.shape[2:]))
    return np.stack([np.abs(flat).sum(2), np.einsum("stx,stx->st", flat, flat), flat.sum(2)], axis=-1)


def _as_sums(cells: Floats, n_space: int) -> Sums:
    return Sums(cells[..., 0], cells[..., 1], cells[..., 2], n_space)


def compared(
    nominal: Iterable[Piece],
    other: Iterable[Piece],
    spec: RolloutSpec,
    contexts: Contexts,
    *,
    truth: bool = True,
) -> Comparison:
    """Return the comparison of two rollouts of the same contexts, taken step by step; see `Meter` for the errors."""
    meter = Meter(spec, contexts, truth=truth)
    for mine, theirs in together(nominal, other):
        meter.add(mine, theirs)
    return meter.result()


def together(*streams: Iterable[Piece]) -> Iterator[tuple[Piece, ...]]:
    """Yield the pieces of several rollouts side by side, whichever chunks each is made of."""
    yield from zip(*streams, strict=True)
