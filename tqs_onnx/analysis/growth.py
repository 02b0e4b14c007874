"""λ_eff: the rate at which a forecast's error grows, from its MAE by step (paper, A.12.3, Table 8 and Figure 7).

    log MAE(t) = a + λ_eff · t        least squares over the steps t of the linear range

Errors grow exponentially only while they are small. The linear range ends where the MAE reaches a share of its largest
value: later the error saturates, and the slope says nothing about growth. The whole rollout is fitted as well, as in
the paper. The interval is that of the slope, 95 %, by Student's t with n − 2 degrees of freedom: too narrow where
neighbouring steps err together, as they do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress, t

from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.verification.errors import VariableErrors

_FEWEST_STEPS = 3
#: The linear range ends where an error reaches this share of its largest value.
SATURATED = 0.5


@dataclass(frozen=True, slots=True)
class Growth:
    """The fit of one error curve.

    Parameters
    ----------
    rate, low, high : float
        λ_eff per step and its 95 % interval.
    r2 : float
    steps : int
        Number of steps fitted, from the first.
    """

    rate: float
    low: float
    high: float
    r2: float
    steps: int


def growth_of(mae: Sequence[float], *, saturated: float | None = None) -> Growth | None:
    """Return the growth rate of an MAE by step; None with fewer than three steps, or an error of 0.

    Parameters
    ----------
    mae : sequence of float
    saturated : float, optional
        Fit only the steps before the MAE first reaches this share of its largest value; default: all.
    """
    values = np.array(mae, np.float64)
    if saturated is not None and values.size:
        over = np.flatnonzero(values >= saturated * values.max())
        values = values[: max(int(over[0]), _FEWEST_STEPS)]
    if values.size < _FEWEST_STEPS or not (np.isfinite(values).all() and (values > 0).all()):
        return None
    fit = linregress(np.arange(1, values.size + 1), np.log(values))
    half = float(t.ppf(0.975, values.size - 2)) * float(fit.stderr)
    rate = float(fit.slope)
    return Growth(rate, rate - half, rate + half, float(fit.rvalue) ** 2, values.size)


def growth_table(runs: Mapping[str, Mapping[str, VariableErrors]]) -> Table:
    """Return λ_eff of FP32 and of the file against the truth, and of the file against FP32, by run and variable."""
    rows: list[tuple[Cell, ...]] = []
    for run, variables in runs.items():
        for variable, errors in variables.items():
            curves = {
                "FP32 against the truth": errors.fp32,
                "file against the truth": errors.file,
                "file against FP32": errors.against_fp32,
            }
            for what, curve in curves.items():
                if curve is None:
                    continue
                whole = growth_of(curve.mae_per_step)
                early = growth_of(curve.mae_per_step, saturated=SATURATED)
                if whole is None or early is None:
                    continue
                rows.append(
                    (
                        *(run, variable, what, whole.rate, whole.low, whole.high, whole.r2),
                        *(early.rate, early.low, early.high, early.steps, math.log(2) / early.rate),
                    )
                )
    columns = (
        *("run", "variable", "error", "λ_eff per step", "low", "high", "R²"),
        *("linear range: λ_eff", "low (linear)", "high (linear)", "steps (linear)", "doubling time in steps"),
    )
    return Table("growth", "λ_eff: slope of log MAE by step, with 95 % intervals", columns, tuple(rows),
                 "Table 8, Figure 7")  # fmt: skip
