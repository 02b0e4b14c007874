"""Curvature of every weight, to hold against γ: Hessian, error of the inputs, Fisher (paper, A.12.1 and A.13).

    tr H        mean over calls and contexts of ‖x‖² of the inputs x that the weight is multiplied with (H = Σ xᵀx)
    H_Δ / H     ‖Σ (x_fp32 − x)ᵀ x‖ / ‖H‖ when all other weights are rounded as a plan says (QEP's correction)
    tr F        Fisher information of the squared error against the truth: mean over contexts of ‖∂L/∂θ‖²

The Fisher needs no gradient: along a random direction z of signs, E (∂L/∂θ · z)² = ‖∂L/∂θ‖², and the derivative along z
is a central difference of two rollouts. L is Σ (Ŷ − Y)² / σ² of a context over the whole rollout.

Beside them stands the growth of an error of the state itself (`state_growth`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from tqs_onnx.inputs.data import Data, DataOptions
from tqs_onnx.inputs.source import Given, Source
from tqs_onnx.jobs import stages
from tqs_onnx.jobs.state_growth import StateGrowth, state_growth
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.blas import blas_threads
from tqs_onnx.rounding.calibrate import Calibration
from tqs_onnx.rounding.codes_file import codes_beside
from tqs_onnx.scoring.score import Progress
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_onnx.verification.moments import compared
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InputError
from tqs_passes.plan.assigned import fed_weight
from tqs_passes.plan.plan import read_plan
from tqs_passes.weights import Weight

CURVATURE_NAME = "curvature.json"
#: Size of the central difference, as a share of the norm of the weight.
STEP = 1e-3


class WeightCurvature(BaseModel):
    """The curvature of one weight; None where it is not defined or was not measured.

    Attributes
    ----------
    weight, label : str
    hessian : float or None
        tr H; None for a weight that data-aware rounding has no rule for.
    inputs : float or None
        H_Δ / H; None without a plan.
    fisher : float or None
        tr F; None without truth.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: str
    label: str
    hessian: float | None
    inputs: float | None
    fisher: float | None


class Curvature(BaseModel):
    """The file `curvature.json`.

    Attributes
    ----------
    version : int
    source_sha256 : str
    weights : tuple of WeightCurvature
    state : StateGrowth or None
        None if nothing is fed back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    source_sha256: str
    weights: tuple[WeightCurvature, ...]
    state: StateGrowth | None = None


@dataclass(frozen=True, slots=True)
class CurvatureJob:
    """A measurement of curvature.

    Parameters
    ----------
    model : path, ModelProto or Source
    scores : Path
        Their σ weighs the variables.
    data : DataOptions or Data
        tr F needs a truth: that of the scoring contexts, else that of the evaluation contexts.
    plan : Path or None
        The plan whose rounding H_Δ / H takes.
    run : RunOptions
    """

    model: Given | Source
    scores: Path
    data: DataOptions | Data
    plan: Path | None = None
    run: RunOptions = field(default_factory=RunOptions)


def curvature(job: CurvatureJob, progress: Progress | None = None) -> Curvature:
    """Measure the curvature of every weight, and the growth of an error of the state.

    Parameters
    ----------
    job : CurvatureJob
    progress : callable, optional
        See `score`.

    Raises
    ------
    InputError
        See the stages; or the scores or the plan are for another model.
    """
    source = stages.opened(job.model, job.run)
    data = stages.read(job.data, source, job.run)
    scores = read_scores(job.scores)
    bed = stages.bed_of(source, data, job.run, scores)
    calibration = Calibration(bed)
    rounded = _rounded(job.plan, source, bed)
    judging = bed if data.scoring.truth else bed.on(data.evaluation)
    found: list[WeightCurvature] = []
    for weight in bed.weights:
        hessian = inputs = None
        if calibration.uses[weight.name].uses:
            others = {name: value for name, value in rounded.items() if name != weight.name}
            with blas_threads(job.run.threads, weight.n_values):
                hessian, inputs = _input_sums(calibration, weight.name, others)
        fisher = _fisher(judging, weight, scores) if judging.contexts.truth else None
        found.append(
            WeightCurvature(
                weight=weight.name, label=weight.label, hessian=hessian, inputs=inputs, fisher=fisher
            )
        )
        if progress is not None:
            progress(len(found), len(bed.weights), weight.label)
    state = state_growth(bed, scores)
    bed.close()
    return Curvature(source_sha256=source.sha256, weights=tuple(found), state=state)


def _input_sums(
    calibration: Calibration, weight: str, others: dict[str, NDArray[Any]]
) -> tuple[float, float | None]:
    """Return the mean square of the inputs, and what rounding the other weights moves of them; None without others."""
    plain = calibration.statistics(weight, {})
    hessian = float(np.trace(plain.H.sum(axis=0))) / plain.n_rows
    if not others:
        return hessian, None
    paired = calibration.statistics(weight, others)
    size = float(np.linalg.norm(paired.H))
    return hessian, float(np.linalg.norm(paired.D)) / size if size > 0 else None


def _rounded(plan_file: Path | None, source: Source, bed: Testbed) -> dict[str, NDArray[Any]]:
    """Return the decoded values of the weights that a plan rounds."""
    if plan_file is None:
        return {}
    plan = read_plan(plan_file)
    stages.require_plan_of(source, plan, str(plan_file))
    codes = codes_beside(plan_file, plan)
    known = {w.name: w for w in bed.weights}
    return {
        a.weight: np.asarray(fed_weight(a, bed.exposed.values(known[a.weight]), codes.get(a.weight)))
        for a in plan.assignments
        if a.form is not Form.KEEP and a.weight in known
    }


def _fisher(bed: Testbed, weight: Weight, scores: Scores) -> float | None:
    """Return tr F by one random direction; None for a weight that is zero."""
    theta = bed.exposed.values(weight).astype(np.float64)
    norm = float(np.linalg.norm(theta))
    if norm == 0.0:
        return None
    generator = np.random.Generator(np.random.Philox(zlib.crc32(weight.name.encode())))
    signs = generator.choice((-1.0, 1.0), theta.shape)
    step = STEP * norm / np.sqrt(theta.size)
    dtype = bed.exposed.values(weight).dtype
    sides = [(theta + sign * step * signs).astype(dtype) for sign in (1.0, -1.0)]
    above, below = (bed.exposed.pieces({weight.name: side}) for side in sides)
    found = compared(above, below, bed.spec, bed.contexts)
    difference = np.zeros(bed.contexts.n_contexts)
    for name, sums in found.variables.items():
        if sums.nominal is not None and sums.other is not None:
            change = (sums.nominal.squared - sums.other.squared).sum(axis=1) / scores.sigma[name] ** 2
            difference[sums.rows] += change
    # The stored step: float32 rounds θ ± step.
    moved = float(np.mean(np.abs(sides[0].astype(np.float64) - sides[1])))
    return float(np.mean((difference / moved) ** 2)) if moved > 0 else None


def read_curvature(path: Path) -> Curvature:
    """Read `curvature.json`.

    Raises
    ------
    InputError
        The file cannot be read, or has another version.
    """
    try:
        return Curvature.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(
            "holds no curvature of this version", where=str(path), todo="Run tqs curvature again"
        ) from error


def by_weight(found: Curvature) -> Mapping[str, WeightCurvature]:
    """Return the curvature of every weight by its name."""
    return {w.weight: w for w in found.weights}
