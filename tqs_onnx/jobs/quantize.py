"""The main job as one function of values: open → score → allocate → refine → emit → verify, into a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqs_onnx.allocate.costing import PlanOptions, Request
from tqs_onnx.allocate.file_size import require_feasible
from tqs_onnx.allocate.offers import offers_before_scoring
from tqs_onnx.allocate.request import (
    budget_of,
    menus_of,
    note_of_opset,
    prepared_source,
    require_one_budget,
    size_of,
)
from tqs_onnx.allocate.servable import require_served
from tqs_onnx.allocate.tier_set import TierSet
from tqs_onnx.emit import emit, stayed
from tqs_onnx.inputs.data import Data, DataFiles, read_data
from tqs_onnx.inputs.source import Source, open_source, require_scorable
from tqs_onnx.jobs.release import judge, manifest_of, require_evaluable, summary_of
from tqs_onnx.jobs.run_directory import (
    emitted_name,
    refuse_overwriting,
    removed_on_failure,
    run_directory,
    with_data,
)
from tqs_onnx.refine.joint_drift import Place
from tqs_onnx.refine.measured_objective import planned
from tqs_onnx.refine.refine import RefineOptions, refine
from tqs_onnx.rounding.codes_file import CODES_NAME, write_codes
from tqs_onnx.score.measure.store import RESULTS_NAME, Results
from tqs_onnx.score.score import Progress, SweepOptions, on_trajectory, sweep
from tqs_onnx.score.scores import Scores, Status
from tqs_onnx.verify.gates import Gate
from tqs_onnx.verify.manifest import GateResult, licence_of
from tqs_onnx.verify.verify import Bench, Subject, Verification, require_runs, verify
from tqs_passes.files.atomic import write_text
from tqs_passes.plan.forms import Profile
from tqs_passes.plan.plan import Plan
from tqs_passes.plan.targets import Serving

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A quantize job.

    Parameters
    ----------
    model : Path
    data : DataFiles
    out : Path
        Run directory.
    compression : float or None
        File over file.
    max_bytes : int or None
        Byte budget.
    weight_compression : float or None
        Weights over weights, scales and tables included; one of the three is given.
    sweep : SweepOptions
    plan : PlanOptions
    profile : {"fast", "exact", "small"}
    serving : Serving
    tiers : TierSet
    gates : tuple of Gate
    refine : RefineOptions
    force : bool
        Write into a directory that holds an earlier run.
    """

    model: Path
    data: DataFiles
    out: Path
    compression: float | None = None
    max_bytes: int | None = None
    weight_compression: float | None = None
    sweep: SweepOptions = field(default_factory=SweepOptions)
    plan: PlanOptions = field(default_factory=PlanOptions)
    profile: Profile = "fast"
    serving: Serving = field(default_factory=Serving)
    tiers: TierSet = field(default_factory=TierSet)
    gates: tuple[Gate, ...] = ()
    refine: RefineOptions = field(default_factory=RefineOptions)
    force: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a quantize job gave.

    Parameters
    ----------
    source : Source
    data : Data
    request : Request
    scores : Scores
    plan : Plan
    verification : Verification
    gates : tuple of GateResult
    emitted, plan_file, manifest_file : Path
    wall_s : float
    """

    source: Source
    data: Data
    request: Request
    scores: Scores
    plan: Plan
    verification: Verification
    gates: tuple[GateResult, ...]
    emitted: Path
    plan_file: Path
    manifest_file: Path
    wall_s: float

    def summary(self) -> dict[str, Any]:
        """Return the JSON object of `tqs quantize --json`."""
        return {
            **summary_of(self.verification, self.emitted, self.plan_file, self.manifest_file),
            "n_weights": len(self.plan.assignments),
            "n_dead": sum(s.status is Status.DEAD for s in self.scores.weights),
            "wall_s": self.wall_s,
        }


def quantize(job: Job, say: Say, progress: Progress | None = None) -> Outcome:
    """Run the main job: inspect, score, allocate, emit and verify.

    Parameters
    ----------
    job : Job
    say : callable
        Called with one line at each stage.
    progress : callable, optional
        See `sweep`.

    Raises
    ------
    InputError, InfeasibleError, GateError
        See the stages. Failed gates do not raise: they are in the outcome.
    """
    start = time.perf_counter()
    source = open_source(job.model)
    require_scorable(source)
    data = read_data(job.data, source)
    require_evaluable(job.gates, data)
    for note in data.notes:
        say(f"note: {note}")
    require_runs(job.serving.compute, job.sweep.provider)
    name = emitted_name(job.model)
    emitted, plan_file, manifest_file = job.out / name, job.out / "plan.json", job.out / "manifest.json"
    require_one_budget(job.compression, job.weight_compression, job.max_bytes)
    files = [name, "plan.json", "scores.json", "scores.csv", "manifest.json", CODES_NAME]
    outputs = [*(job.out / file for file in (*files, RESULTS_NAME)), *with_data(emitted)]
    refuse_overwriting(outputs, [*source.files, *data.files.values()])
    with run_directory(job.out, files, force=job.force) as begin:
        say(
            f"{len(source.survey.weights)} weights, {sum(w.n_values for w in source.survey.weights)} values; "
            f"{data.scoring.n_contexts} scoring and {data.evaluation.n_contexts} evaluation contexts"
        )
        ready = prepared_source(source, job.serving)
        offered = menus_of(source, ready, job.profile, job.tiers, job.serving, job.refine.rounding.free)
        if ready.skipped:
            say(stayed(ready.skipped))
        if lacking := note_of_opset(source, job.serving):
            say(f"note: {lacking}")
        size = size_of(source, ready)
        budget = budget_of(offered, size, job.compression, job.weight_compression, job.max_bytes)
        off = frozenset(
            w.name for w in source.survey.weights if w.outputs and not on_trajectory(w, data.spec)
        )
        require_feasible(size, offers_before_scoring(offered, off, job.plan), budget)
        scores = sweep(
            source.lifted,
            source.survey,
            data.spec,
            data.scoring,
            source.sha256,
            job.sweep,
            progress,
            store=job.out / RESULTS_NAME,
            say=say,
        )
        begin()
        write_text(job.out / "scores.json", scores.to_json())
        write_text(job.out / "scores.csv", scores.to_csv())
        request = Request(offered, scores, size, job.profile, job.serving)
        place = Place(
            source.lifted,
            source.survey,
            data.spec,
            data.scoring,
            scores.sigma,
            job.sweep.provider,
            job.sweep.batch,
            job.sweep.threads,
            data.calibration,
        )
        with Results(job.out / RESULTS_NAME) as kept:
            plan, request = planned(request, budget, job.plan, place, job.refine.rounding, kept, say)
        require_served(plan, source, plan.target)
        for warning in plan.warnings:
            say(f"warning: {warning}")
        refined = refine(plan, request, place, job.plan, job.refine, say)
        plan = refined.plan
        if refined.codes:
            write_codes(job.out / CODES_NAME, refined.codes)
        write_text(plan_file, plan.to_json())
        subject = Subject(job.model, emitted, source.lifted, source.survey, plan, refined.codes)
        bench = Bench(
            data.spec, data.evaluation, scores.sigma, job.sweep.provider, job.sweep.batch, job.sweep.threads
        )
        written = {"plan": plan_file, "scores": job.out / "scores.json", "codes": job.out / CODES_NAME}
        with removed_on_failure(emitted):
            emit(source.lifted, plan, emitted, refined.codes)
            verification = verify(subject, bench)
            results = judge(job.gates, verification)
            manifest = manifest_of(
                subject,
                data.files | written,
                verification,
                results,
                licence_of(source.metadata),
                settings_of(job),
            )
            write_text(manifest_file, manifest.to_json())
    return Outcome(
        source,
        data,
        request,
        scores,
        plan,
        verification,
        results,
        emitted,
        plan_file,
        manifest_file,
        time.perf_counter() - start,
    )


def settings_of(job: Job) -> dict[str, Any]:
    """Return the options of a job that decide its result."""
    probe = job.sweep.probe
    return {
        "compression": job.compression,
        "max_bytes": job.max_bytes,
        "objective": job.plan.objective.value,
        "solver": job.plan.solver,
        "p_fp32": job.plan.protected_share,
        "tiers": [t.value for t in job.tiers.tiers],
        "pins": [f"{r.pattern}={','.join(r.tiers)}" for r in job.tiers.pins],
        "bans": [f"{r.pattern}={','.join(r.tiers)}" for r in job.tiers.bans],
        "max_fp32": job.plan.max_fp32,
        "ties": list(job.plan.ties),
        "untie": job.plan.untie,
        "target": job.serving.target.value,
        "encoding": job.serving.encoding.value,
        "constants": job.serving.constants,
        "opset": job.serving.opset,
        "compute": job.serving.compute.model_dump() if job.serving.compute else None,
        "rows": job.serving.rows_as_served,
        "groups": list(job.serving.groups),
        "profile": job.profile,
        "repair_rounds": job.refine.repair_rounds,
        "rounding": job.refine.rounding.method,
        "scales": job.refine.rounding.free,
        "gamma_min": job.plan.gamma_min,
        "drop_outputs": job.plan.drop_outputs,
        "probe": {"kind": probe.kind.value, "bits": probe.bits, "draws": probe.n_draws, "seed": probe.seed},
        "response_bits": list(job.sweep.response_bits),
        "horizons": list(job.sweep.horizons),
        "units": job.sweep.units,
        "provider": job.sweep.provider,
        "batch": job.sweep.batch,
        "steps": job.data.steps,
        "max_contexts": job.data.max_contexts,
        "max_eval_contexts": job.data.max_eval_contexts,
    }
