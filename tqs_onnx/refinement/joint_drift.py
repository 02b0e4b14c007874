"""What all roundings of a plan do together: the FP32 graph fed the plan's weights, rolled out.

Scores are taken one weight at a time; where everything is coarse at once, errors meet. A joint rollout costs one
rollout and shows it before a file is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_passes.encode.weight import Form
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.assigned import fed_weight
from tqs_passes.plan.plan import Assignment


class JointDrift:
    """Rolls the FP32 graph out with all weights of a plan at once; opens its session when it is first needed.

    Parameters
    ----------
    bed : Testbed
        With the contexts to measure on.
    """

    def __init__(self, bed: Testbed) -> None:
        self._bed = bed
        self._weights = {w.name: w for w in bed.weights}
        self._decoded: dict[tuple[object, ...], NDArray[Any]] = {}

    def on(self, contexts: Contexts) -> JointDrift:
        """Return the same over other contexts; what weights decode to is shared."""
        other = JointDrift(self._bed.on(contexts))
        other._decoded = self._decoded
        return other

    def drift(self, assignments: tuple[Assignment, ...], codes: Mapping[str, Codes] | None = None) -> float:
        """Return the drift of a plan's weights together; infinite when the rollout is not finite."""
        replaced = {
            a.weight: self._reference(a, codes or {})
            for a in assignments
            if a.weight in self._weights
            and (a.form is not Form.KEEP or a.dtype != self._weights[a.weight].dtype)
        }
        nominal = self._bed.nominal
        try:
            return self._bed.drift(self._bed.exposed.run(replaced), nominal)
        except NonFiniteError:
            return float("inf")

    def _reference(self, a: Assignment, codes: Mapping[str, Codes]) -> NDArray[Any]:
        key = (a.weight, a.dtype, a.tier, a.grid, a.axis, a.half_scales, a.rows, a.group, a.form, a.rounding)
        if a.weight in codes:
            return np.asarray(
                fed_weight(a, self._bed.exposed.values(self._weights[a.weight]), codes[a.weight])
            )
        if key not in self._decoded:
            self._decoded[key] = np.asarray(fed_weight(a, self._bed.exposed.values(self._weights[a.weight])))
        return self._decoded[key]
