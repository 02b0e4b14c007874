"""From scores to a plan: what each candidate would cost the forecast, and which ones the byte budget buys.

Predicted cost of a candidate: ‖ΔY‖² ≈ A · ‖Q(θ) − θ‖², A the amplification measured by probes of about that size
(quant probes at 6, 4 and 2 bits unless told otherwise). Predicted drift
adds the costs of all weights, sqrt(Σ cost / N), as if their errors were uncorrelated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocate.allocate import Allocation, Item, Solver, allocate
from tqs_onnx.allocate.objective import Objective, costs
from tqs_onnx.allocate.twins import store_once
from tqs_onnx.score.store import Scores, Status, WeightScore
from tqs_passes.candidates import Candidate, Menu
from tqs_passes.encode.fragment import field_size
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InfeasibleError
from tqs_passes.forms import Profile
from tqs_passes.plan import Assignment, Plan, SolverFacts
from tqs_passes.targets import Serving

#: Off-trajectory weights keep at least this many bits: nothing measured says they may have fewer.
OFF_TRAJECTORY_BITS = 8
#: Above this size tables are a few percent of the file at most, and the search would take seconds (0.1 s a solve).
_TABLES_MATTER_BYTES = 1 << 16
_MOST_TWIN_ROUNDS = 3
_UNKNOWN = (Status.UNPROBED, Status.UNSTABLE)


@dataclass(frozen=True, slots=True)
class FileSize:
    """What a plan's file is made of besides the planned weights.

    Parameters
    ----------
    source_bytes : int
        Bytes of the input file, external data included.
    skeleton_bytes, skeleton_graph_bytes : int
        Serialized bytes of the model without its weights, and of its graph alone.
    """

    source_bytes: int
    skeleton_bytes: int
    skeleton_graph_bytes: int

    def of(self, added: int) -> int:
        """Return the bytes of the file whose graph holds `added` more bytes."""
        outside = self.skeleton_bytes - field_size(self.skeleton_graph_bytes)
        return outside + field_size(self.skeleton_graph_bytes + added)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How bytes are spent.

    Parameters
    ----------
    objective : Objective
    solver : {"mckp", "greedy", "greedy-top"}
    p_fp32 : float or None
        Fraction of the FP32 bytes that the most sensitive weights keep; None: 0.02 for the paper's objectives, else 0.
    gamma_min : float or None
        Weights scoring at or below it get the bottom tier; None: only dead ones do.
    drop_outputs : bool
        Outputs outside the trajectory do not matter: off-trajectory weights go to the bottom tier.
    """

    objective: Objective = Objective.ENERGY
    solver: Solver = "mckp"
    p_fp32: float | None = None
    gamma_min: float | None = None
    drop_outputs: bool = False

    @property
    def protected_share(self) -> float:
        """p_FP32 as it applies."""
        if self.p_fp32 is not None:
            return self.p_fp32
        return 0.02 if self.objective in (Objective.PAPER, Objective.PAPER_LITERAL) else 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """A model that is planned: its menus, scores and sizes.

    Parameters
    ----------
    menus : tuple of Menu
    scores : Scores
    size : FileSize
    profile : {"fast", "exact"}
    serving : Serving
    """

    menus: tuple[Menu, ...]
    scores: Scores
    size: FileSize
    profile: Profile
    serving: Serving = field(default_factory=Serving)


def plan_within(request: Request, max_bytes: int, options: PlanOptions) -> Plan:
    """Return the plan whose file has at most `max_bytes` bytes and the least predicted cost.

    Raises
    ------
    InfeasibleError
        No file that small can be written; it carries the smallest size.
    """
    entries = _entries(request, options)
    require_feasible(request.size, [e.candidates for e in entries], max_bytes)
    plan = _with_twins(
        request, _plan(request, _searched(request, entries, options, max_bytes), options, max_bytes)
    )
    for _ in range(_MOST_TWIN_ROUNDS):
        # What equal weights save is spent on a finer plan, as long as that fits.
        spare = max_bytes - plan.n_bytes
        if not any(a.same_as for a in plan.assignments):
            break
        found = _searched(request, entries, options, max_bytes + spare)
        finer = _with_twins(request, _plan(request, found, options, max_bytes))
        if finer.n_bytes > max_bytes or not _cost(plan) - _cost(finer) > 0:
            break
        plan = finer
    return plan


def _cost(plan: Plan) -> float:
    return sum(a.cost for a in plan.assignments)


def _with_twins(request: Request, plan: Plan) -> Plan:
    firsts = {m.weight.name: m.weight.duplicate_of for m in request.menus if m.weight.duplicate_of}
    return store_once(plan, request.size.of, firsts) if firsts else plan


