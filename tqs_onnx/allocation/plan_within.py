"""Turn scores into a plan: choose the candidates that a byte budget allows."""

from __future__ import annotations

from collections.abc import Sequence

from tqs_onnx.allocation.cap import capped
from tqs_onnx.allocation.choice import flat
from tqs_onnx.allocation.costing import PlanOptions, Request, added_drift, scored
from tqs_onnx.allocation.file_size import file_bytes, require_feasible
from tqs_onnx.allocation.offers import UNMEASURED_BITS, Entry, entries_of
from tqs_onnx.allocation.solver.algorithm2 import Allocation
from tqs_onnx.allocation.spend import Spent
from tqs_onnx.allocation.two_budgets import predicted_time, within_budgets
from tqs_passes.plan.plan import Assignment, Plan, SolverFacts, TimeFacts


def plan_within(request: Request, max_bytes: int, options: PlanOptions) -> Plan:
    """Return the plan with the least predicted cost whose file has at most `max_bytes` bytes.

    Raises
    ------
    InfeasibleError
        No file of this size can be written; the error carries the smallest size.
    """
    entries = entries_of(request, options)
    unseen = [s.label for s in request.scores.weights if s.unseen]
    require_feasible(request.size, [e.bundles for e in entries], max_bytes, unseen)
    if options.max_fp32 is not None:
        blocks = {s.weight: s.block for s in request.scores.weights if s.block}
        free = within_budgets(request, entries, options, max_bytes)
        entries = capped(entries, free.chosen, options.max_fp32, blocks)
        require_feasible(request.size, [e.bundles for e in entries], max_bytes, unseen)
    return _plan(request, within_budgets(request, entries, options, max_bytes), options, max_bytes)


def _plan(request: Request, found: Spent, options: PlanOptions, max_bytes: int) -> Plan:
    allocation, solution = found.allocation, found.allocation.solution
    facts = SolverFacts(
        solver=solution.solver,
        objective=options.aim.value,
        cost=solution.cost,
        bound=solution.bound,
        gap=solution.gap,
        optimal=solution.optimal,
        p_fp32=_protected_share(found.entries, allocation),
        budget_bytes=max_bytes,
        saturated=allocation.saturated,
    )
    plan = plan_of(request, found.entries, found.choices, options, facts)
    return plan.model_copy(update={"warnings": (*allocation.warnings, *plan.warnings)})


def plan_of(
    request: Request,
    entries: Sequence[Entry],
    choices: Sequence[int],
    options: PlanOptions,
    facts: SolverFacts,
) -> Plan:
    """Return the plan that these choices make, with its predicted costs.

    Parameters
    ----------
    request : Request
    entries : sequence of Entry
    choices : sequence of int
        Index into the bundles of each entry.
    options : PlanOptions
    facts : SolverFacts
        How the choices were found.
    """
    by_name = {s.weight: s for s in request.scores.weights}
    made = {
        m.weight.name: scored(c, by_name[m.weight.name], a, request.scores, block=e.block)
        for e, k in zip(entries, choices, strict=True)
        for m, c, a in zip(e.menus, e.bundles[k].candidates, e.amplifications[k], strict=True)
    }
    assignments = tuple(made[m.weight.name] for m in request.menus)
    predicted = added_drift(assignments, request.scores)
    return Plan(
        source_sha256=request.scores.source_sha256,
        profile=request.profile,
        target=request.serving.target,
        constants=request.serving.constants_as_stored,
        opset=request.serving.opset,
        compute=request.serving.compute,
        names=request.serving.names_as_stored,
        graph=request.serving.graph_as_stored,
        pinned=request.serving.pinned,
        assignments=assignments,
        n_bytes=file_bytes(request.size, flat(e.bundles[k] for e, k in zip(entries, choices, strict=True))),
        source_bytes=request.size.source_bytes,
        predicted_drift=predicted,
        added_drift=predicted,
        solver=facts,
        warnings=_unseen(assignments),
        time=_time(request, assignments, options),
    )


def _time(request: Request, assignments: tuple[Assignment, ...], options: PlanOptions) -> TimeFacts | None:
    times = request.times
    if times is None:
        return None
    limit = None if options.speedup is None else 1 / options.speedup
    return TimeFacts(
        predicted=predicted_time(assignments, times),
        limit=limit,
        batch=times.batch,
        threads=times.threads,
        processor=times.processor,
    )


def _unseen(assignments: tuple[Assignment, ...]) -> tuple[str, ...]:
    """Return a warning for each reason why no context ran every part of a weight; it names the weights."""
    labels: dict[tuple[str, str], list[str]] = {}
    for a in (a for a in assignments if a.unseen):
        kept = "8 bits or more" if a.least_bits >= UNMEASURED_BITS else f"{a.tier}, as told to"
        labels.setdefault((kept, a.unseen), []).append(a.label)
    found: list[str] = []
    for (kept, why), (first, *others) in labels.items():
        names = f"{first!r} and {len(others)} more keep" if others else f"{first!r} keeps"
        found.append(f"{names} {kept}: {why}; give contexts that run it to measure what it needs")
    return tuple(found)


def _protected_share(entries: list[Entry], allocation: Allocation) -> float:
    kept = set(allocation.fp32_protected)
    total = sum(e.item.n_values for e in entries)
    return sum(e.item.n_values for e in entries if e.item.name in kept) / total
