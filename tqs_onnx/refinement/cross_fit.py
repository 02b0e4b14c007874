"""Rolls plans out on contexts that chose none of their integers: to compare them, and to predict their drift.

    integers from the weights alone      all weights together on the scoring contexts          "scoring"
    integers from other contexts         the same: the scoring contexts are held out           "held-out"
    integers from the scoring contexts   chosen on each half of them, judged on the other      "cross-fit"

The calibrations of the halves are shared by all plans of a job.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.refinement.joint_drift import JointDrift
from tqs_onnx.rollout.contexts.context_set import Contexts, held_out_indices, joined
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.assign import DATA_AWARE, Assigned, RoundingOptions, round_plan
from tqs_onnx.rounding.calibrate import Calibration
from tqs_passes.plan.plan import Basis, Plan


@dataclass(frozen=True, slots=True, eq=False)
class Rolled:
    """A plan, rolled out on contexts that chose none of its integers.

    Parameters
    ----------
    energies : float64 array [context]
        Squared joint drift; infinite for contexts whose rollout is not finite.
    at : int64 array [context]
        Indices of these contexts among the scoring contexts.
    basis : {"scoring", "held-out", "cross-fit"}
    assigned : Assigned or None
        The integers that were judged; None if each half of the contexts chose its own.
    least : float
        The file drifts at least by this share of the drift judged here. Where halves chose the integers it is √(n of
        the smaller half / n of all): the energy that is lost by choosing on few contexts falls at most in proportion to
        their number. Else 1.
    """

    energies: NDArray[np.float64]
    at: NDArray[np.int64]
    basis: Basis
    assigned: Assigned | None
    least: float = 1.0


class CrossFit:
    """Rolls out plans (see the module docstring); sessions open when first needed.

    Parameters
    ----------
    bed : Testbed
        Holds the scoring contexts.
    joint : JointDrift
        On the same contexts.
    calibration : Calibration
        Of the calibration contexts.
    own : bool
        Whether the scoring contexts are among the calibration contexts.
    beside : Contexts, optional
        More contexts to calibrate on, which judge nothing.
    """

    def __init__(
        self,
        bed: Testbed,
        joint: JointDrift,
        calibration: Calibration,
        *,
        own: bool,
        beside: Contexts | None = None,
    ) -> None:
        self._beside = beside
        self._bed = bed
        self._joint = joint
        self._calibration = calibration
        self._own = own

    @cached_property
    def _halves(self) -> tuple[tuple[Calibration, JointDrift, list[int]], ...]:
        """The calibration of each half of the contexts, and the other half; nothing if there is only one context.

        Contexts of one start, the series of a table, are halved by number.
        """
        contexts, halves = self._bed.contexts, held_out_indices(self._bed.contexts, 0.5)
        if halves is None:
            every = list(range(contexts.n_contexts))
            halves = every[: len(every) // 2], every[len(every) // 2 :]
        if not halves[0]:
            return ()
        found: list[tuple[Calibration, JointDrift, list[int]]] = []
        for chosen, judged in (halves, halves[::-1]):
            half = contexts.take(chosen)
            half = half if self._beside is None else joined(half, self._beside)
            found.append((Calibration(self._bed.on(half)), self._joint.on(contexts.take(judged)), judged))
        return tuple(found)

    def n_roundings(self, rounding: RoundingOptions) -> int:
        """Return how often a plan is rounded by data before it is rolled out."""
        if rounding.method not in DATA_AWARE:
            return 0
        return 2 if self._own else 1

    def rolled(self, plan: Plan, rounding: RoundingOptions) -> Rolled | None:
        """Roll out a plan; None if the only context would choose its integers.

        Parameters
        ----------
        plan : Plan
            Before contexts chose any of its integers.
        rounding : RoundingOptions
            How they choose them, with its settings.

        Raises
        ------
        InputError
            The model fails on the calibration contexts.
        """
        if rounding.method not in DATA_AWARE:
            return self._judged(Assigned(plan, {}, ()), "scoring")
        if not self._own:
            return self._judged(round_plan(plan, self._calibration, rounding), "held-out")
        if not self._halves:
            return None
        found: list[NDArray[np.float64]] = []
        for calibration, joint, _ in self._halves:
            assigned = round_plan(plan, calibration, rounding)
            found.append(joint.energies(assigned.plan.assignments, assigned.codes))
        at = np.array([i for _, _, judged in self._halves for i in judged], np.int64)
        n_beside = 0 if self._beside is None else self._beside.n_contexts
        chose = min(len(judged) for _, _, judged in self._halves) + n_beside
        least = float(np.sqrt(chose / (self._bed.contexts.n_contexts + n_beside)))
        return Rolled(np.concatenate(found), at, "cross-fit", None, least)

    def _judged(self, assigned: Assigned, basis: Basis) -> Rolled:
        energies = self._joint.energies(assigned.plan.assignments, assigned.codes)
        return Rolled(energies, np.arange(len(energies)), basis, assigned)
