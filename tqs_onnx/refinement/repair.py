"""Joint repair: trial promotions and demotions, judged by the joint drift of all weights.

Costs measured one weight at a time miss the interaction of errors when many weights are coarse. A trial promotes one
weight or tie group to its next finer choice and pays for it by demoting those with the least additive cost per byte.
The trial with the lowest joint drift on the search contexts is kept if it also lowers the drift on separate acceptance
contexts; rounds repeat until nothing helps. Neither set holds evaluation contexts: a search overfits the contexts it is
judged by (measured: search error falls while test error rises).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tqs_onnx.allocation.choice import Bundle, flat, storage_key
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.file_size import file_bytes
from tqs_onnx.allocation.offers import Entry, entries_of
from tqs_onnx.allocation.plan_within import plan_of
from tqs_onnx.allocation.times import TimeTable
from tqs_onnx.refinement.joint_drift import JointDrift
from tqs_onnx.rollout.contexts.context_set import Contexts, held_out
from tqs_passes.encode.weight import ROUNDED, Form
from tqs_passes.plan.plan import Assignment, Plan

_LOG = logging.getLogger(__name__)
#: A promotion must reduce the cost to this share: row tiers offer finer steps than a trial can resolve.
_PROMOTED_COST = 0.7
#: Promotions tried per round.
_TRIALS = 12

Choices = tuple[int, ...]


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
        Decodes weights as they will be rounded.
    contexts : Contexts
        The scoring contexts; they are split in two.
    options : PlanOptions
        Options that the plan was allocated with; what they fix is not changed.
    rounds : int
        Maximum number of rounds; each costs about a dozen joint rollouts.
    """
    search, acceptance = held_out(contexts, 0.5)
    searching, accepting = joint.on(search), joint.on(acceptance)
    budget = plan.solver.budget_bytes if plan.solver is not None else plan.n_bytes
    moves = _Moves(plan, request, options, budget)
    start = held = moves.start
    before = after = accepting.drift(plan.assignments)
    found = searching.drift(plan.assignments) if rounds else before
    drifts: dict[int, float] = {}
    trials: dict[int, Choices] = {}
    accepted = tried = 0
    for tried in range(1, rounds + 1):
        if not drifts:  # the plan changed, so all trials are new
            trials = moves.trials(held)
            drifts = {i: searching.drift(moves.assignments(t)) for i, t in trials.items()}
        best = min(drifts, key=lambda i: (drifts[i], i), default=None)
        if best is None or drifts[best] >= found:
            break
        judged = accepting.drift(moves.assignments(trials[best]))
        _LOG.info("repair round %d: drift %.4g → %.4g on the acceptance contexts", tried, after, judged)
        if judged >= after:
            del drifts[best]
            continue
        held, found, after, accepted = trials[best], drifts[best], judged, accepted + 1
        drifts = {}
    if rounds:
        _LOG.info(
            "repair: drift %.4g → %.4g on the acceptance contexts, %d trials kept", before, after, accepted
        )
    return Repair(plan if held is start else moves.plan(held), before, after, tried, accepted)


