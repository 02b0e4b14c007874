"""Rounds the integer weights of a plan with data, on the grids that the emitter writes.

Weights are rounded in graph order, each with the inputs it receives after all weights before it are rounded. Scales
depend only on the values (`tqs_passes.grids.scales`): of the weight, or for QEP of the corrected weight; GPTQ or GPTAQ
chooses the levels. A weight without a rule is rounded without data, and the reason is recorded.

Inputs that are zero on every calibration context (a Relu that stayed closed) say nothing of their columns: these are
rounded to nearest. The published programs set them to zero, which other contexts punish.

QEP's correction is bounded: the strength is halved until the correction is at most the norm of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rounding.blas import blas_threads
from tqs_onnx.rounding.calibrate import Calibration, Statistics
from tqs_onnx.rounding.compensate import Factor, Matrix, compensate, drift_correction, factor
from tqs_onnx.rounding.qep import PUBLISHED_BLOCK, qep_correct
from tqs_onnx.rounding.recurrent_view import InputView, ResetStateView, StateView
from tqs_onnx.rounding.view import View
from tqs_passes.encode.weight import Form, np_dtype
from tqs_passes.errors import InputError
from tqs_passes.graph_pass import Skip
from tqs_passes.grids.grid import Codes, Grid, broadcast_shape, round_in_place
from tqs_passes.grids.row_tiers import Limits, limits_of
from tqs_passes.grids.scales import DEFAULT_ROUNDING, FreeRounding, free_rounding
from tqs_passes.plan.assigned import fed_weight, round_weight
from tqs_passes.plan.plan import Assignment, Plan

Method = Literal["rtn", "mse", "unbiased", "gptq", "gptaq", "qep"]
METHODS: tuple[Method, ...] = ("rtn", "mse", "unbiased", "gptq", "gptaq", "qep")
DATA_AWARE: tuple[Method, ...] = ("gptq", "gptaq", "qep")

#: Maximum QEP correction, relative to the norm of the weight.
GROWTH_LIMIT = 1.0
_HALVINGS = 8
#: Dampings that recurrent weights try besides the usual one.
_RECURRENT_DAMPS = (0.1, 1.0)
#: Bytes of sums and factors that are kept between weights while nothing is replaced.
MOST_FACTOR_BYTES = 512 << 20
#: Maximum number of weights named in one line.
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class RoundingOptions:
    """How integers are chosen.

    Parameters
    ----------
    method : {"rtn", "mse", "unbiased", "gptq", "gptaq", "qep"}
        The first three round to nearest and differ only in their scales.
    scales : {"rtn", "mse", "unbiased"}
        Scales on which the data-aware methods choose their levels; those were published with `mse` or `rtn` scales.
    damp : float
        Damping of H in GPTQ, GPTAQ and the rounding after QEP's correction.
    act_order : bool
        Round columns in order of decreasing diag H.
    alpha : float
        Strength of GPTAQ's correction.
    qep_damp, qep_strength : float
        Damping and strength of QEP's correction; it was published with 1 and 0.5.
    """

    method: Method = DEFAULT_ROUNDING
    scales: FreeRounding = DEFAULT_ROUNDING
    damp: float = 0.01
    act_order: bool = True
    alpha: float = 0.25
    qep_damp: float = 0.1
    qep_strength: float = 1.0

    @property
    def free(self) -> FreeRounding:
        """How scales are chosen; weights that cannot be rounded with data use it too."""
        return free_rounding(self.method) or self.scales

    @property
    def title(self) -> str:
        """The method and its own settings, as text for the user."""
        match self.method:
            case "gptq":
                return f"gptq on {self.scales} scales"
            case "gptaq":
                return f"gptaq on {self.scales} scales, strength {self.alpha:g}"
            case "qep":
                return (
                    f"qep on {self.scales} scales, damping {self.qep_damp:g}, strength {self.qep_strength:g}"
                )
            case _:
                return self.method


@dataclass(frozen=True, slots=True, eq=False)
class Assigned:
    """A plan with its chosen integers.

    Parameters
    ----------
    plan : Plan
        The plan with `rounding`, error energies and, if there was a prediction, the costs of the actual rounding.
    codes : dict of str to Codes
        Codes by weight; the emitter rounds weights without an entry.
    notes : tuple of Skip
        Weights that were rounded without data, with more damping or with less strength than requested, and why.
    """

    plan: Plan
    codes: dict[str, Codes]
    notes: tuple[Skip, ...]


def told(notes: Sequence[Skip]) -> list[str]:
    """Return one line per reason, with the weights it applies to.

    >>> told([Skip("a", "no rule"), Skip("b", "no rule"), Skip("c", "damped")])
    ['2 weights (a, b): no rule', 'c: damped']
    """
    by_reason: dict[str, list[str]] = {}
    for note in notes:
        by_reason.setdefault(note.why, []).append(note.what)
    lines: list[str] = []
    for why, names in by_reason.items():
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        lines.append(f"{names[0]}: {why}" if len(names) == 1 else f"{len(names)} weights ({shown}): {why}")
    return lines


def round_plan(plan: Plan, calibration: Calibration, options: RoundingOptions) -> Assigned:
    """Choose the integers of every integer tier of a plan.

    Parameters
    ----------
    plan : Plan
    calibration : Calibration
        Calibration of the same model, with every planned weight that reaches an output.
    options : RoundingOptions

    Returns
    -------
    Assigned
        Deterministic for one runtime, thread count and batch size.

    Raises
    ------
    InputError
        The model fails on the calibration contexts.
    """
    work = _Work(calibration, options)
    for a in plan.assignments:
        if a.form is Form.CAST and a.weight in calibration.arrays:
            work.replaced[a.weight] = fed_weight(a, calibration.arrays[a.weight])
    integer = [a for a in plan.assignments if a.tier.is_integer and a.weight in calibration.arrays]
    done = {
        a.weight: work.round(a) for a in sorted(integer, key=lambda a: calibration.uses[a.weight].position)
    }
    calibration.forget()
    assignments = tuple(done.get(a.weight, a) for a in plan.assignments)
    before, after = (sum(a.cost for a in group) for group in (plan.assignments, assignments))
    predicted = plan.predicted_drift
    if predicted is not None and before > 0:
        predicted *= math.sqrt(after / before)
    update = {"assignments": assignments, "predicted_drift": predicted}
    return Assigned(plan.model_copy(update=update), work.codes, tuple(work.notes))


#: Columns with zero inputs, the order of columns, and the factor of H in that order.
_Factored = tuple[NDArray[np.bool_], NDArray[np.int64], Factor | None]


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """The sums of a reader's inputs, and the factors of each group at each damping so far."""

    statistics: Statistics
    factors: dict[tuple[int, float], _Factored] = field(default_factory=dict[tuple[int, float], _Factored])

    @property
    def n_bytes(self) -> int:
        """Bytes of its matrices."""
        upper = (found.upper.nbytes for _, _, found in self.factors.values() if found is not None)
        return self.statistics.H.nbytes + self.statistics.D.nbytes + sum(upper)


