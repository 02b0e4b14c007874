"""Predict what each candidate would cost the forecast.

Predicted cost of a candidate: ‖ΔY‖² ≈ A · ‖Q(θ) − θ‖², where A is the amplification measured by probes of about that
size (quant probes at 6, 4 and 2 bits by default). A candidate whose reader rounds its input to 8 bits adds the measured
response to that rounding. The predicted drift adds the costs of all weights,
sqrt(Σ cost / N), as if their errors were uncorrelated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tqs_onnx.allocation.file_size import FileSize
from tqs_onnx.allocation.objective import Objective, RankBy
from tqs_onnx.allocation.solver.algorithm2 import Solver
from tqs_onnx.allocation.times import TimeTable
from tqs_onnx.scoring.scores import Scores, Status, WeightScore
from tqs_passes.encode.weight import ROUNDED
from tqs_passes.errors import InputError
from tqs_passes.plan.candidates import Candidate, Menu
from tqs_passes.plan.forms import Profile
from tqs_passes.plan.plan import Assignment
from tqs_passes.plan.targets import Serving

#: Statuses of weights that moved no trajectory.
IDLE = (Status.DEAD, Status.OFF_TRAJECTORY, Status.UNSEEN)
_UNKNOWN = (Status.UNPROBED, Status.UNSTABLE)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Options for spending the bytes.

    Parameters
    ----------
    objective : Objective or None
        None: `measured` when data choose the integers, else `energy`; see `decided`.
    solver : {"mckp", "greedy", "greedy-top"}
    p_fp32 : float or None
        Fraction of the FP32 bytes kept by the most sensitive weights; None: 0.02 for the paper's objectives, else 0.
    gamma_min : float or None
        Weights with γ at or below it get the lowest tier; None: only dead weights do.
    rank_by : RankBy
        The γ that the paper's objectives, `p_fp32` and `gamma_min` go by.
    drop_outputs : bool
        Ignore outputs outside the trajectory: off-trajectory weights get the lowest tier.
    max_fp32 : int or None
        Largest number of weights in FP32, one per block; the others get 16 bits (the paper's cap on Pangu).
    ties : tuple of str
        Patterns; all weights whose name or label matches one of them get the same tier.
    untie : bool
        Weights that were scored as a block may get different tiers.
    speedup : float or None
        The file must be at least so many times faster than FP32, as predicted from measured times; None: any.
    round_inputs : tuple of str
        Patterns of weights whose readers must round their inputs to 8 bits, wherever they can.

    Raises
    ------
    InputError
        The speedup is not positive, or the objective or the solver cannot spend time.
    """

    objective: Objective | None = None
    solver: Solver = "mckp"
    p_fp32: float | None = None
    gamma_min: float | None = None
    rank_by: RankBy = RankBy.TASK
    drop_outputs: bool = False
    max_fp32: int | None = None
    ties: tuple[str, ...] = ()
    untie: bool = False
    speedup: float | None = None
    round_inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate the speedup (see Raises)."""
        if not self.rounds_inputs:
            return
        if self.speedup is not None and not 0 < self.speedup < math.inf:
            raise InputError(f"`speedup` must be positive, not {self.speedup}", todo="Give e.g. 2")
        if self.aim not in (Objective.ENERGY, Objective.MEASURED) or self.solver != "mckp" or self.p_fp32:
            raise InputError(
                "a `speedup`, or `round_inputs`, needs costs that hold the effect of rounded activations, and free "
                "choice of all weights",
                todo="Use the objective energy or measured, the solver mckp, and no `p_fp32`",
            )

    @property
    def rounds_inputs(self) -> bool:
        """Whether readers that round their inputs are offered."""
        return self.speedup is not None or bool(self.round_inputs)

    @property
    def aim(self) -> Objective:
        """The objective; `energy` when none was chosen."""
        return self.objective or Objective.ENERGY

    def decided(self, *, by_data: bool) -> PlanOptions:
        """Return these options with an objective: by default `measured` when data choose the integers."""
        usual = Objective.MEASURED if by_data else Objective.ENERGY
        return replace(self, objective=self.objective or usual)

    @property
    def protected_share(self) -> float:
        """`p_fp32` as it takes effect."""
        if self.p_fp32 is not None:
            return self.p_fp32
        return 0.02 if self.aim in (Objective.PAPER, Objective.PAPER_LITERAL) else 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """A model to plan: its menus, scores and sizes.

    Parameters
    ----------
    menus : tuple of Menu
    scores : Scores
    size : FileSize
    profile : {"fast", "exact", "small"}
    serving : Serving
    responses : mapping of str to float
        Measured ‖ΔY‖² of one context, by `Bundle.key`; infinite when the rollout was not finite.
    times : TimeTable or None
        Measured times of the forms; required by a budget of time.
    priced : dict
        What `offers` keeps between the plans of one request, whatever was measured between them.
    """

    menus: tuple[Menu, ...]
    scores: Scores
    size: FileSize
    profile: Profile
    serving: Serving = field(default_factory=Serving)
    responses: Mapping[str, float] = field(default_factory=dict[str, float])
    times: TimeTable | None = None
    priced: dict[object, object] = field(default_factory=dict[object, object], repr=False, compare=False)


def amplification(score: WeightScore, error_energy: float, scores: Scores) -> float:
    """Return A of a weight for an error of this energy; A depends on the size of the perturbation.

    Between the sizes of the probes ln A is linear in ln ‖δθ‖²; outside them it is constant. A is 0 for a dead or
    unseen weight, and the largest A of all weights when no probe could measure it.
    """
    if score.status in IDLE or error_energy <= 0:
        return 0.0
    points = [p for p in score.response if p.amplification > 0]
    if points:
        sizes = [math.log(p.delta_sq) for p in points]
        logs = [math.log(p.amplification) for p in points]
        return math.exp(float(np.interp(math.log(error_energy), sizes, logs)))
    if score.status in _UNKNOWN:
        return max((s.amplification or 0.0 for s in scores.weights), default=0.0)
    return 0.0


def gamma_of(score: WeightScore, scores: Scores, by: RankBy = RankBy.TASK) -> float:
    """Return γ of a weight: −inf if it is dead, the largest of all weights when the probe could not measure it."""
    if score.status in _UNKNOWN:
        return max((g for s in scores.weights if (g := _gamma(s, by)) is not None), default=0.0)
    found = _gamma(score, by)
    return -math.inf if found is None else found


def _gamma(score: WeightScore, by: RankBy) -> float | None:
    match by:
        case RankBy.TASK:
            return score.gamma_task
        case RankBy.MEAN:
            return score.gamma_task_mean
        case RankBy.PLAIN:
            return None if score.gamma is None else score.gamma[-1]


def activation_cost(a: Assignment, scores: Scores) -> float:
    """Return the measured ‖ΔY‖² of rounding the input of a weight's reader, if the assignment has it rounded.

    Infinite if it was not measured, or made the rollout NaN or infinite.
    """
    if a.form not in ROUNDED:
        return 0.0
    found = next((s for s in scores.activations if s.weight == a.weight and s.ranges == a.ranges), None)
    return found.energy if found is not None and found.finite else math.inf


def scored(
    candidate: Candidate, score: WeightScore, a: float, scores: Scores, *, block: str = ""
) -> Assignment:
    """Return a candidate's assignment with its score, its amplification `a`, its predicted cost and its tie group."""
    return candidate.assignment.model_copy(
        update={
            "block": block,
            "gamma": score.gamma_task,
            "amplification": a,
            "cost": a * candidate.assignment.error_energy + activation_cost(candidate.assignment, scores),
            "dead": score.status is Status.DEAD,
            "unseen": score.unseen,
        }
    )


def added_drift(assignments: tuple[Assignment, ...], scores: Scores) -> float | None:
    """Return the predicted drift: costs added as if errors were uncorrelated.

    Costs in the data's own units become a drift only if there is one variable; None if there are several.
    """
    drift = math.sqrt(sum(a.cost for a in assignments) / scores.n_values)
    if scores.units == "std":
        return drift
    return drift / next(iter(scores.sigma.values())) if len(scores.sigma) == 1 else None
