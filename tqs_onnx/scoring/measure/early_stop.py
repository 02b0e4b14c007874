"""Stops a rollout once its score has converged (paper, A.11).

After step t the running score is r(t) = ln( mean over contexts of e(t) / ‖δθ‖² ) / t. The rollout ends when r changed
by at most `tolerance` over the last `window` steps, but not in the first quarter of its steps: a score may be constant
for a while when errors turn from shrinking to growing. Only the first chunk of contexts is monitored.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.engine import Watch
from tqs_onnx.scoring.measure.gamma import EPSILON, RATIO_FLOOR
from tqs_onnx.scoring.measure.meter import Meter
from tqs_onnx.scoring.plan.options import EarlyStop

_LEAST_SHARE = 0.25


def watcher(meter: Meter, delta_sq: float, rule: EarlyStop) -> Watch:
    """Return the stop condition for one rollout with a probe of size `delta_sq`."""
    n_steps = len(meter.held.time_after) - 1
    rates: list[float] = []
    total = 0.0

    def watch(step: int, squares: Mapping[str, NDArray[np.float64]]) -> bool:
        nonlocal total
        # The last step may yield more values than the trajectory holds.
        n_time = meter.held.time_after[step] - meter.held.time_after[step - 1]
        n = len(next(iter(squares.values())))
        parts = meter.ruler.parts({k: a[:, :n_time] for k, a in squares.items()}, slice(0, n))
        total += sum(float(s.sum()) for s in parts.values()) / n
        ratio = max(total / (delta_sq + EPSILON), RATIO_FLOOR)
        rates.append(float(np.log(ratio)) / step)
        if step < _LEAST_SHARE * n_steps:
            return False
        recent = rates[-rule.window - 1 :]
        return len(recent) > rule.window and max(recent) - min(recent) <= rule.tolerance

    return watch