def require_feasible(size: FileSize, offers: Sequence[Sequence[Candidate]], max_bytes: int) -> None:
    """Refuse a budget below the smallest file.

    Parameters
    ----------
    size : FileSize
    offers : sequence of sequence of Candidate
        What each weight may be stored as.
    max_bytes : int

    Raises
    ------
    InfeasibleError
        It carries the smallest size, which is feasible.
    """
    smallest, _ = smallest_file(size, offers)
    if smallest > max_bytes:
        ratio = size.source_bytes / smallest
        raise InfeasibleError(
            f"the byte budget cannot be met: the smallest file is {smallest} bytes ({ratio:.2f} times smaller)",
            smallest_bytes=smallest,
            todo="Ask for less compression, or allow lower tiers",
        )


def offers_before_scoring(
    menus: Sequence[Menu], off_trajectory: frozenset[str], options: PlanOptions
) -> list[tuple[Candidate, ...]]:
    """Return what each weight may be stored as, as far as that is known without scores.

    A budget that is too small for these is too small whatever the scores say.
    """
    off, alive = Status.OFF_TRAJECTORY, Status.ALIVE
    return [_offered(m, off if m.weight.name in off_trajectory else alive, options) for m in menus]


def _smallest(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda c: c.assignment.n_bytes)


def file_bytes(size: FileSize, chosen: Sequence[Candidate]) -> int:
    """Return the bytes of the file with the chosen candidates, shared tables included."""
    return size.of(sum(c.assignment.n_bytes for c in chosen) + shared_bytes(chosen))


@dataclass(frozen=True, slots=True)
class _Found:
    """One allocation, and the bytes of its file."""

    entries: list[_Entry]
    allocation: Allocation
    chosen: list[Candidate]
    file_bytes: int


def _try(request: Request, entries: list[_Entry], budget: int, options: PlanOptions) -> _Found:
    allocation = allocate(
        [e.item for e in entries],
        budget,
        p_fp32=options.protected_share,
        gamma_min=options.gamma_min,
        solver=options.solver,
    )
    chosen = [entry.candidates[allocation.choices[entry.menu.weight.name]] for entry in entries]
    return _Found(entries, allocation, chosen, file_bytes(request.size, chosen))


def _searched(request: Request, entries: list[_Entry], options: PlanOptions, max_bytes: int) -> _Found:
    """Return the best allocation over which kinds of codes, (tier, grid), the file may use.

    The knapsack does not see that choices share tables. They take a few hundred bytes a kind: they decide in small
    models, whose knapsacks are quick, so there kinds are dropped and added one at a time while that helps.
    """
    every = frozenset(_kind(c) for e in entries for c in e.candidates if c.shared)
    _, least = smallest_file(request.size, [e.candidates for e in entries])
    search = options.solver == "mckp" and max_bytes <= _TABLES_MATTER_BYTES
    queue = [every, least, *_starts(every)] if search else [every, least]
    tried: set[frozenset[str]] = set()
    found: _Found | None = None
    while queue:
        kinds = queue.pop(0)
        if kinds in tried or (found is not None and not search):
            continue
        tried.add(kinds)
        again = _spent(request, [_of_kinds(e, kinds) for e in entries], options, max_bytes)
        if again is not None and (found is None or again.allocation.cost < found.allocation.cost):
            found = again
            used = frozenset(_kind(c) for c in found.chosen if c.shared)
            queue = [used, *(used ^ {kind} for kind in sorted(every)), *queue] if search else []
    if found is None:
        raise AssertionError("unreachable: the smallest file fits")
    return found


def _of_kinds(entry: _Entry, kinds: frozenset[str]) -> _Entry:
    return _limited(entry, lambda c: _is_of(c, kinds))


def _is_of(candidate: Candidate, kinds: frozenset[str]) -> bool:
    return not candidate.shared or _kind(candidate) in kinds


def smallest_file(size: FileSize, offers: Sequence[Sequence[Candidate]]) -> tuple[int, frozenset[str]]:
    """Return the bytes of the smallest file found, and the kinds of codes it uses.

    The smallest choice of each weight is not the smallest file where tables outweigh what they save, so kinds are
    dropped and added one at a time while that helps.
    """
    every = frozenset(_kind(c) for offer in offers for c in offer if c.shared)

    def n_bytes(kinds: frozenset[str]) -> int:
        return file_bytes(size, [_smallest([c for c in offer if _is_of(c, kinds)]) for offer in offers])

    best = min(_starts(every), key=n_bytes)
    while True:
        nearest = min((best ^ {kind} for kind in sorted(every)), key=n_bytes, default=best)
        if n_bytes(nearest) >= n_bytes(best):
            return n_bytes(best), best
        best = nearest


def _starts(every: frozenset[str]) -> list[frozenset[str]]:
    return [every, frozenset[str](), *(frozenset({kind}) for kind in sorted(every))]


