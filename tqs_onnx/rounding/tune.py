"""Chooses the rounding settings on contexts held out of the calibration.

QEP's correction with the published setting (damping 1, strength 0.5) is often far from the best, so a comparison with
it would be unfair; and no method is the best for every model and width. The last quarter of the contexts is held out
(see `held_out`). Each setting is calibrated on the others, and the held-out contexts are rolled out with the resulting
weights; the least drift wins. No model is written, and the evaluation contexts are not used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tqs_onnx.rollout.contexts.context_set import Contexts, held_out, joined
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.rounding.assign import RoundingOptions, decoded_weights, round_plan
from tqs_onnx.rounding.calibrate import Calibration
from tqs_passes.plan.plan import Plan

_LOG = logging.getLogger(__name__)
DAMPS = (0.01, 0.1, 1.0)
STRENGTHS = (0.5, 1.0)
_HELD_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and its drift on the held-out contexts; infinite if the rollout was not finite."""

    setting: RoundingOptions
    drift: float


def qep_settings(options: RoundingOptions) -> tuple[RoundingOptions, ...]:
    """Return QEP with every combination of damping and strength to try."""
    return tuple(
        replace(options, method="qep", qep_damp=damp, qep_strength=strength)
        for damp in DAMPS
        for strength in STRENGTHS
    )


class Tuner:
    """Holds the two sets of contexts, so that several plans share the captured inputs; sessions open when first needed.

    Parameters
    ----------
    bed : Testbed
        Holds the calibration contexts. With a single context the settings are evaluated on the context that they were
        calibrated on.
    beside : Contexts, optional
        More contexts to calibrate on, which are not held out.
    """

    def __init__(self, bed: Testbed, beside: Contexts | None = None) -> None:
        kept, held = held_out(bed.contexts, _HELD_SHARE)
        self._calibration = Calibration(bed.on(kept if beside is None else joined(kept, beside)))
        self._held = bed.on(held)

    def best(
        self, plan: Plan, settings: Sequence[RoundingOptions]
    ) -> tuple[RoundingOptions, tuple[Trial, ...]]:
        """Return the setting of least held-out drift (the first, if several tie), and every trial.

        Parameters
        ----------
        plan : Plan
        settings : sequence of RoundingOptions
        """
        trials: list[Trial] = []
        for setting in settings:
            trials.append(Trial(setting, self.drift(plan, setting)))
            _LOG.info("%s: held-out drift %.4g", setting.title, trials[-1].drift)
        return min(trials, key=lambda t: t.drift).setting, tuple(trials)

    def drift(self, plan: Plan, options: RoundingOptions) -> float:
        """Return the drift on the held-out contexts of a plan rounded on the others; infinite if not finite."""
        assigned = round_plan(plan, self._calibration, options)
        self._held.hold()  # a nominal rollout that is not finite is no fault of the setting
        decoded = decoded_weights(assigned, self._calibration.arrays)
        try:
            return self._held.drift(self._held.exposed.pieces(decoded))
        except NonFiniteError:
            return float("inf")