class _Work:
    """State shared while the weights of one plan are rounded one after another."""

    def __init__(self, calibration: Calibration, options: RoundingOptions) -> None:
        self.calibration = calibration
        self.options = options
        self.replaced: dict[str, NDArray[Any]] = {}
        self.codes: dict[str, Codes] = {}
        self.notes: list[Skip] = []
        self._known: dict[object, _Inputs] = {}

    def round(self, a: Assignment) -> Assignment:
        """Round one weight and return its assignment."""
        values = self.calibration.arrays[a.weight]
        with blas_threads(self.calibration.threads, values.size):
            return self._rounded(a, values)

    def _rounded(self, a: Assignment, values: NDArray[Any]) -> Assignment:
        method, free, uses = self.options.method, self.options.free, self.calibration.uses[a.weight]
        ratio = 1.0
        a = a.model_copy(update={"rounding": free})
        codes = plain = self.calibration.plain(a)
        if method != free and uses.why_not:
            self.notes.append(Skip(a.label, f"rounded without data: {uses.why_not}"))
            method = free
        if method != free:
            found = self._with_data(a, values, plain)
            codes, ratio = (plain, 1.0) if found is None else found
            method = free if found is None else method
        if method != free:
            self.codes[a.weight] = codes
        decoded = codes.decode().astype(np_dtype(a.dtype)).astype(values.dtype)
        self.replaced[a.weight] = decoded
        residual = decoded.astype(np.float64) - values.astype(np.float64)
        energy = float(np.sum(residual * residual))
        return a.model_copy(update={"rounding": method, "error_energy": energy, "cost": a.cost * ratio})

    def _with_data(self, a: Assignment, values: NDArray[Any], plain: Codes) -> tuple[Codes, float] | None:
        """Return codes and the ratio of their output error to that of `plain`; None if the data are unusable."""
        inputs = self._inputs(a.weight)
        statistics = inputs.statistics
        view: View = self.calibration.uses[a.weight].uses[0].view
        why = _unusable(statistics)
        if why:
            self.notes.append(Skip(a.label, f"rounded without data: {why}"))
            return None
        exact = view.matrices(values).astype(np.float64)
        target, base = exact, plain
        if self.options.method == "qep":
            target = self._corrected(a, exact, statistics)
            base = round_weight(view.weight(target, a.shape), a)
        scales = view.matrices(np.ascontiguousarray(base.wide_scales().astype(np.float64)))
        levels: Matrix | None = None
        error, least, round_column = 0.0, math.inf, _column_rounder(a, view)
        damps, priced = self._damps(view), a.cost != 0
        for damp in damps:
            tried = self._all_levels(a, target, scales, inputs, round_column, damp)
            if tried is None:
                self.notes.append(
                    Skip(a.label, "rounded without data: H has no Cholesky factor at any damping up to 1")
                )
                return None
            if len(damps) == 1 and not priced:
                levels = tried
                break
            residual = tried * scales - target
            energy = _output_energy(residual, statistics.H)
            product = energy * float(np.sum(residual * residual))
            if levels is None or product < least:
                levels, least, error = tried, product, energy
        assert levels is not None
        codes = replace(base, levels=view.weight(levels, a.shape).astype(np.int8))
        if not priced:
            return codes, 1.0
        before = _output_energy(view.matrices(plain.decode()).astype(np.float64) - exact, statistics.H)
        return codes, error / before if before > 0 else 1.0

    def _damps(self, view: View) -> tuple[float, ...]:
        """Return the dampings to try; the least product of output error and weight error wins.

        The inputs of a recurrent weight are few and alike from step to step, so a small damping trades a little output
        error on these contexts for much weight error, which other contexts show.
        """
        usual = self.options.damp
        if not isinstance(view, (InputView, StateView, ResetStateView)):
            return (usual,)
        return (usual, *(damp for damp in _RECURRENT_DAMPS if damp > usual))

    def _all_levels(
        self,
        a: Assignment,
        target: Matrix,
        scales: Matrix,
        inputs: _Inputs,
        round_column: _ColumnRounder,
        damp: float,
    ) -> Matrix | None:
        """Return the levels of all groups [group, out, in]; None if one H has no factor."""
        levels = np.empty_like(target)
        for g in range(len(target)):
            rounded = self._levels(a, target[g], scales[g], inputs, g, round_column, damp)
            if rounded is None:
                return None
            levels[g] = rounded
        return levels

    def _inputs(self, weight: str) -> _Inputs:
        """Return the sums for a weight, and their factors.

        Consecutive weights that read the same inputs share them. While nothing is replaced, inputs do not change: then
        those of all weights are kept, as far as they fit.
        """
        uses = self.calibration.uses[weight].uses
        shape = self.calibration.shapes[weight]
        key = (tuple((use.activation, use.view, use.also) for use in uses), shape if len(shape) > 2 else ())
        if key not in self._known:
            if self.replaced or sum(known.n_bytes for known in self._known.values()) > MOST_FACTOR_BYTES:
                self._known.clear()
            paired = self.options.method != "gptq"
            self._known[key] = _Inputs(self.calibration.statistics(weight, self.replaced, paired=paired))
        return self._known[key]

    def _corrected(self, a: Assignment, exact: Matrix, statistics: Statistics) -> Matrix:
        """Return the weight corrected by QEP, float64 [group, out, in], with a bounded change."""
        moved = np.empty_like(exact)
        for g in range(len(exact)):
            try:
                full = qep_correct(
                    exact[g], statistics.H[g], statistics.D[g], damp=self.options.qep_damp, strength=1.0
                )
            except InputError as error:
                self.notes.append(Skip(a.label, f"not corrected: {error.what}"))
                return exact
            moved[g] = full - exact[g]
            # Inputs that are always zero say nothing of their columns.
            moved[g][:, np.diag(statistics.H[g]) == 0] = 0.0
        norm, size = float(np.linalg.norm(exact)), float(np.linalg.norm(moved))
        strength = self.options.qep_strength
        for _ in range(_HALVINGS):
            if strength * size <= GROWTH_LIMIT * norm:
                break
            strength /= 2
        else:
            strength = 0.0
        if strength != self.options.qep_strength:
            self.notes.append(
                Skip(
                    a.label,
                    f"a correction of {size / max(norm, 1e-300):.3g} norms was reduced to strength {strength:.3g}",
                )
            )
        corrected: Matrix = exact + strength * moved
        return corrected

    def _factored(self, inputs: _Inputs, g: int, damp: float) -> _Factored:
        if (g, damp) not in inputs.factors:
            H = inputs.statistics.H[g].copy()
            dead = np.diag(H) == 0
            H[dead, dead] = 1.0
            order = np.argsort(-np.diag(H), kind="stable") if self.options.act_order else np.arange(len(H))
            inputs.factors[g, damp] = dead, order, factor(H[np.ix_(order, order)], damp)
        return inputs.factors[g, damp]

    def _levels(
        self,
        a: Assignment,
        target: Matrix,
        scales: Matrix,
        inputs: _Inputs,
        g: int,
        round_column: _ColumnRounder,
        damp: float,
    ) -> Matrix | None:
        """Return the levels of one group [out, in]; None if H has no factor."""
        dead, order, found = self._factored(inputs, g, damp)
        w = target.copy()
        if found is None:
            return None
        if found.damp != damp:
            self.notes.append(Skip(a.label, f"damping raised to {found.damp:.3g}"))
        shift = None
        if self.options.method == "gptaq":
            D = inputs.statistics.D[g].copy()
            D[:, dead] = 0.0
            shift = drift_correction(D[np.ix_(order, order)], found.upper, self.options.alpha)

        ordered = np.ascontiguousarray(scales.T[order])

        def column(j: int, values: Matrix, lazy: Matrix) -> tuple[Matrix, Matrix]:
            scale = ordered[j]
            level = round_column((values / scale).astype(np.float32), g, int(order[j])).astype(np.float64)
            return level, scale * level

        levels, _ = compensate(w[:, order], found.upper, shift, column, PUBLISHED_BLOCK)
        return levels[:, np.argsort(order, kind="stable")]


