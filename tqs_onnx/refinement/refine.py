"""Refines an allocated plan before it is emitted: joint repair, data-aware rounding, and a joint measurement.

All three use only the scoring contexts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.refinement.instruments import Instruments
from tqs_onnx.refinement.prediction import predict
from tqs_onnx.refinement.repair import repair
from tqs_onnx.rounding.assign import DATA_AWARE, RoundingOptions, round_plan, told
from tqs_onnx.rounding.codes_file import codes_digest
from tqs_onnx.rounding.tune import qep_settings
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RefineOptions:
    """Options for refining an allocated plan.

    Parameters
    ----------
    repair_rounds : int
        Maximum number of rounds of joint repair; 0 turns it off. Only for the objective `energy`.
    rounding : RoundingOptions
        How integers are chosen.
    tune : bool
        Choose QEP's damping and strength on held-out contexts.
    """

    repair_rounds: int = 3
    rounding: RoundingOptions = field(default_factory=RoundingOptions)
    tune: bool = True


@dataclass(frozen=True, slots=True)
class Refined:
    """The plan to emit.

    Parameters
    ----------
    plan : Plan
    codes : dict of str to Codes
        Codes of data-aware roundings, by weight; empty for the others.
    """

    plan: Plan
    codes: dict[str, Codes]


def refine(
    plan: Plan,
    request: Request,
    instruments: Instruments,
    planning: PlanOptions,
    options: RefineOptions,
) -> Refined:
    """Repair a plan, choose its integers, and measure their joint effect.

    Parameters
    ----------
    plan : Plan
    request : Request
    instruments : Instruments
    planning : PlanOptions
        Options that the plan was allocated with.
    options : RefineOptions
    """
    joint = instruments.joint
    if options.repair_rounds and planning.aim is Objective.ENERGY and planning.solver == "mckp":
        contexts = instruments.bed.contexts
        plan = repair(plan, request, joint, contexts, planning, options.repair_rounds).plan
    codes: dict[str, Codes] = {}
    allocated, rounding = plan, options.rounding
    if rounding.method in DATA_AWARE:
        if rounding.method == "qep" and options.tune:
            rounding, _ = instruments.tuner.best(plan, qep_settings(rounding))
        assigned = round_plan(plan, instruments.calibration, rounding)
        for line in told(assigned.notes):
            _LOG.info("note: %s", line)
        plan, codes = assigned.plan, dict(assigned.codes)
        if codes:
            plan = plan.model_copy(update={"codes_sha256": codes_digest(codes)})
    prediction = predict(allocated, plan, codes, instruments, rounding)
    if prediction is None:
        _LOG.info("note: no drift is predicted: the only context chose the integers")
    update = {
        "joint_drift": joint.drift(plan.assignments, codes),
        "predicted_drift": None if prediction is None else prediction.drift,
        "prediction": prediction,
    }
    return Refined(plan.model_copy(update=update), codes)