def _kind(candidate: Candidate) -> str:
    return f"{candidate.assignment.tier} {candidate.assignment.grid}"


def _spent(request: Request, entries: list[_Entry], options: PlanOptions, max_bytes: int) -> _Found | None:
    """Return an allocation whose file fits, None where there is none."""
    if file_bytes(request.size, [_smallest(e.candidates) for e in entries]) > max_bytes:
        return None
    net = max_bytes - request.size.of(0)
    most = net - sum(_smallest(e.candidates).assignment.n_bytes for e in entries)
    reserved = 0
    while True:
        # The tables that the choices share are known only when they are made: reserve their bytes, choose again.
        # With all that is spare reserved, the smallest choices are left, and those fit.
        found = _try(request, entries, net - reserved, options)
        if found.file_bytes <= max_bytes or reserved == most:
            break
        reserved = min(reserved + found.file_bytes - max_bytes, most)
    tables = frozenset(key for c in found.chosen for key in c.shared)
    paid = [_limited(entry, lambda c: tables.issuperset(c.shared)) for entry in entries]
    again = _try(request, paid, max_bytes - request.size.of(shared_bytes(found.chosen)), options)
    better = again.file_bytes <= max_bytes and again.allocation.cost < found.allocation.cost
    return again if better else found


def _limited(entry: _Entry, offered: Callable[[Candidate], bool]) -> _Entry:
    kept = [i for i, c in enumerate(entry.candidates) if offered(c)]
    item = replace(
        entry.item,
        sizes=tuple(entry.item.sizes[i] for i in kept),
        tiers=tuple(entry.item.tiers[i] for i in kept),
        costs=tuple(entry.item.costs[i] for i in kept),
    )
    return _Entry(entry.menu, tuple(entry.candidates[i] for i in kept), item)


def shared_bytes(chosen: Sequence[Candidate]) -> int:
    """Return the bytes of the tables and shapes that the chosen candidates share."""
    pieces: dict[str, int] = {}
    for candidate in chosen:
        pieces.update(candidate.shared)
    return sum(pieces.values())


def uniform_choices(menus: Sequence[Menu], bits: int) -> list[Candidate]:
    """Return the uniform choice: every weight of two or more dimensions at `bits` bits, per channel, the rest FP16."""
    chosen: list[Candidate] = []
    for menu in menus:
        wide = len(menu.weight.shape) > 1
        if wide:
            match = [
                c for c in menu.candidates if c.assignment.tier.is_integer and c.assignment.tier.bits == bits
            ]
            # Where the menu lacks that width another choice is no larger and no worse: the next finer one.
            finer = [c for c in menu.candidates if c.assignment.tier.bits >= bits]
        else:
            match = [c for c in menu.candidates if c.assignment.form is Form.CAST]
            finer = [menu.candidates[0]]
        chosen.append(min(match, key=lambda c: c.assignment.error_energy) if match else _smallest(finer))
    return chosen


