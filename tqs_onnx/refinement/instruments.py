"""What the plans of one job are measured with, made once: they share sessions, and what was captured and decoded."""

from __future__ import annotations

from dataclasses import dataclass

from tqs_onnx.refinement.joint_drift import JointDrift
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.calibrate import Calibration
from tqs_onnx.rounding.tune import Tuner


@dataclass(frozen=True, slots=True, eq=False)
class Instruments:
    """See the module docstring; each opens its session when it is first needed.

    Parameters
    ----------
    bed : Testbed
        With the scoring contexts and the σ of the scores.
    calibrating : Testbed
        With the contexts that data-aware rounding is calibrated on: `bed` itself where there are no others.
    joint : JointDrift
        All weights of a plan at once, on the scoring contexts.
    calibration : Calibration
        What weights are multiplied with, on the calibration contexts.
    tuner : Tuner
        The same with some contexts held out, to choose how integers are chosen.
    """

    bed: Testbed
    calibrating: Testbed
    joint: JointDrift
    calibration: Calibration
    tuner: Tuner


def instruments_on(bed: Testbed, calibration: Contexts | None = None) -> Instruments:
    """Return the instruments of a job.

    Parameters
    ----------
    bed : Testbed
        With the scoring contexts and the σ of the scores.
    calibration : Contexts, optional
        What data-aware rounding is calibrated on; the scoring contexts unless given.
    """
    calibrating = bed if calibration is None else bed.on(calibration)
    return Instruments(bed, calibrating, JointDrift(bed), Calibration(calibrating), Tuner(calibrating))
