"""From scores to a plan: what each candidate would cost the forecast, and which ones the byte budget buys.

Predicted cost of a candidate: ‖ΔY‖² ≈ A · ‖Q(θ) − θ‖², A the amplification measured by probes of about that size
(quant probes at 6, 4 and 2 bits unless told otherwise). Predicted drift
adds the costs of all weights, sqrt(Σ cost / N), as if their errors were uncorrelated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocate.allocate import Allocation, Item, Solver, allocate
from tqs_onnx.allocate.objective import Objective, costs
from tqs_onnx.score.store import Scores, Status, WeightScore
from tqs_passes.candidates import Candidate, Menu
from tqs_passes.encode.fragment import field_size
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InfeasibleError
from tqs_passes.forms import Profile
from tqs_passes.plan import Assignment, Plan, SolverFacts

#: Off-trajectory weights keep at least this many bits: nothing measured says they may have fewer.
OFF_TRAJECTORY_BITS = 8
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
    """

    menus: tuple[Menu, ...]
    scores: Scores
    size: FileSize
    profile: Profile


def plan_within(request: Request, max_bytes: int, options: PlanOptions) -> Plan:
    """Return the plan whose file has at most `max_bytes` bytes and the least predicted cost.

    Raises
    ------
    InfeasibleError
        No file that small can be written; it carries the smallest size.
    """
    entries = _entries(request, options)
    net = max_bytes - request.size.of(0)
    reserved = 0
    while True:
        # The tables that the choices share are known only when they are made: reserve their bytes, choose again.
        allocation = _allocate(request, entries, net - reserved, options, reserved)
        chosen = [entry.candidates[allocation.choices[entry.menu.weight.name]] for entry in entries]
        file_bytes = request.size.of(sum(c.assignment.n_bytes for c in chosen) + shared_bytes(chosen))
        if file_bytes <= max_bytes:
            return _plan(request, entries, chosen, file_bytes, allocation, options, max_bytes)
        reserved += file_bytes - max_bytes


def shared_bytes(chosen: list[Candidate]) -> int:
    """Return the bytes of the tables and shapes that the chosen candidates share."""
    pieces: dict[str, int] = {}
    for candidate in chosen:
        pieces.update(candidate.shared)
    return sum(pieces.values())


def uniform_plan(request: Request, bits: int) -> Plan:
    """Return the uniform control: every weight of two or more dimensions at `bits` bits, per channel, the rest FP16."""
    chosen: list[Candidate] = []
    for menu in request.menus:
        wide = len(menu.weight.shape) > 1
        if wide:
            match = [
                c for c in menu.candidates if c.assignment.tier.is_integer and c.assignment.tier.bits == bits
            ]
        else:
            match = [c for c in menu.candidates if c.assignment.form is Form.CAST]
        chosen.append(min(match, key=lambda c: c.assignment.error_energy) if match else menu.candidates[0])
    n_bytes = request.size.of(sum(c.assignment.n_bytes for c in chosen) + shared_bytes(chosen))
    by_name = {s.weight: s for s in request.scores.weights}
    assignments = tuple(_scored(c, by_name[c.assignment.weight], request.scores) for c in chosen)
    return Plan(
        source_sha256=request.scores.source_sha256,
        profile=request.profile,
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
    picked = [_offered(menu, score, options) for menu, score in zip(request.menus, known, strict=True)]
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
        _Entry(menu, candidates, _item(menu, candidates, score, row, _gamma(score, request.scores)))
        for menu, candidates, score, row in zip(request.menus, picked, known, table, strict=True)
    ]


def _offered(menu: Menu, score: WeightScore, options: PlanOptions) -> tuple[Candidate, ...]:
    candidates = menu.candidates
    if score.status is Status.UNSTABLE:
        return candidates[:1]
    if score.status is Status.OFF_TRAJECTORY and not options.drop_outputs:
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
    menu: Menu, candidates: tuple[Candidate, ...], score: WeightScore, row: NDArray[np.float64], gamma: float
) -> Item:
    idle = score.status is Status.DEAD or score.status is Status.OFF_TRAJECTORY
    return Item(
        name=menu.weight.name,
        sizes=tuple(c.assignment.n_bytes for c in candidates),
        tiers=tuple(c.assignment.tier.value for c in candidates),
        costs=tuple(float(v) for v in row),
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


def _allocate(
    request: Request, entries: list[_Entry], budget: int, options: PlanOptions, shared: int
) -> Allocation:
    try:
        return allocate(
            [e.item for e in entries],
            budget,
            p_fp32=options.protected_share,
            gamma_min=options.gamma_min,
            solver=options.solver,
        )
    except InfeasibleError as error:
        smallest = request.size.of(error.smallest_bytes + shared)
        if shared == 0:
            floor = [min(e.candidates, key=lambda c: c.assignment.n_bytes) for e in entries]
            smallest += shared_bytes(floor)
        ratio = request.size.source_bytes / smallest
        raise InfeasibleError(
            f"the byte budget cannot be met: the smallest file is {smallest} bytes ({ratio:.2f} times smaller)",
            smallest_bytes=smallest,
            todo="Ask for less compression, or allow lower tiers",
        ) from error


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


def _plan(
    request: Request,
    entries: list[_Entry],
    chosen: list[Candidate],
    file_bytes: int,
    allocation: Allocation,
    options: PlanOptions,
    max_bytes: int,
) -> Plan:
    by_name: Mapping[str, WeightScore] = {s.weight: s for s in request.scores.weights}
    assignments = tuple(
        _scored(c, by_name[e.menu.weight.name], request.scores) for e, c in zip(entries, chosen, strict=True)
    )
    solution = allocation.solution
    return Plan(
        source_sha256=request.scores.source_sha256,
        profile=request.profile,
        assignments=assignments,
        n_bytes=file_bytes,
        source_bytes=request.size.source_bytes,
        predicted_drift=_drift(assignments, request.scores),
        solver=SolverFacts(
            solver=solution.solver,
            objective=options.objective.value,
            cost=solution.cost,
            bound=solution.bound,
            gap=solution.gap,
            optimal=solution.optimal,
            p_fp32=_protected_share(entries, allocation),
            budget_bytes=max_bytes,
        ),
        warnings=allocation.warnings,
    )


def _protected_share(entries: list[_Entry], allocation: Allocation) -> float:
    kept = set(allocation.fp32_protected)
    total = sum(e.menu.weight.n_values for e in entries)
    return sum(e.menu.weight.n_values for e in entries if e.menu.weight.name in kept) / total
