"""Measures the joint drift of a plan: rolls out the FP32 graph with all weights of the plan replaced.

Scores are measured one weight at a time; when many weights are coarse, their errors interact. One joint rollout
measures this before a file is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.stream import Piece
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_passes.encode.weight import Form
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.assigned import fed_weight
from tqs_passes.plan.plan import Assignment


class JointDrift:
    """Rolls out the FP32 graph with all weights of a plan at once; opens its session when first needed.

    Parameters
    ----------
    bed : Testbed
        Holds the contexts to measure on.
    alone : callable, optional
        Decodes an integer weight that has no codes yet; default: as the emitter would round it, from its values.
    """

    def __init__(self, bed: Testbed, alone: Callable[[Assignment], NDArray[Any]] | None = None) -> None:
        self._bed = bed
        self._alone = alone
        self._weights = {w.name: w for w in bed.weights}
        self._decoded: dict[tuple[object, ...], NDArray[Any]] = {}

    def on(self, contexts: Contexts) -> JointDrift:
        """Return the same over other contexts; decoded weights are shared."""
        other = JointDrift(self._bed.on(contexts), self._alone)
        other._decoded = self._decoded
        return other

    def drift(self, assignments: tuple[Assignment, ...], codes: Mapping[str, Codes] | None = None) -> float:
        """Return the joint drift of a plan's weights; infinite if the rollout is not finite."""
        self._bed.hold()  # a nominal rollout that is not finite is no fault of the plan
        try:
            return self._bed.drift(self._rolled(assignments, codes or {}))
        except NonFiniteError:
            return float("inf")

    def energies(
        self, assignments: tuple[Assignment, ...], codes: Mapping[str, Codes] | None = None
    ) -> NDArray[np.float64]:
        """Return the squared joint drift of every context; infinite if the rollout is not finite."""
        self._bed.hold()
        try:
            return self._bed.energies(self._rolled(assignments, codes or {}))
        except NonFiniteError:
            return np.full(self._bed.contexts.n_contexts, np.inf)

    def _rolled(self, assignments: tuple[Assignment, ...], codes: Mapping[str, Codes]) -> Iterator[Piece]:
        """Yield the rollout with all weights of a plan replaced, one step at a time."""
        replaced = {
            a.weight: self._reference(a, codes)
            for a in assignments
            if a.weight in self._weights
            and (a.form is not Form.KEEP or a.dtype != self._weights[a.weight].dtype)
        }
        for a in assignments:
            replaced |= self._bed.exposed.rounding(a)
        return self._bed.exposed.pieces(replaced)

    def _reference(self, a: Assignment, codes: Mapping[str, Codes]) -> NDArray[Any]:
        key = (a.weight, a.dtype, a.tier, a.grid, a.axis, a.half_scales, a.rows, a.group, a.form, a.rounding)
        if a.weight in codes:
            return np.asarray(
                fed_weight(a, self._bed.exposed.values(self._weights[a.weight]), codes[a.weight])
            )
        if key not in self._decoded:
            if self._alone is not None and a.tier.is_integer:
                self._decoded[key] = self._alone(a)
            else:
                self._decoded[key] = np.asarray(
                    fed_weight(a, self._bed.exposed.values(self._weights[a.weight]))
                )
        return self._decoded[key]
