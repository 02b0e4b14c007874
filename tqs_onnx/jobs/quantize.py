"""The main job: runs all stages and writes a run directory."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqs_onnx.allocation.costing import Request
from tqs_onnx.allocation.times import TIMES_NAME
from tqs_onnx.inputs.data import Data, DataOptions
from tqs_onnx.inputs.source import Given, Source
from tqs_onnx.jobs import offering, stages
from tqs_onnx.jobs.options import QuantizeOptions, job_settings
from tqs_onnx.jobs.release import outcome_facts, summary_of
from tqs_onnx.jobs.run_directory import (
    ROLLOUT_NAME,
    emitted_name,
    refuse_overwriting,
    removed_on_failure,
    require_unedited,
    run_directory,
    with_data,
)
from tqs_onnx.jobs.stages import Traces
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.codes_file import CODES_NAME, write_codes
from tqs_onnx.scoring.measure.store import RESULTS_NAME, Results
from tqs_onnx.scoring.score import Progress
from tqs_onnx.scoring.scores import Scores, Status
from tqs_onnx.shown import Shown
from tqs_onnx.verification.manifest import GateResult
from tqs_onnx.verification.traces import TRACES_NAME
from tqs_onnx.verification.verify import Verification
from tqs_passes.files.atomic import write_text
from tqs_passes.plan.plan import Plan

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A quantize job.

    Parameters
    ----------
    model : path, ModelProto or Source
    data : DataOptions or Data
    out : Path
        Run directory.
    options : QuantizeOptions
    force : bool
        Write into a directory that holds an earlier run.
    """

    model: Given | Source
    data: DataOptions | Data
    out: Path
    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    force: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Outcome(Shown):
    """The result of a quantize job.

    Parameters
    ----------
    source : Source
    data : Data
    request : Request
    scores : Scores
    plan : Plan
    verification : Verification
    gates : tuple of GateResult
    bed : Testbed
        Holds the evaluation contexts.
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
    bed: Testbed
    emitted: Path
    plan_file: Path
    manifest_file: Path
    wall_s: float

    def facts(self) -> dict[str, str]:
        """Return the verdict, the sizes, the drift and the path of the file."""
        return outcome_facts(self.verification, self.gates, self.emitted)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `tqs quantize` prints."""
        return {
            **summary_of(self.verification, self.emitted, self.plan_file, self.manifest_file),
            "drift_joint": self.plan.joint_drift,
            "drift_added": self.plan.added_drift,
            "tried": [t.model_dump(mode="json") for t in self.plan.tried],
            "n_weights": len(self.plan.assignments),
            "n_dead": sum(s.status is Status.DEAD for s in self.scores.weights),
            "unseen": {s.label: s.unseen for s in self.scores.weights if s.unseen},
            "wall_s": self.wall_s,
        }


def quantize(job: Job, progress: Progress | None = None) -> Outcome:
    """Run the main job: open, read, score, plan, refine, emit, verify and record.

    Parameters
    ----------
    job : Job
    progress : callable, optional
        See `score`.

    Raises
    ------
    InputError, InfeasibleError, GateError
        See the stages. Failed gates do not raise; they are part of the outcome.
    """
    start = time.perf_counter()
    options = job.options
    source = stages.opened(job.model, options.run, options.roles)
    data = stages.read(job.data, source, options.run, options.conditions)
    name = emitted_name(source.path)
    emitted, plan_file, manifest_file = job.out / name, job.out / "plan.json", job.out / "manifest.json"
    files = [name, "plan.json", "scores.json", "scores.csv", "manifest.json", CODES_NAME, TRACES_NAME]
    if data.drafted:
        require_unedited(job.out / ROLLOUT_NAME, data.drafted)
        files.append(ROLLOUT_NAME)
    outputs = [*(job.out / file for file in (*files, RESULTS_NAME)), *with_data(emitted)]
    refuse_overwriting(outputs, [*source.files, *data.files.values()])
    with run_directory(job.out, files, force=job.force) as begin:
        n_values = sum(w.n_values for w in source.survey.weights)
        _LOG.info(
            "%d weights, %d values; %d scoring and %d evaluation contexts",
            *(len(source.survey.weights), n_values, data.scoring.n_contexts, data.evaluation.n_contexts),
        )
        offer = offering.offer(source, options)
        offering.require_room(offer, source, data.spec, options)
        bed = stages.bed_of(source, data, options.run)
        stages.require_judged(source, bed, data)
        scores = stages.scored(source, bed, options.scoring, job.out / RESULTS_NAME, progress)
        bed = bed.scaled(scores.sigma)
        begin()
        if data.drafted:
            write_text(job.out / ROLLOUT_NAME, data.drafted)
        write_text(job.out / "scores.json", scores.to_json())
        write_text(job.out / "scores.csv", scores.to_csv())
        stages.require_activations_of(scores, options)
        offer = offering.ranged(offer, scores)
        times = offering.timed(source, offer, options, bed, job.out / TIMES_NAME)
        request = Request(offer.menus, scores, offer.size, options.profile, offer.serving, times=times)
        instruments = instruments_on(
            offering.rounding_inputs(bed, offer.menus), data.calibration, data.beside
        )
        judging = bed.on(data.evaluation)
        with Results(job.out / RESULTS_NAME) as kept:
            refined, request = stages.decided(request, offer, source, instruments, judging, options, kept)
        plan = refined.plan
        if refined.codes:
            write_codes(job.out / CODES_NAME, refined.codes)
        write_text(plan_file, plan.to_json())
        written = {"plan": plan_file, "scores": job.out / "scores.json", "codes": job.out / CODES_NAME}
        if times is not None:
            written["times"] = job.out / TIMES_NAME
        with removed_on_failure(emitted, job.out / TRACES_NAME):
            subject = stages.emitted(source, plan, emitted, refined.codes)
            verification, gates = stages.verified(
                *(subject, bed, data, options.gates),
                traces=Traces(job.out / TRACES_NAME, options.save_traces),
                timing=options.timing,
            )
            settings = job_settings(
                "quantize", source.file, data.options, job.out, replace(options, roles=source.roles)
            )
            manifest = stages.recorded(subject, source, data, written, verification, gates, settings, bed)
            write_text(manifest_file, manifest.to_json())
        bed.close()
    return Outcome(
        *(source, data, request, scores, plan, verification, gates, bed.on(data.evaluation)),
        *(emitted, plan_file, manifest_file, time.perf_counter() - start),
    )
