"""What all roundings of a plan do together: the FP32 graph fed the plan's weights, rolled out.

Scores are taken one weight at a time; where everything is coarse at once, errors meet. A joint rollout costs one
rollout and shows it before a file is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.injection import ExposedWeights
from tqs_onnx.rollout.options import Provider
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.trajectory import NonFiniteError, Trajectory
from tqs_onnx.rounding.tune import Where
from tqs_onnx.verify.evaluate import measure_drift
from tqs_passes.encode.weight import Form
from tqs_passes.files.model import Model
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.assigned import fed_weight
from tqs_passes.plan.plan import Assignment
from tqs_passes.weights import Survey


@dataclass(frozen=True, slots=True)
class Place:
    """Where joint rollouts happen.

    Parameters
    ----------
    model : Model
        Lifted model.
    survey : Survey
    spec : RolloutSpec
    contexts : Contexts
    sigma : dict of str to float
    provider : str
    batch : int or None
    threads : int
    calibration : Contexts or None
        What data-aware rounding is calibrated on; None: the contexts.
    """

    model: Model
    survey: Survey
    spec: RolloutSpec
    contexts: Contexts
    sigma: dict[str, float]
    provider: Provider = "cpu"
    batch: int | None = None
    threads: int = 0
    calibration: Contexts | None = None


def where_of(place: Place) -> Where:
    """Return what data-aware rounding needs to know of a place."""
    return Where(
        place.model,
        tuple(w for w in place.survey.weights if w.outputs),
        place.spec,
        place.contexts if place.calibration is None else place.calibration,
        place.sigma,
        place.provider,
        place.batch,
        place.threads,
    )


class Joint:
    """One session with every weight exposed, and the nominal trajectory in it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._weights = {w.name: w for w in place.survey.weights if w.outputs}
        self._fed = ExposedWeights(
            place.model,
            tuple(self._weights.values()),
            place.spec,
            place.contexts,
            provider=place.provider,
            batch=place.batch,
            threads=place.threads,
        )
        self._nominal = self._fed.run({})
        self._decoded: dict[tuple[object, ...], NDArray[Any]] = {}

    def drift(self, assignments: tuple[Assignment, ...], codes: Mapping[str, Codes] | None = None) -> float:
        """Return the drift of a plan's weights together; infinite when the rollout is not finite."""
        replaced = {
            a.weight: self._reference(a, codes or {})
            for a in assignments
            if a.weight in self._weights
            and (a.form is not Form.KEEP or a.dtype != self._weights[a.weight].dtype)
        }
        try:
            return self._distance(self._fed.run(replaced))
        except NonFiniteError:
            return float("inf")

    def _reference(self, a: Assignment, codes: Mapping[str, Codes]) -> NDArray[Any]:
        key = (a.weight, a.dtype, a.tier, a.grid, a.axis, a.half_scales, a.rows, a.group, a.form, a.rounding)
        if a.weight in codes:
            return np.asarray(fed_weight(a, self._fed.values(self._weights[a.weight]), codes[a.weight]))
        if key not in self._decoded:
            self._decoded[key] = np.asarray(fed_weight(a, self._fed.values(self._weights[a.weight])))
        return self._decoded[key]

    def _distance(self, trajectory: Trajectory) -> float:
        place = self._place
        return measure_drift(
            self._nominal.outputs,
            trajectory.outputs,
            place.spec,
            place.contexts,
            place.sigma,
            self._nominal.time_after,
        ).total
