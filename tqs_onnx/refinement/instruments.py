"""The measurement tools of one job, created once: its plans share sessions, captured inputs and decoded weights."""

from __future__ import annotations

from dataclasses import dataclass

from tqs_onnx.refinement.cross_fit import CrossFit
from tqs_onnx.refinement.joint_drift import JointDrift
from tqs_onnx.rollout.contexts.context_set import Contexts, joined
from tqs_onnx.rollout.contexts.load import overlap
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.calibrate import Calibration
from tqs_onnx.rounding.tune import Tuner


@dataclass(frozen=True, slots=True, eq=False)
class Instruments:
    """The measurement tools of one job; each opens its session when first needed.

    Parameters
    ----------
    bed : Testbed
        Holds the scoring contexts and the σ of the scores.
    calibrating : Testbed
        Holds the calibration contexts of data-aware rounding: `bed` itself if there are no others.
    joint : JointDrift
        Measures all weights of a plan at once, on the scoring contexts.
    calibration : Calibration
        The inputs of the weights on the calibration contexts.
    tuner : Tuner
        Chooses rounding settings on contexts held out of the calibration.
    cross_fit : CrossFit
        Rolls out plans on scoring contexts that chose none of their integers.
    """

    bed: Testbed
    calibrating: Testbed
    joint: JointDrift
    calibration: Calibration
    tuner: Tuner
    cross_fit: CrossFit


def instruments_on(
    bed: Testbed, calibration: Contexts | None = None, beside: Contexts | None = None
) -> Instruments:
    """Return the instruments of a job.

    Parameters
    ----------
    bed : Testbed
        Holds the scoring contexts and the σ of the scores.
    calibration : Contexts, optional
        Calibration contexts of data-aware rounding; default: the scoring contexts.
    beside : Contexts, optional
        Made contexts, to calibrate on as well; nothing is judged on them.
    """
    given = bed if calibration is None else bed.on(calibration)
    calibrating = given if beside is None else bed.on(joined(given.contexts, beside))
    joint, taken = JointDrift(bed), Calibration(calibrating)
    own = calibration is None or overlap(calibration, bed.contexts)
    cross_fit = CrossFit(bed, joint, taken, own=own, beside=beside)
    return Instruments(bed, calibrating, joint, taken, Tuner(given, beside), cross_fit)
