"""Computes errors of trajectories: drift between two models, and MAE, RMSE and degradation against the truth.

All values are per variable, in the data's units, except drift, which is in units of σ_v. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.distance import Arrays, drift_of, n_space, ruler_for
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.variables import by_variable
from tqs_passes.errors import InputError


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
    ruler = ruler_for(fp32, spec, contexts, sigma)
    squares = ruler.squares(other, fp32)
    spaces = n_space(fp32, spec, contexts)
    n_time = next(iter(squares.values())).shape[1]
    energy = ruler.energy(squares, spaces)
    steps: list[float] = []
    for start, stop in step_bounds(time_after, n_time):
        steps.append(drift_of({n: s[:, start:stop] for n, s in squares.items()}, spaces))
    return Drift(
        total=drift_of(squares, spaces),
        p95=float(np.sqrt(np.percentile(energy.sum(axis=1), 95) / ruler.n_values)),
        per_variable={n: float(np.sqrt(np.mean(s) / spaces[n])) for n, s in squares.items()},
        per_step=tuple(steps),
    )


def step_bounds(time_after: tuple[int, ...], n_time: int) -> list[tuple[int, int]]:
    """Return (start, stop) along time for the values of every step."""
    ends = [min(t, n_time) for t in time_after]
    return [(a, b) for a, b in pairwise(ends) if b > a]


def measure_truth(
    fp32: Arrays, other: Arrays, spec: RolloutSpec, contexts: Contexts, time_after: tuple[int, ...]
) -> dict[str, TruthError]:
    """Return the errors of both trajectories against the contexts' truth, for every variable that has one.

    Raises
    ------
    InputError
        The truth of an output does not have the shape of its trajectory.
    """
    if not contexts.truth:
        return {}
    known: dict[str, NDArray[Any]] = {}
    for name, trajectory in fp32.items():
        known[name] = contexts.truth.get(name, np.full_like(trajectory, np.nan))
        if known[name].shape[2:] != trajectory.shape[2:]:
            raise InputError(
                f"truth/{name} is {list(known[name].shape)}, the trajectory is {list(trajectory.shape)}",
                where=contexts.source,
                todo="Store the truth as [context, time, ...], like the trajectory",
            )
    truth = by_variable(known, spec, contexts)
    ours = by_variable(other, spec, contexts)
    result: dict[str, TruthError] = {}
    for name, nominal in by_variable(fp32, spec, contexts).items():
        if np.isnan(truth[name]).all():
            continue
        n_time = min(nominal.shape[1], truth[name].shape[1])
        factor = (contexts.factors or {}).get(name, 1.0)
        e0 = factor * _error(nominal, truth[name], n_time)
        e1 = factor * _error(ours[name], truth[name], n_time)
        bounds = step_bounds(time_after, n_time)
        result[name] = TruthError(
            mae_fp32=float(np.mean(np.abs(e0))),
            mae=float(np.mean(np.abs(e1))),
            rmse_fp32=float(np.sqrt(np.mean(e0 * e0))),
            rmse=float(np.sqrt(np.mean(e1 * e1))),
            degradation=_degradation(e0, e1),
            degradation_per_step=tuple(_degradation(e0[:, a:b], e1[:, a:b]) for a, b in bounds),
            mae_fp32_per_step=tuple(float(np.mean(np.abs(e0[:, a:b]))) for a, b in bounds),
            mae_per_step=tuple(float(np.mean(np.abs(e1[:, a:b]))) for a, b in bounds),
        )
    return result


def _error(forecast: NDArray[Any], truth: NDArray[Any], n_time: int) -> NDArray[np.float64]:
    return forecast[:, :n_time].astype(np.float64) - truth[:, :n_time].astype(np.float64)


def _degradation(e0: NDArray[np.float64], e1: NDArray[np.float64]) -> float:
    fp32, ours = float(np.mean(np.abs(e0))), float(np.mean(np.abs(e1)))
    if fp32 == 0.0:
        return 0.0 if ours == 0.0 else float("inf")
    return 100.0 * (ours - fp32) / fp32
