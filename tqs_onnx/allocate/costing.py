"""What each candidate would cost the forecast.

Predicted cost of a candidate: ‖ΔY‖² ≈ A · ‖Q(θ) − θ‖², A the amplification measured by probes of about that size
(quant probes at 6, 4 and 2 bits unless told otherwise). Predicted drift adds the costs of all weights,
sqrt(Σ cost / N), as if their errors were uncorrelated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocate.allocate import Item, Solver
from tqs_onnx.allocate.file_size import FileSize
from tqs_onnx.allocate.objective import Objective, costs
from tqs_onnx.score.store import Scores, Status, WeightScore
from tqs_passes.candidates import Candidate, Menu
from tqs_passes.forms import Profile
from tqs_passes.plan import Assignment
from tqs_passes.targets import Serving

#: Off-trajectory weights keep at least this many bits: nothing measured says they may have fewer.
OFF_TRAJECTORY_BITS = 8
_UNKNOWN = (Status.UNPROBED, Status.UNSTABLE)


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


@dataclass(frozen=True, slots=True)
class Entry:
    """A weight, the candidates it is offered, and the knapsack item they make."""

    menu: Menu
    candidates: tuple[Candidate, ...]
    item: Item


def entries_of(request: Request, options: PlanOptions) -> list[Entry]:
    """Return what every weight is offered and what each candidate costs, in menu order."""
    by_name = {s.weight: s for s in request.scores.weights}
    known = [by_name[m.weight.name] for m in request.menus]
    picked = [offered(menu, score.status, options) for menu, score in zip(request.menus, known, strict=True)]
    table = costs(
        options.objective,
        amplification=[
            np.array([amplification(s, c.assignment.error_energy, request.scores) for c in cs])
            for s, cs in zip(known, picked, strict=True)
        ],
        gamma=np.array([gamma_of(s, request.scores) for s in known]),
        error_energy=[np.array([c.assignment.error_energy for c in cs]) for cs in picked],
        bits=[np.array([float(c.assignment.tier.bits) for c in cs]) for cs in picked],
    )
    return [
        Entry(menu, candidates, _item(menu, candidates, score, row, gamma_of(score, request.scores), options))
        for menu, candidates, score, row in zip(request.menus, picked, known, table, strict=True)
    ]


def offers_before_scoring(
    menus: Sequence[Menu], off_trajectory: frozenset[str], options: PlanOptions
) -> list[tuple[Candidate, ...]]:
    """Return what each weight may be stored as, as far as that is known without scores.

    A budget that is too small for these is too small whatever the scores say.
    """
    off, alive = Status.OFF_TRAJECTORY, Status.ALIVE
    return [offered(m, off if m.weight.name in off_trajectory else alive, options) for m in menus]


def offered(menu: Menu, status: Status, options: PlanOptions) -> tuple[Candidate, ...]:
    """Return the candidates a weight of this status may have."""
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


def gamma_of(score: WeightScore, scores: Scores) -> float:
    """Return γ_task: −inf if dead, the largest of all when the probe could not tell."""
    if score.status in _UNKNOWN:
        return max((s.gamma_task for s in scores.weights if s.gamma_task is not None), default=0.0)
    return -math.inf if score.gamma_task is None else score.gamma_task


def scored(candidate: Candidate, score: WeightScore, scores: Scores) -> Assignment:
    """Return a candidate's assignment with its score, amplification and predicted cost."""
    a = amplification(score, candidate.assignment.error_energy, scores)
    return candidate.assignment.model_copy(
        update={
            "gamma": score.gamma_task,
            "amplification": a,
            "cost": a * candidate.assignment.error_energy,
            "dead": score.status is Status.DEAD,
        }
    )


def added_drift(assignments: tuple[Assignment, ...], scores: Scores) -> float:
    """Return the predicted drift: costs added as if errors were uncorrelated."""
    return math.sqrt(sum(a.cost for a in assignments) / scores.n_values)
