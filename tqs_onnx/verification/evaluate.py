"""Computes errors of trajectories: drift between two models, and MAE, RMSE and degradation against the truth.

All values are per variable, in the data's units, except drift, which is in units of σ_v. They are computed from sums
that the rollouts leave behind (`moments`), not from trajectories. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.distance import Arrays, drift_of, require_scored
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.stream import array_pieces
from tqs_onnx.verification.moments import Comparison, Sums, compared


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Drift(_Frozen):
    """Drift between two models on the same contexts.

    Attributes
    ----------
    total : float
        sqrt(mean over variables of mean over contexts, time, space of (ΔY/σ_v)²).
    p95 : float
        95th percentile over contexts of the drift of one context.
    per_variable : dict of str to float
    per_step : tuple of float
        Drift over the values of each step alone.
    """

    total: float
    p95: float
    per_variable: dict[str, float]
    per_step: tuple[float, ...]


class TruthError(_Frozen):
    """Errors of both models against the truth, for one variable, in its unit.

    Attributes
    ----------
    mae_fp32, mae, rmse_fp32, rmse : float
    degradation : float
        100 · (MAE_q − MAE_fp32) / MAE_fp32 (A.3), in percent; 0 if both are 0, infinite if only MAE_fp32 is 0.
    degradation_per_step : tuple of float
    mae_fp32_per_step, mae_per_step : tuple of float
    """

    mae_fp32: float
    mae: float
    rmse_fp32: float
    rmse: float
    degradation: float
    degradation_per_step: tuple[float, ...]
    mae_fp32_per_step: tuple[float, ...]
    mae_per_step: tuple[float, ...]


def drift_between(comparison: Comparison, sigma: Mapping[str, float], source: str = "") -> Drift:
    """Return the drift between the two rollouts of a comparison.

    Parameters
    ----------
    comparison : Comparison
    sigma : mapping of str to float
        σ_v of every variable.
    source : str
        File of the contexts, for the error.

    Raises
    ------
    InputError
        A variable has no σ: the contexts contain other variables than those that were scored.
    """
    variables = comparison.variables
    require_scored(variables, sigma, source)
    squares = {name: v.between.squared / sigma[name] ** 2 for name, v in variables.items()}
    spaces = {name: v.between.n_space for name, v in variables.items()}
    n_time = next(iter(squares.values())).shape[1]
    energy = np.zeros(comparison.n_contexts)
    for name, square in squares.items():
        n_v = spaces[name] * n_time
        share = comparison.n_contexts * comparison.n_values / (len(squares) * len(square) * n_v)
        energy[variables[name].rows] += square.sum(axis=1) * share
    return Drift(
        total=drift_of(squares, spaces),
        p95=float(np.sqrt(np.percentile(energy, 95) / comparison.n_values)),
        per_variable={n: float(np.sqrt(np.mean(s) / spaces[n])) for n, s in squares.items()},
        per_step=tuple(
            drift_of({n: s[:, a:b] for n, s in squares.items()}, spaces)
            for a, b in step_bounds(comparison.time_after, n_time)
        ),
    )


def truth_errors(comparison: Comparison, factors: Mapping[str, float] | None = None) -> dict[str, TruthError]:
    """Return the errors of both rollouts against the truth, for every variable that has one; see `Contexts.factors`."""
    return {
        name: _truth_error(v.nominal, v.other, (factors or {}).get(name, 1.0), comparison.time_after)
        for name, v in comparison.variables.items()
        if v.nominal is not None and v.other is not None
    }


def _truth_error(nominal: Sums, other: Sums, factor: float, time_after: tuple[int, ...]) -> TruthError:
    mae_fp32, mae = nominal.mae * factor, other.mae * factor
    bounds = step_bounds(time_after, mae.shape[1])
    per_step_fp32 = tuple(float(mae_fp32[:, a:b].mean()) for a, b in bounds)
    per_step = tuple(float(mae[:, a:b].mean()) for a, b in bounds)
    return TruthError(
        mae_fp32=float(mae_fp32.mean()),
        mae=float(mae.mean()),
        rmse_fp32=float(factor * np.sqrt(nominal.mse.mean())),
        rmse=float(factor * np.sqrt(other.mse.mean())),
        degradation=degradation_of(float(mae_fp32.mean()), float(mae.mean())),
        degradation_per_step=tuple(
            degradation_of(a, b) for a, b in zip(per_step_fp32, per_step, strict=True)
        ),
        mae_fp32_per_step=per_step_fp32,
        mae_per_step=per_step,
    )


def measure_drift(
    fp32: Arrays,
    other: Arrays,
    spec: RolloutSpec,
    contexts: Contexts,
    sigma: Mapping[str, float],
    time_after: tuple[int, ...],
) -> Drift:
    """Return the drift of trajectories `other` from `fp32`, arrays ``[context, time, …]`` per output.

    Parameters
    ----------
    time_after : tuple of int
        Number of time values after 0, 1, … steps.
    """
    pieces = array_pieces(fp32, time_after), array_pieces(other, time_after)
    return drift_between(compared(*pieces, spec, contexts, truth=False), sigma, contexts.source)


def measure_truth(
    fp32: Arrays, other: Arrays, spec: RolloutSpec, contexts: Contexts, time_after: tuple[int, ...]
) -> dict[str, TruthError]:
    """Return the errors of both trajectories against the contexts' truth, for every variable that has one.

    Raises
    ------
    InputError
        The truth of an output does not have the shape of its trajectory.
    """
    pieces = array_pieces(fp32, time_after), array_pieces(other, time_after)
    return truth_errors(compared(*pieces, spec, contexts), contexts.factors)


def step_bounds(time_after: tuple[int, ...], n_time: int) -> list[tuple[int, int]]:
    """Return (start, stop) along time for the values of every step."""
    ends = [min(t, n_time) for t in time_after]
    return [(a, b) for a, b in pairwise(ends) if b > a]


def degradation_of(fp32: float, ours: float) -> float:
    """Return the change of a mean absolute error in percent (see `TruthError`)."""
    if fp32 == 0.0:
        return 0.0 if ours == 0.0 else float("inf")
    return 100.0 * (ours - fp32) / fp32
