"""Joint repair: trial promotions and demotions, judged by the joint drift of all weights.

Costs measured one weight at a time miss the interaction of errors when many weights are coarse. A trial promotes one
weight to its next finer candidate and pays for it by demoting the weights with the least additive cost per byte. The
trial with the lowest joint drift on the search contexts is kept if it also lowers the drift on separate acceptance
contexts; rounds repeat until nothing helps. Neither set holds evaluation contexts: a search overfits the contexts it is
judged by (measured: search error falls while test error rises).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from tqs_onnx.allocation.costing import (
    PlanOptions,
    Request,
    activation_cost,
    added_drift,
    amplification,
    gamma_of,
)
from tqs_onnx.allocation.file_size import file_bytes
from tqs_onnx.allocation.offers import unmeasured
from tqs_onnx.allocation.times import TimeTable
from tqs_onnx.refinement.joint_drift import JointDrift
from tqs_onnx.rollout.contexts.context_set import Contexts, held_out
from tqs_onnx.scoring.scores import Status
from tqs_passes.encode.weight import ROUNDED, Form
from tqs_passes.plan.candidates import Candidate
from tqs_passes.plan.plan import Assignment, Plan

_LOG = logging.getLogger(__name__)
#: A promotion must reduce the error energy to this share: row tiers offer finer steps than a trial can resolve.
_PROMOTED_ERROR = 0.7
#: Promotions tried per round.
_TRIALS = 12


@dataclass(frozen=True, slots=True)
class Repair:
    """The result of repair.

    Parameters
    ----------
    plan : Plan
        The best plan found; the original plan if nothing helped.
    before, after : float
        Drift on the acceptance contexts.
    rounds : int
        Number of rounds.
    accepted : int
        Number of trials kept.
    """

    plan: Plan
    before: float
    after: float
    rounds: int
    accepted: int


class _Ladders:
    """The candidates of every movable weight, finest first, as assignments of the plan.

    Weights below γ_min stay at the bottom tier and those that p_FP32 protects at the top tier; under a cap on FP32, no
    weight is promoted to FP32. Under a budget of time no weight takes a form slower than the one it has.
    """

    def __init__(self, plan: Plan, request: Request, options: PlanOptions) -> None:
        self.request = request
        known = {s.weight: s for s in request.scores.weights}
        held = {a.weight: a for a in plan.assignments}
        kept = {a.weight for a in plan.assignments if a.form is Form.KEEP}
        self.of: dict[str, list[Candidate]] = {}
        for menu in request.menus:
            score = known[menu.weight.name]
            if score.status is not Status.ALIVE:
                continue
            gamma = gamma_of(score, request.scores, options.rank_by)
            if options.gamma_min is not None and gamma <= options.gamma_min:
                continue
            if options.protected_share > 0 and menu.weight.name in kept:
                continue
            rungs: list[Candidate] = []
            for c in unmeasured(menu.candidates) if score.unseen else menu.candidates:
                if options.max_fp32 is not None and c.assignment.form is Form.KEEP:
                    continue
                if _slower(c.assignment, held[menu.weight.name], request.times):
                    continue
                rounded = activation_cost(c.assignment, request.scores)
                if not math.isfinite(rounded):
                    continue
                a = amplification(score, c.assignment.error_energy, request.scores)
                update = {
                    "gamma": score.gamma_task,
                    "amplification": a,
                    "cost": a * c.assignment.error_energy + rounded,
                }
                rungs.append(Candidate(c.assignment.model_copy(update=update), c.shared))
            self.of[menu.weight.name] = rungs


def _slower(a: Assignment, held: Assignment, times: TimeTable | None) -> bool:
    """Return whether an assignment takes longer than the held one; without times: rounds inputs where it does not."""
    if times is None:
        return (a.form in ROUNDED) != (held.form in ROUNDED)
    return times.ratio_of(a) > times.ratio_of(held)


def repair(
    plan: Plan,
    request: Request,
    joint: JointDrift,
    contexts: Contexts,
    options: PlanOptions,
    rounds: int,
) -> Repair:
    """Repair a plan within its own byte budget (see the module docstring).

    Parameters
    ----------
    plan : Plan
    request : Request
    joint : JointDrift
    contexts : Contexts
        The scoring contexts; they are split in two.
    options : PlanOptions
        Options that the plan was allocated with; what they fix is not changed.
    rounds : int
        Maximum number of rounds; each costs about a dozen joint rollouts.
    """
    if not rounds or any(a.block for a in plan.assignments):
        if rounds:
            _LOG.info("no repair: a trial could separate tied weights")
        drift = joint.on(contexts).drift(plan.assignments)
        return Repair(plan, drift, drift, 0, 0)
    search, acceptance = held_out(contexts, 0.5)
    searching, accepting = joint.on(search), joint.on(acceptance)
    ladders = _Ladders(plan, request, options)
    budget = plan.solver.budget_bytes if plan.solver is not None else plan.n_bytes
    held = _held(plan, request)
    before = after = accepting.drift(plan.assignments)
    found = searching.drift(plan.assignments)
    drifts: dict[str, float] = {}
    trials: dict[str, dict[str, Candidate]] = {}
    accepted = tried = 0
    for tried in range(1, rounds + 1):
        if not drifts:  # the plan changed, so all trials are new
            trials = {n: t for n in _promising(held, ladders) if (t := _trial(held, n, ladders, budget))}
            drifts = {n: searching.drift(tuple(c.assignment for c in t.values())) for n, t in trials.items()}
        name = min(drifts, key=lambda n: (drifts[n], n), default=None)
        if name is None or drifts[name] >= found:
            break
        judged = accepting.drift(tuple(c.assignment for c in trials[name].values()))
        _LOG.info("repair round %d: drift %.4g → %.4g on the acceptance contexts", tried, after, judged)
        if judged >= after:
            del drifts[name]
            continue
        held, found, after, accepted = trials[name], drifts[name], judged, accepted + 1
        drifts = {}
    chosen = list(held.values())
    assignments = tuple(c.assignment for c in chosen)
    predicted = added_drift(assignments, request.scores)
    mended = plan.model_copy(
        update={
            "assignments": assignments,
            "n_bytes": file_bytes(request.size, chosen),
            "predicted_drift": predicted,
            "added_drift": predicted,
        }
    )
    _LOG.info("repair: drift %.4g → %.4g on the acceptance contexts, %d trials kept", before, after, accepted)
    return Repair(mended if accepted else plan, before, after, tried, accepted)


def _held(plan: Plan, request: Request) -> dict[str, Candidate]:
    """Return the plan's candidates by weight, in plan order."""
    menus = {m.weight.name: m.candidates for m in request.menus}
    return {a.weight: Candidate(a, _match(a, menus[a.weight]).shared) for a in plan.assignments}