class Alone:
    """Rounds one weight at a time with all others in FP32; all candidates of a weight share its inputs.

    Parameters
    ----------
    calibration : Calibration
    options : RoundingOptions
    """

    def __init__(self, calibration: Calibration, options: RoundingOptions) -> None:
        self._work = _Work(calibration, options)

    def decoded(self, a: Assignment) -> NDArray[Any]:
        """Return the decoded values of the weight."""
        self._work.replaced.clear()
        self._work.round(a)
        return self._work.replaced[a.weight]


def decoded_weights(assigned: Assigned, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the decoded values of every planned weight, for rolling out a plan without writing it."""
    return {
        a.weight: np.asarray(fed_weight(a, arrays[a.weight], assigned.codes.get(a.weight)))
        for a in assigned.plan.assignments
        if a.form is not Form.KEEP and a.weight in arrays
    }


#: (values of a column already divided by their scales [out], which it may change, group, column) → levels.
_ColumnRounder = Callable[[NDArray[np.float32], int, int], NDArray[np.float32]]


def _column_rounder(a: Assignment, view: View) -> _ColumnRounder:
    """Return the function that rounds a column of a matrix: to levels of one width, or of one width per channel."""
    grid, bits = a.grid or Grid.SIGNED, a.tier.bits
    if not a.rows:
        return lambda x, g, j: round_in_place(x, bits, grid)
    limits = limits_of(a.rows, grid)
    shape = broadcast_shape(a.shape, a.axis)

    def seen(values: NDArray[Any]) -> NDArray[Any]:
        wide = np.broadcast_to(values.reshape(shape), a.shape)
        return view.matrices(np.ascontiguousarray(wide))

    low, high, midrise = seen(limits.low), seen(limits.high), seen(limits.midrise)
    return lambda x, g, j: Limits(low[g][:, j], high[g][:, j], midrise[g][:, j]).round(x)


def _unusable(statistics: Statistics) -> str:
    if not (np.isfinite(statistics.H).all() and np.isfinite(statistics.D).all()):
        return "its inputs are not finite"
    return "" if statistics.H.any() else "all its inputs are zero"


def _output_energy(delta: Matrix, H: Matrix) -> float:
    return float(np.sum((delta @ H) * delta))