class _Moves:
    """The choices of every weight or tie group, and which of them a trial may take.

    Entries below γ_min stay at the bottom tier and those that p_FP32 protects at the top tier; under a cap on FP32,
    none is promoted to FP32. Under a budget of time no weight takes a form slower than the one it has.
    """

    def __init__(self, plan: Plan, request: Request, options: PlanOptions, budget: int) -> None:
        self._base, self._request, self._options, self._budget = plan, request, options, budget
        held = {a.weight: a for a in plan.assignments}
        self._entries = entries_of(request, options)
        self._below: dict[tuple[int, int], int | None] = {}
        self.start: Choices = tuple(_held(e, held) for e in self._entries)
        self._allowed = [
            self._offered(e, e.bundles[k], held) for e, k in zip(self._entries, self.start, strict=True)
        ]

    def _offered(self, entry: Entry, now: Bundle, held: dict[str, Assignment]) -> list[int]:
        """Return the choices that trials may take."""
        options = self._options
        if entry.item.dead or (options.protected_share > 0 and _is_kept(now)):
            return []
        return [
            i
            for i, b in enumerate(entry.bundles)
            if not (options.max_fp32 is not None and _is_kept(b))
            and not any(
                _slower(c.assignment, held[c.assignment.weight], self._request.times) for c in b.candidates
            )
        ]

    def trials(self, held: Choices) -> dict[int, Choices]:
        """Return the trials from a state, by the entry that they promote: those of the largest cost."""
        costs = [e.item.costs[k] for e, k in zip(self._entries, held, strict=True)]
        names = [e.item.name for e in self._entries]
        movable = [i for i, allowed in enumerate(self._allowed) if allowed]
        first = sorted(movable, key=lambda i: (-costs[i], names[i]))[:_TRIALS]
        found = {i: self._trial(held, i) for i in first}
        return {i: trial for i, trial in found.items() if trial is not None}

    def _trial(self, held: Choices, promoted: int) -> Choices | None:
        """Promote one entry, then demote others at the least cost per byte, until the file fits; None if it cannot."""
        finer = self._finer(promoted, held[promoted])
        if finer is None:
            return None
        trial = [*held]
        trial[promoted] = finer
        while self._bytes(trial) > self._budget:
            best: tuple[float, str, int, int] | None = None
            for i, entry in enumerate(self._entries):
                coarser = None if i == promoted else self._coarser(i, trial[i])
                if coarser is None:
                    continue
                saved = entry.item.sizes[trial[i]] - entry.item.sizes[coarser]
                rise = max(entry.item.costs[coarser] - entry.item.costs[trial[i]], 0.0)
                step = (rise / saved, entry.item.name, i, coarser)
                best = step if best is None else min(best, step)
            if best is None:
                return None
            trial[best[2]] = best[3]
        return self._filled(trial)

    def _filled(self, trial: list[int]) -> Choices:
        """Spend the bytes that a demotion freed in excess, at the largest drop of the cost per byte."""
        room = self._budget - self._bytes(trial)
        steps: list[tuple[float, str, int, int]] = []
        for i, (entry, allowed) in enumerate(zip(self._entries, self._allowed, strict=True)):
            sizes, costs, now = entry.item.sizes, entry.item.costs, trial[i]
            steps += [
                ((costs[k] - costs[now]) / (sizes[k] - sizes[now]), entry.item.name, i, k)
                for k in allowed
                if costs[k] < costs[now] and 0 < sizes[k] - sizes[now] <= room
            ]
        for _, _, i, k in sorted(steps):
            item, before = self._entries[i].item, trial[i]
            if item.costs[k] >= item.costs[before] or item.sizes[k] - item.sizes[before] > room:
                continue
            trial[i] = k
            left = self._budget - self._bytes(trial)
            if left < 0:  # it needs a table that no other choice shares
                trial[i] = before
            else:
                room = left
        return tuple(trial)

    def _finer(self, i: int, now: int) -> int | None:
        """Return the smallest choice that is markedly finer."""
        item = self._entries[i].item
        finer = [k for k in self._allowed[i] if item.costs[k] < _PROMOTED_COST * item.costs[now]]
        return min(finer, key=lambda k: (item.sizes[k], item.costs[k]), default=None)

    def _coarser(self, i: int, now: int) -> int | None:
        """Return the largest choice that is smaller."""
        if (i, now) not in self._below:
            item = self._entries[i].item
            coarser = [k for k in self._allowed[i] if item.sizes[k] < item.sizes[now]]
            found = max(coarser, key=lambda k: (item.sizes[k], -item.costs[k]), default=None)
            self._below[i, now] = found
        return self._below[i, now]

    def _bytes(self, choices: Sequence[int]) -> int:
        chosen = flat(e.bundles[k] for e, k in zip(self._entries, choices, strict=True))
        return file_bytes(self._request.size, chosen)

    def assignments(self, choices: Choices) -> tuple[Assignment, ...]:
        """Return the assignments of a trial."""
        return tuple(
            c.assignment for c in flat(e.bundles[k] for e, k in zip(self._entries, choices, strict=True))
        )

    def plan(self, choices: Choices) -> Plan:
        """Return the plan of a trial."""
        assert self._base.solver is not None
        cost = sum(e.item.costs[k] for e, k in zip(self._entries, choices, strict=True))
        gap = max(cost - self._base.solver.bound, 0.0) / cost if cost > 0 else 0.0
        facts = self._base.solver.model_copy(update={"cost": cost, "gap": gap, "optimal": False})
        found = plan_of(self._request, self._entries, choices, self._options, facts)
        return found.model_copy(update={"warnings": self._base.warnings})


def _held(entry: Entry, held: dict[str, Assignment]) -> int:
    """Return the choice that an entry has in a plan."""
    key = storage_key(held[m.weight.name] for m in entry.menus)
    return next(i for i, b in enumerate(entry.bundles) if b.key == key)


def _is_kept(bundle: Bundle) -> bool:
    return all(c.assignment.form is Form.KEEP for c in bundle.candidates)


def _slower(a: Assignment, held: Assignment, times: TimeTable | None) -> bool:
    """Return whether an assignment takes longer than the held one; without times: rounds inputs where it does not."""
    if times is None:
        return (a.form in ROUNDED) != (held.form in ROUNDED)
    return times.ratio_of(a) > times.ratio_of(held)