def _match(a: Assignment, candidates: tuple[Candidate, ...]) -> Candidate:
    return next(c for c in candidates if _key(c.assignment) == _key(a))


def _key(a: Assignment) -> tuple[object, ...]:
    return (a.tier, a.grid, a.axis, a.half_scales, a.rows, a.group, a.form)


def _promising(held: dict[str, Candidate], ladders: _Ladders) -> list[str]:
    """Return the weights whose promotion to try: those of the largest cost."""
    names = [n for n in held if n in ladders.of]
    return sorted(names, key=lambda n: (-held[n].assignment.cost, n))[:_TRIALS]


def _trial(
    held: dict[str, Candidate], name: str, ladders: _Ladders, budget: int
) -> dict[str, Candidate] | None:
    """Promote one weight, then demote others at the least cost per byte, until the file fits; None if it cannot."""
    finer = _step(held[name], ladders.of[name], -1)
    if finer is None:
        return None
    trial = {**held, name: finer}
    while file_bytes(ladders.request.size, list(trial.values())) > budget:
        best: tuple[float, str, Candidate] | None = None
        for other, ladder in ladders.of.items():
            coarser = None if other == name else _step(trial[other], ladder, 1)
            if coarser is None:
                continue
            saved = trial[other].assignment.n_bytes - coarser.assignment.n_bytes
            rise = max(coarser.assignment.cost - trial[other].assignment.cost, 0.0)
            if saved > 0 and (best is None or (rise / saved, other) < best[:2]):
                best = (rise / saved, other, coarser)
        if best is None:
            return None
        trial[best[1]] = best[2]
    return trial


def _step(held: Candidate, ladder: list[Candidate], by: int) -> Candidate | None:
    """Return the next candidate that is markedly finer (-1), or the next coarser one (1)."""
    a = held.assignment
    if by < 0:
        finer = [c for c in ladder if c.assignment.error_energy < _PROMOTED_ERROR * a.error_energy]
        return min(finer, key=lambda c: (c.assignment.n_bytes, c.assignment.error_energy), default=None)
    coarser = [c for c in ladder if c.assignment.n_bytes < a.n_bytes]
    return max(coarser, key=lambda c: (c.assignment.n_bytes, -c.assignment.error_energy), default=None)
