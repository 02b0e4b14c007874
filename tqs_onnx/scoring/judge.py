"""Computes scores from measurements: a pure function, so that a resumed run gives the same scores.

status          when
==============  =====================================================================================================
unstable        a probe made the rollout NaN or infinite
unprobed        the probe was zero
dead            no probe moved any context beyond the noise floor; or γ_task is at or below `dead_below`; or it is
                below the rounding floor and ties at the lowest γ_task (`dead_at_minimum`)
below-floor     the probe moved the trajectory no more than one unit in the last place of the initial state does; what
                coarser probes do is kept as its response
==============  =====================================================================================================

The floors are those of the session it was perturbed in. Only an alive weight has numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.scoring.measure.facts import Floors
from tqs_onnx.scoring.measure.gamma import EPSILON, Gammas, gammas
from tqs_onnx.scoring.measure.meter import Measurement
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.scores import ResponsePoint, Status, WeightScore
from tqs_passes.weights import Weight

#: Two γ_task that differ by less tie.
_TIE = 1e-9
_NUMBERS = ("gamma_stderr", "gamma_task", "gamma_task_stderr", "gamma_task_mean", "amplification", "growth")


@dataclass(frozen=True, slots=True)
class Judged:
    """The score of a target, without the names of its weights.

    Parameters
    ----------
    status : Status
    gammas : Gammas or None
        None if nothing was rolled out, or if the rollout was not finite.
    delta_norm : float
    draws : int
    response : tuple of ResponsePoint
    variables : tuple of float
        Amplification of each variable.
    steps : int
        Model calls of the longest rollout.
    """

    status: Status
    gammas: Gammas | None = None
    delta_norm: float = 0.0
    draws: int = 0
    response: tuple[ResponsePoint, ...] = ()
    variables: tuple[float, ...] = ()
    steps: int = 0


def judge(
    primary: Sequence[Measurement],
    further: Sequence[Measurement],
    horizons: tuple[int, ...],
    floors: Floors,
    options: ScoreOptions,
) -> Judged:
    """Return the score of a target from the measurements of its draws and response, and the floors of its session."""
    everything = (*primary, *further)
    if not all(m.finite for m in everything):
        return Judged(Status.UNSTABLE)
    energy = np.stack([m.energy for m in primary])
    delta_sq = np.array([m.delta_sq for m in primary])
    points = {float(delta_sq.mean()): _amplification(energy, delta_sq)}
    for m in further:
        points[m.delta_sq] = _amplification(m.energy[None], np.array([m.delta_sq]))
    response = tuple(ResponsePoint(delta_sq=d, amplification=a) for d, a in sorted(points.items()) if d > 0.0)
    if not delta_sq.all():
        return Judged(Status.UNPROBED, response=response)
    norm, draws = float(np.sqrt(delta_sq.mean())), len(primary)
    g = gammas(energy, delta_sq, horizons, np.array(floors.rounding_at) if floors.rounding_at else None)
    still = all(_peak(m) <= floors.noise for m in everything)
    if still or (options.dead_below is not None and g.gamma_task <= options.dead_below):
        return Judged(Status.DEAD, None, norm, draws)
    if max(_peak(m) for m in primary) <= floors.rounding:
        # A coarser probe may have moved the trajectory; the allocator must know.
        seen = {m.delta_sq for m in further if _peak(m) > floors.rounding}
        return Judged(Status.BELOW_FLOOR, g, norm, draws, tuple(p for p in response if p.delta_sq in seen))
    variables = np.mean([m.variables / (m.delta_sq + EPSILON) for m in primary], axis=0)
    steps = max(m.steps for m in everything)
    return Judged(Status.ALIVE, g, norm, draws, response, tuple(float(v) for v in variables), steps)


def settle_minimum(judged: dict[str, Judged]) -> dict[str, Judged]:
    """Mark the scores that tie at the lowest γ_task as dead, if there are two or more and they are below the floor."""
    rates = {name: j.gammas.gamma_task for name, j in judged.items() if j.gammas is not None}
    low = min(rates.values(), default=0.0)
    ties = [n for n, rate in rates.items() if rate - low <= _TIE and judged[n].status is Status.BELOW_FLOOR]
    if len(ties) < 2:
        return judged
    return {
        n: Judged(Status.DEAD, None, j.delta_norm, j.draws) if n in ties else j for n, j in judged.items()
    }


def scored(weight: Weight, judged: Judged, names: Sequence[str], block: str = "") -> WeightScore:
    """Return the score of a weight, or of a block's member, with its name and its readers.

    Parameters
    ----------
    weight : Weight
    judged : Judged
    names : sequence of str
        Variables, in the ruler's order.
    block : str
        Name of its block, or empty.
    """
    base = blank(weight, judged.status).model_copy(
        update={"block": block, "delta_norm": judged.delta_norm, "draws": judged.draws}
    )
    if judged.status in (Status.UNPROBED, Status.BELOW_FLOOR):
        return base.model_copy(update={"response": judged.response})
    g = judged.gammas
    if judged.status is not Status.ALIVE or g is None:
        return base
    return base.model_copy(
        update={
            "gamma": g.gamma,
            "gamma_stderr": g.gamma_stderr,
            "gamma_task": g.gamma_task,
            "gamma_task_stderr": g.gamma_task_stderr,
            "gamma_task_mean": g.gamma_task_mean,
            "convergence": g.convergence,
            "a_max": g.a_max,
            "amplification": g.amplification,
            "variables": dict(zip(names, judged.variables, strict=True)),
            "growth": g.growth,
            "response": judged.response,
            "steps": judged.steps,
        }
    )


def blank(weight: Weight, status: Status) -> WeightScore:
    """Return the score of a weight without numbers."""
    readers = tuple(f"{r.op_type}:{r.input_index}" for r in weight.readers)
    return WeightScore(
        weight=weight.name,
        label=weight.label,
        role=weight.role,
        shape=weight.shape,
        status=status,
        readers=readers,
    )


def mean_of(scores: Sequence[WeightScore]) -> dict[str, object]:
    """Return the numbers of a block: the means over its alive members."""
    alive = [s for s in scores if s.status is Status.ALIVE]
    if not alive:
        return {}
    found: dict[str, object] = {name: _mean([getattr(s, name) for s in alive]) for name in _NUMBERS}
    gamma = [_mean(at) for at in zip(*(s.gamma or () for s in alive), strict=True)]
    last = gamma[-1]
    found["gamma"] = tuple(gamma)
    found["convergence"] = tuple(None if g is None else g / last for g in gamma) if last else None
    found["variables"] = {v: _mean([s.variables[v] for s in alive]) for v in alive[0].variables}
    found["a_max"] = max(s.a_max or 0.0 for s in alive)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are none."""
    numbers = [v for v in values if v is not None]
    return float(np.mean(numbers)) if numbers else None


def _peak(measurement: Measurement) -> float:
    return float(measurement.energy[:, -1].max())


def _amplification(energy: NDArray[np.float64], delta_sq: NDArray[np.float64]) -> float:
    return float(np.mean(energy[..., -1] / (delta_sq[:, None] + EPSILON)))
