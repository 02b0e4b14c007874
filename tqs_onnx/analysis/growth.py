"""λ_eff: the rate at which a forecast's error grows, from its MAE by step (paper, A.12.3, Table 8 and Figure 7).

    log MAE(t) = a + λ_eff · t        least squares over the steps t

The whole rollout is fitted to the mean over contexts, as in the paper. Errors grow exponentially only while they are
small, and only after the first steps: rounded weights add to the error at every step, so that at first it grows faster.
The linear range is therefore the later half of the steps whose MAE is below a fifth of σ; there the *geometric* mean
over contexts is fitted, whose slope is the mean rate of the contexts and so the exponent that Lyapunov theory speaks of
(the arithmetic mean follows the context that grows fastest).

The interval is that of the slope, 95 %, by Student's t with n − 2 degrees of freedom: too narrow where neighbouring
steps err together, as they do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress, t

from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.verification.verify import Verification

_FEWEST_STEPS = 3
#: Errors below this many standard deviations are small.
SMALL = 0.2


@dataclass(frozen=True, slots=True)
class Growth:
    """The fit of one error curve.

    Parameters
    ----------
    rate, low, high : float
        λ_eff per step and its 95 % interval.
    r2 : float
    first, last : int
        The steps fitted, counted from 1.
    """

    rate: float
    low: float
    high: float
    r2: float
    first: int
    last: int


def growth_of(mae: Sequence[float], *, first: int = 1, last: int | None = None) -> Growth | None:
    """Return the growth rate of an error by step, over these steps; None with fewer than three, or an error of 0."""
    values = np.array(mae, np.float64)[first - 1 : last]
    if values.size < _FEWEST_STEPS or not (np.isfinite(values).all() and (values > 0).all()):
        return None
    steps = np.arange(first, first + values.size)
    fit = linregress(steps, np.log(values))
    half = float(t.ppf(0.975, values.size - 2)) * float(fit.stderr)
    rate = float(fit.slope)
    return Growth(rate, rate - half, rate + half, float(fit.rvalue) ** 2, first, int(steps[-1]))


def linear_growth(typical: Sequence[float], sigma: float) -> Growth | None:
    """Return the growth rate in the linear range (see the module docstring); None if it has fewer than three steps.

    Parameters
    ----------
    typical : sequence of float
        Geometric mean over contexts of the MAE by step.
    sigma : float
        Standard deviation of the variable, in the same unit.
    """
    large = [i for i, value in enumerate(typical) if not value < SMALL * sigma]
    last = large[0] if large else len(typical)
    return growth_of(typical, first=last // 2 + 1, last=last)


def growth_table(runs: Mapping[str, Verification]) -> Table:
    """Return λ_eff of FP32 and of the file against the truth, and of the file against FP32, by run and variable."""
    rows: list[tuple[Cell, ...]] = []
    for run, v in runs.items():
        for variable, errors in v.errors.items():
            drift = v.drift.per_variable[variable]
            # Drift is the pooled RMSE from FP32 in units of σ.
            sigma = errors.against_fp32.rmse_pooled / drift if drift > 0 else math.nan
            curves = {
                "FP32 against the truth": errors.fp32,
                "file against the truth": errors.file,
                "file against FP32": errors.against_fp32,
            }
            for what, curve in curves.items():
                whole = None if curve is None else growth_of(curve.mae_per_step)
                if curve is None or whole is None:
                    continue
                early = linear_growth(curve.typical_per_step, sigma)
                linear: tuple[Cell, ...] = (None,) * 5
                if early is not None:
                    doubling = math.log(2) / early.rate if early.rate > 0 else None
                    steps = f"{early.first}–{early.last}"
                    linear = (early.rate, early.low, early.high, steps, doubling)
                rows.append((run, variable, what, whole.rate, whole.low, whole.high, whole.r2, *linear))
    columns = (
        *("run", "variable", "error", "λ_eff", "low", "high", "R²"),
        *("linear λ_eff", "low ", "high ", "steps", "doubles in steps"),
    )
    return Table("growth", "λ_eff per step: slope of log MAE, with 95 % intervals", columns, tuple(rows),
                 "Table 8, Figure 7")  # fmt: skip