def uniform_plan(request: Request, bits: int) -> Plan:
    """Return the uniform control (see `uniform_choices`) with its predicted drift."""
    chosen = uniform_choices(request.menus, bits)
    n_bytes = file_bytes(request.size, chosen)
    by_name = {s.weight: s for s in request.scores.weights}
    assignments = tuple(_scored(c, by_name[c.assignment.weight], request.scores) for c in chosen)
    return Plan(
        source_sha256=request.scores.source_sha256,
        profile=request.profile,
        target=request.serving.target,
        constants=request.serving.constants_as_stored,
        opset=request.serving.opset,
        assignments=assignments,
        n_bytes=n_bytes,
        source_bytes=request.size.source_bytes,
        predicted_drift=_drift(assignments, request.scores),
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    menu: Menu
    candidates: tuple[Candidate, ...]
    item: Item


def _entries(request: Request, options: PlanOptions) -> list[_Entry]:
    by_name = {s.weight: s for s in request.scores.weights}
    known = [by_name[m.weight.name] for m in request.menus]
    picked = [_offered(menu, score.status, options) for menu, score in zip(request.menus, known, strict=True)]
    table = costs(
        options.objective,
        amplification=[
            np.array([amplification(s, c.assignment.error_energy, request.scores) for c in cs])
            for s, cs in zip(known, picked, strict=True)
        ],
        gamma=np.array([_gamma(s, request.scores) for s in known]),
        error_energy=[np.array([c.assignment.error_energy for c in cs]) for cs in picked],
        bits=[np.array([float(c.assignment.tier.bits) for c in cs]) for cs in picked],
    )
    return [
        _Entry(menu, candidates, _item(menu, candidates, score, row, _gamma(score, request.scores), options))
        for menu, candidates, score, row in zip(request.menus, picked, known, table, strict=True)
    ]


def _offered(menu: Menu, status: Status, options: PlanOptions) -> tuple[Candidate, ...]:
    candidates = menu.candidates
    if status is Status.UNSTABLE:
        return candidates[:1]
    if status is Status.OFF_TRAJECTORY and not options.drop_outputs:
        candidates = tuple(c for c in candidates if c.assignment.tier.bits >= OFF_TRAJECTORY_BITS)
    if options.objective in (Objective.PAPER, Objective.PAPER_LITERAL):
        # These objectives see a tier's bits only: give each tier its best grid, or the worst would be chosen.
        best: dict[str, Candidate] = {}
        for c in candidates:
            held = best.get(c.assignment.tier)
            if held is None or c.assignment.error_energy < held.assignment.error_energy:
                best[c.assignment.tier] = c
        candidates = tuple(best.values())
    return candidates


def _item(
    menu: Menu,
    candidates: tuple[Candidate, ...],
    score: WeightScore,
    row: NDArray[np.float64],
    gamma: float,
    options: PlanOptions,
) -> Item:
    idle = score.status is Status.DEAD or score.status is Status.OFF_TRAJECTORY
    idle = idle or (options.gamma_min is not None and gamma <= options.gamma_min)
    return Item(
        name=menu.weight.name,
        sizes=tuple(c.assignment.n_bytes for c in candidates),
        tiers=tuple(c.assignment.tier.value for c in candidates),
        costs=tuple(0.0 if idle else float(v) for v in row),
        gamma=gamma,
        n_values=menu.weight.n_values,
        dead=idle,
        fp32_choice=0,
        floor_choice=None,
    )


def amplification(score: WeightScore, error_energy: float, scores: Scores) -> float:
    """Return A of a weight for an error of this energy: how a rollout answers depends on how hard it is pushed.

    Between the probes' sizes ln A is linear in ln ‖δθ‖²; beyond them it is constant. 0 if dead; the largest of all
    weights when no probe could tell.
    """
    if score.status in (Status.DEAD, Status.OFF_TRAJECTORY) or error_energy <= 0:
        return 0.0
    points = [p for p in score.response if p.amplification > 0]
    if points:
        sizes = [math.log(p.delta_sq) for p in points]
        logs = [math.log(p.amplification) for p in points]
        return math.exp(float(np.interp(math.log(error_energy), sizes, logs)))
    if score.status in _UNKNOWN:
        return max((s.amplification or 0.0 for s in scores.weights), default=0.0)
    return 0.0


def _gamma(score: WeightScore, scores: Scores) -> float:
    """Return γ_task: −inf if dead, the largest of all when the probe could not tell."""
    if score.status in _UNKNOWN:
        return max((s.gamma_task for s in scores.weights if s.gamma_task is not None), default=0.0)
    return -math.inf if score.gamma_task is None else score.gamma_task


def _scored(candidate: Candidate, score: WeightScore, scores: Scores) -> Assignment:
    a = amplification(score, candidate.assignment.error_energy, scores)
    return candidate.assignment.model_copy(
        update={
            "gamma": score.gamma_task,
            "amplification": a,
            "cost": a * candidate.assignment.error_energy,
            "dead": score.status is Status.DEAD,
        }
    )


def _drift(assignments: tuple[Assignment, ...], scores: Scores) -> float:
    return math.sqrt(sum(a.cost for a in assignments) / scores.n_values)


def _plan(request: Request, found: _Found, options: PlanOptions, max_bytes: int) -> Plan:
    by_name: Mapping[str, WeightScore] = {s.weight: s for s in request.scores.weights}
    allocation = found.allocation
    assignments = tuple(
        _scored(c, by_name[e.menu.weight.name], request.scores)
        for e, c in zip(found.entries, found.chosen, strict=True)
    )
    solution = allocation.solution
    return Plan(
        source_sha256=request.scores.source_sha256,
        profile=request.profile,
        target=request.serving.target,
        constants=request.serving.constants_as_stored,
        opset=request.serving.opset,
        assignments=assignments,
        n_bytes=found.file_bytes,
        source_bytes=request.size.source_bytes,
        predicted_drift=_drift(assignments, request.scores),
        solver=SolverFacts(
            solver=solution.solver,
            objective=options.objective.value,
            cost=solution.cost,
            bound=solution.bound,
            gap=solution.gap,
            optimal=solution.optimal,
            p_fp32=_protected_share(found.entries, allocation),
            budget_bytes=max_bytes,
        ),
        warnings=allocation.warnings,
    )


def _protected_share(entries: list[_Entry], allocation: Allocation) -> float:
    kept = set(allocation.fp32_protected)
    total = sum(e.menu.weight.n_values for e in entries)
    return sum(e.menu.weight.n_values for e in entries if e.menu.weight.name in kept) / total
