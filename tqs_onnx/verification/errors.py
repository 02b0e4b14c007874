"""The errors of a file per variable, in native units: by step and by context, with intervals.

    against the truth    of FP32 and of the file: MAE, RMSE, bias, and on a grid the anomaly correlation
    against FP32         of the file alone: how far it left the model that it was made from (paper, A.3)

RMSE is given twice: the mean over time values of the root mean square over contexts and space (paper, Eqs. 4, 5), and
the root of the mean square of everything, which late errors dominate. All of it comes from `moments`. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.verification.bootstrap import Resamples, block_length, interval, intervals, resamples
from tqs_onnx.verification.evaluate import degradation_of, step_bounds
from tqs_onnx.verification.grid import Anomaly
from tqs_onnx.verification.moments import Comparison, Sums, VariableSums
from tqs_onnx.verification.native import native_of

Floats = NDArray[np.float64]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class GridErrors(_Frozen):
    """Latitude-weighted scores of a forecast on a grid.

    Attributes
    ----------
    rmse : float
        Mean over contexts and time of the weighted RMSE over space.
    acc : float or None
        Mean anomaly correlation; None if an anomaly vanishes everywhere.
    acc_per_step : tuple of (float or None)
    """

    rmse: float
    acc: float | None
    acc_per_step: tuple[float | None, ...]


class Errors(_Frozen):
    """Errors of one forecast against one reference, in the variable's native unit.

    Attributes
    ----------
    mae, rmse, rmse_pooled, bias : float
        See the module docstring; the bias is forecast − reference.
    mae_per_step, rmse_per_step, bias_per_step : tuple of float
        Over the time values of each step; `rmse_per_step` as in Eq. 4.
    typical_per_step : tuple of float
        Geometric mean over contexts of the MAE of each step: what a typical context has; 0 if one has no error.
    mae_low, mae_high : tuple of float
        Ends of the 95 % interval of `mae_per_step`; empty if there is none.
    mae_per_context : tuple of float
    grid : GridErrors or None
        None without a grid whose latitudes are known.
    """

    mae: float
    rmse: float
    rmse_pooled: float
    bias: float
    mae_per_step: tuple[float, ...]
    rmse_per_step: tuple[float, ...]
    bias_per_step: tuple[float, ...]
    typical_per_step: tuple[float, ...]
    mae_low: tuple[float, ...]
    mae_high: tuple[float, ...]
    mae_per_context: tuple[float, ...]
    grid: GridErrors | None = None


class VariableErrors(_Frozen):
    """All errors of one variable.

    Attributes
    ----------
    unit : str
        Native unit; empty if unknown.
    factor : float
        Native units in one unit of the trajectory.
    contexts : tuple of int
        Its contexts, among those of the evaluation.
    against_fp32 : Errors
        The file against FP32.
    fp32, file : Errors or None
        Both against the truth; None without truth.
    degradation : float or None
        100 · (MAE − MAE_fp32) / MAE_fp32, percent.
    degradation_low, degradation_high : float or None
        Its 95 % interval; None if there is nothing to draw from.
    resampled : str
        What the intervals draw: `contexts`, `blocks of n contexts`, `time values`, or `nothing`.
    """

    unit: str
    factor: float
    contexts: tuple[int, ...]
    against_fp32: Errors
    fp32: Errors | None
    file: Errors | None
    degradation: float | None
    degradation_low: float | None
    degradation_high: float | None
    resampled: str


def errors_of(comparison: Comparison, spec: RolloutSpec, contexts: Contexts) -> dict[str, VariableErrors]:
    """Return the errors of every variable of a comparison, in native units.

    Parameters
    ----------
    comparison : Comparison
    spec : RolloutSpec
    contexts : Contexts
        Those of the comparison.
    """
    return {
        name: _of_variable(name, sums, comparison.time_after, spec, contexts)
        for name, sums in comparison.variables.items()
    }


def _of_variable(
    name: str, sums: VariableSums, time_after: tuple[int, ...], spec: RolloutSpec, contexts: Contexts
) -> VariableErrors:
    native = native_of(name, spec, contexts)
    n, n_time = sums.between.absolute.shape
    block = block_length(contexts, sums.rows)
    drawn = resamples(n, block)
    over_time = n == 1
    if over_time:
        drawn = resamples(n_time)
    what = "nothing" if drawn is None else "time values" if over_time else "contexts"
    if drawn is not None and block > 1 and not over_time:
        what = f"blocks of {block} contexts"

    def errors(part: Sums, grid: Anomaly | None = None) -> Errors:
        return _errors(part, grid, time_after, native.factor, None if over_time else drawn)

    against_fp32 = errors(sums.between)
    if sums.nominal is None or sums.other is None:
        return VariableErrors(
            unit=native.unit,
            factor=native.factor,
            contexts=tuple(sums.rows.tolist()),
            against_fp32=against_fp32,
            fp32=None,
            file=None,
            degradation=None,
            degradation_low=None,
            degradation_high=None,
            resampled=what,
        )
    mine, theirs = sums.nominal.mae, sums.other.mae
    low, high = _degradation_interval(mine, theirs, drawn, over_time=over_time)
    return VariableErrors(
        unit=native.unit,
        factor=native.factor,
        contexts=tuple(sums.rows.tolist()),
        against_fp32=against_fp32,
        fp32=errors(sums.nominal, sums.nominal_grid),
        file=errors(sums.other, sums.other_grid),
        degradation=degradation_of(float(mine.mean()), float(theirs.mean())),
        degradation_low=low,
        degradation_high=high,
        resampled=what,
    )


def _degradation_interval(
    mine: Floats, theirs: Floats, drawn: Resamples | None, *, over_time: bool
) -> tuple[float | None, float | None]:
    """Return the interval of the degradation; both files are resampled together."""
    axis = 0 if over_time else 1
    one, two = mine.mean(axis), theirs.mean(axis)
    if drawn is None or len(one) != drawn.counts.shape[1]:
        drawn = resamples(len(one)) if over_time else None
    if drawn is None or not mine.any():
        return None, None
    base = drawn.means(one)
    if not base.all():
        return None, None
    return interval(100.0 * (drawn.means(two) / base - 1.0))


def _errors(
    sums: Sums, grid: Anomaly | None, time_after: tuple[int, ...], factor: float, drawn: Resamples | None
) -> Errors:
    absolute = sums.mae * factor
    root = np.sqrt(sums.mse.mean(axis=0, keepdims=True)) * factor
    bias = sums.bias * factor
    bounds = step_bounds(time_after, absolute.shape[1])
    steps = np.stack([absolute[:, a:b].mean(axis=1) for a, b in bounds], axis=1)
    low, high = ((), ()) if drawn is None else intervals(drawn.means(steps))
    return Errors(
        mae=float(absolute.mean()),
        rmse=float(root.mean()),
        rmse_pooled=float(np.sqrt(sums.mse.mean()) * factor),
        bias=float(bias.mean()),
        mae_per_step=_by_step(absolute, bounds),
        rmse_per_step=_by_step(root, bounds),
        bias_per_step=_by_step(bias, bounds),
        typical_per_step=_typical(steps),
        mae_low=low,
        mae_high=high,
        mae_per_context=tuple(absolute.mean(axis=1).tolist()),
        grid=None if grid is None else _grid_errors(grid, bounds, factor),
    )


def _typical(steps: Floats) -> tuple[float, ...]:
    with np.errstate(divide="ignore"):
        return tuple(np.exp(np.log(steps).mean(axis=0)).tolist())


def _by_step(values: Floats, bounds: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    return tuple(float(values[:, a:b].mean()) for a, b in bounds)


def _grid_errors(grid: Anomaly, bounds: Sequence[tuple[int, int]], factor: float) -> GridErrors:
    return GridErrors(
        rmse=float(np.sqrt(grid.mse).mean() * factor),
        acc=_mean_known(grid.correlation),
        acc_per_step=tuple(_mean_known(grid.correlation[:, a:b]) for a, b in bounds),
    )


def _mean_known(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
