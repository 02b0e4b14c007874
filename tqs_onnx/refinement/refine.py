"""Refines an allocated plan before it is emitted: joint repair, a contest with other plans, rounding, a prediction.

    allocated plan ─▶ contenders ─▶ contest ─▶ integers of the chosen plan ─▶ predicted drift

All of it uses only the scoring and the calibration contexts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from tqs_onnx.allocation.choice import storage_key
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.simple_plans import simple_plan
from tqs_onnx.refinement.contest import Contender, contest, drifts_at_best
from tqs_onnx.refinement.instruments import Instruments
from tqs_onnx.refinement.joint_drift import JointDrift
from tqs_onnx.refinement.prediction import prediction_of
from tqs_onnx.refinement.repair import repair
from tqs_onnx.rounding.assign import DATA_AWARE, Alone, RoundingOptions, round_plan, told
from tqs_onnx.rounding.codes_file import codes_digest
from tqs_onnx.rounding.tune import qep_settings
from tqs_passes.errors import InfeasibleError
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan, SolverFacts

_LOG = logging.getLogger(__name__)
#: Bytes of a neighbouring budget, as a share of the budget.
_NEIGHBOUR = 0.9
_REPAIRS = 3
#: Follows the name of a plan that was found for a smaller budget.
_EARLIER = ", of a smaller budget"
#: Values from which on the cost of a contest is told.
_TOLD_VALUES = 10_000_000


@dataclass(frozen=True, slots=True)
class RefineOptions:
    """Options for refining an allocated plan.

    Parameters
    ----------
    candidates : int
        Maximum number of plans that are compared by their joint drift on held-out contexts, beside the allocated one
        rounded by its weights alone; 1: the allocated one is taken. Only with the solver `mckp` and the objectives
        `energy` and `measured`.
    repair_rounds : int or None
        Maximum number of rounds of joint repair; 0 turns it off. Only with that solver and those objectives. None: 3
        if `rounding` is one of the weights alone, else 0: trials round one weight at a time, and data-aware rounding
        of all together answers otherwise.
    rounding : RoundingOptions
        How integers are chosen; without contexts, the weights alone decide.
    tune : bool
        Choose QEP's damping and strength among six settings, on held-out contexts.
    """

    candidates: int = 4
    repair_rounds: int | None = None
    rounding: RoundingOptions = field(default_factory=lambda: RoundingOptions("qep"))
    tune: bool = False

    @property
    def repairs(self) -> int:
        """The rounds of repair as they take effect."""
        if self.repair_rounds is not None:
            return self.repair_rounds
        return 0 if self.rounding.method in DATA_AWARE else _REPAIRS


@dataclass(frozen=True, slots=True)
class Refined:
    """The plan to emit.

    Parameters
    ----------
    plan : Plan
    codes : dict of str to Codes
        Codes of data-aware roundings, by weight; empty for the others.
    contender : Contender or None
        What it was made from, for a larger budget; None before a contest.
    """

    plan: Plan
    codes: dict[str, Codes]
    contender: Contender | None = None


def refine(
    plan: Plan,
    request: Request,
    instruments: Instruments,
    planning: PlanOptions,
    options: RefineOptions,
    smaller: Sequence[Refined] = (),
) -> Refined:
    """Choose among an allocated plan and others that fit its budget, choose the integers, and predict the drift.

    Parameters
    ----------
    plan : Plan
    request : Request
    instruments : Instruments
    planning : PlanOptions
        Options that the plan was allocated with.
    options : RefineOptions
    smaller : sequence of Refined
        Results for smaller budgets, which take part at no cost.

    Raises
    ------
    InputError
        The model fails on the calibration contexts.
    """
    alone = _is_alone(plan, planning, options)
    if not alone and (note := _cost_of_contest(plan, options, instruments)):
        _LOG.info(note)
    known: list[Contender] = []
    earlier: dict[int, Refined] = {}
    for r in smaller:
        if r.contender is not None and r.contender.rolled is not None and not alone:
            known.append(replace(r.contender, name=r.contender.name.removesuffix(_EARLIER) + _EARLIER))
            earlier[id(known[-1])] = r
    settled = next((c.rounding for c in reversed(known) if c.rounding.method in DATA_AWARE), None)
    contenders = _contenders(plan, request, instruments, planning, options, settled)
    found = contest(chain(contenders, known), instruments.cross_fit, instruments.bed.contexts)
    facts = plan.solver
    update: dict[str, object] = {"tried": found.tried}
    held = earlier.get(id(found.chosen))
    done = _rounded(found.chosen, instruments) if held is None else held
    if done.plan.solver is not None and facts is not None:
        update["solver"] = _within(done.plan.solver, facts)
    return Refined(done.plan.model_copy(update=update), done.codes, found.chosen)


def _cost_of_contest(plan: Plan, options: RefineOptions, instruments: Instruments) -> str:
    """Return what comparing plans takes where that may last minutes; else nothing."""
    n_values = sum(math.prod(a.shape) for a in plan.assignments if a.tier.is_integer)
    times = ("", "once", "twice")[instruments.cross_fit.n_roundings(options.rounding)]
    if n_values < _TOLD_VALUES or not times:
        return ""
    return (
        f"note: up to {options.candidates} plans are compared, for each of which data choose {n_values / 1e6:.0f} M "
        f"integers {times} (`candidates` 1 compares none)"
    )


def _is_alone(plan: Plan, planning: PlanOptions, options: RefineOptions) -> bool:
    """Return whether no other plan may take the place of the allocated one, apart from its own repair."""
    return options.candidates == 1 or not _is_free(planning) or not any(a.cost for a in plan.assignments)


def _is_free(planning: PlanOptions) -> bool:
    return planning.aim in (Objective.ENERGY, Objective.MEASURED) and planning.solver == "mckp"


def _within(own: SolverFacts, asked: SolverFacts) -> SolverFacts:
    """Return the facts of a plan within the budget asked for, although it may have been found for a smaller one.

    A proof within the smaller budget proves nothing within the larger one. Costs of another objective have no bound
    there.
    """
    if own.budget_bytes == asked.budget_bytes:
        return own
    bound = min(own.bound, asked.bound) if own.objective == asked.objective else 0.0
    gap = max(own.cost - bound, 0.0) / own.cost if own.cost > 0 else 0.0
    update = {"bound": bound, "gap": gap, "optimal": gap == 0, "budget_bytes": asked.budget_bytes}
    return own.model_copy(update=update)


def _contenders(
    plan: Plan,
    request: Request,
    instruments: Instruments,
    planning: PlanOptions,
    options: RefineOptions,
    settled: RoundingOptions | None,
) -> Iterator[Contender]:
    """Yield at most `options.candidates` plans rounded by data, the repaired one, and the first by its weights alone.

    The allocated plan comes first. `settled` is the data-aware rounding that a smaller budget chose.
    """
    alone = _is_alone(plan, planning, options)
    first = [
        Contender(planning.aim.value, plan, r)
        for r in _roundings(plan, instruments, options, settled, alone=alone)
    ]
    first = [replace(c, rolled=instruments.cross_fit.rolled(c.plan, c.rounding)) for c in first]
    if first[0].rolled is None and options.repair_rounds:
        _LOG.info(
            "note: nothing is repaired: the only context chooses the integers, and none is left to judge"
        )
    yield from first
    judged = [c for c in first if c.rolled is not None]
    at_best = drifts_at_best(judged)
    rounding = (judged[at_best.index(min(at_best))] if judged else first[0]).rounding
    capped = planning.max_fp32 is not None and any(a.block for a in plan.assignments)
    if _is_free(planning) and options.repairs and any(a.cost for a in plan.assignments) and not capped:
        joint = instruments.joint
        if rounding.method in DATA_AWARE:
            joint = JointDrift(instruments.bed, Alone(instruments.calibration, _alone(rounding)).decoded)
        contexts = instruments.bed.contexts
        mended = repair(plan, request, joint, contexts, planning, options.repairs).plan
        if mended is not plan:
            yield Contender(f"{planning.aim.value}, repaired", mended, rounding)
    if alone:
        return
    seen = [storage_key(plan.assignments)]
    others = _others(plan, request, planning, rounding)
    n_roundings = sum(c.rounding.method in DATA_AWARE for c in first) or 1
    while len(seen) + n_roundings <= options.candidates and (other := next(others, None)) is not None:
        key = storage_key(other.plan.assignments)
        if key not in seen:
            seen.append(key)
            yield other


def _roundings(
    plan: Plan,
    instruments: Instruments,
    options: RefineOptions,
    settled: RoundingOptions | None,
    *,
    alone: bool,
) -> tuple[RoundingOptions, ...]:
    """Return the roundings to compare on the allocated plan: QEP, GPTQ, and that of the weights alone.

    QEP corrects the errors before a weight along the nominal rollout, which can lead astray where states are fed back;
    GPTQ is QEP without that correction. Where few contexts say little of the others, and at many bits, integers of the
    weights alone may drift least; they cost one rollout.
    """
    rounding = options.rounding
    if rounding.method != "qep":
        return (rounding,)
    free = replace(rounding, method=rounding.free)
    if settled is not None:
        return (settled,) if alone else (settled, free)
    if options.tune:
        rounding, _ = instruments.tuner.best(plan, qep_settings(rounding))
    return (rounding,) if alone else (rounding, replace(rounding, method="gptq"), free)


def _others(
    plan: Plan, request: Request, planning: PlanOptions, rounding: RoundingOptions
) -> Iterator[Contender]:
    """Yield other plans of the same budget, the most promising first."""
    assert plan.solver is not None
    budget, bound = plan.solver.budget_bytes, plan.solver.bound
    fixed = planning.max_fp32 is not None or planning.protected_share > 0 or planning.gamma_min is not None
    simple: list[Contender] = []
    if not fixed and not planning.rounds_inputs:
        for kind in ("uniform", "ends"):
            found = simple_plan(request, budget, planning, kind, bound)
            if found is not None and found.solver is not None:
                simple.append(Contender(found.solver.solver, found, rounding, is_simple=True))
    yield from simple[:1]
    if planning.aim is Objective.MEASURED:
        energy = replace(planning, objective=Objective.ENERGY)
        yield Contender("energy", plan_within(request, budget, energy), rounding)
    try:
        fewer = plan_within(request, int(_NEIGHBOUR * budget), planning)
    except InfeasibleError:
        fewer = None
    if fewer is not None:
        yield Contender(f"{planning.aim.value}, {_NEIGHBOUR:g} of the budget", fewer, rounding)
    yield from simple[1:]


def _alone(rounding: RoundingOptions) -> RoundingOptions:
    """Return how one weight is rounded with all others in FP32: without error before it there is none to correct."""
    return replace(rounding, method="gptq")


def _rounded(chosen: Contender, instruments: Instruments) -> Refined:
    """Choose the integers of a plan with all calibration contexts, and predict its drift."""
    plan, rolled = chosen.plan, chosen.rolled
    assigned = None if rolled is None else rolled.assigned
    if assigned is None:
        assigned = round_plan(plan, instruments.calibration, chosen.rounding)
    for line in told(assigned.notes):
        _LOG.info("note: %s", line)
    plan, codes = assigned.plan, dict(assigned.codes)
    prediction = None
    if rolled is None:
        _LOG.info("note: no drift is predicted: the only context chose the integers")
    else:
        contexts = instruments.bed.contexts.take(rolled.at.tolist())
        prediction = prediction_of(contexts, rolled.energies, rolled.basis)
    update = {
        "codes_sha256": codes_digest(codes) if codes else None,
        "joint_drift": instruments.joint.drift(plan.assignments, codes),
        "predicted_drift": None if prediction is None else prediction.drift,
        "prediction": prediction,
    }
    return Refined(plan.model_copy(update=update), codes, chosen)
