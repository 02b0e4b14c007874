"""Single stages, from files to files: the jobs of the commands `score`, `allocate`, `emit` and `verify`.

Each reads the files that the previous stage wrote and calls the same functions as `quantize`: the same options give the
same bytes through every entry point.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqs_onnx.allocation.servable import require_served
from tqs_onnx.allocation.times import TIMES_NAME
from tqs_onnx.emission import emit
from tqs_onnx.inputs.data import Data, DataOptions, read_data
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.jobs import offering, stages
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.results import Allocated, Emitted, Verified
from tqs_onnx.jobs.run_directory import (
    ROLLOUT_NAME,
    output_file,
    refuse_overwriting,
    removed_on_failure,
    require_unedited,
    run_directory,
    with_data,
)
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.codes_file import codes_beside, codes_path, require_stated, write_codes
from tqs_onnx.scoring.estimate import Estimate, estimate
from tqs_onnx.scoring.measure.store import RESULTS_NAME
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.plan.sweep_plan import plan_sweep
from tqs_onnx.scoring.score import Progress
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.traces import TRACES_NAME
from tqs_passes.files.atomic import write_text
from tqs_passes.files.model import file_facts
from tqs_passes.plan.plan import ServingTarget, read_plan

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """Score a model from files; write the scores into a run directory.

    Parameters
    ----------
    model : Path
    data : DataOptions
        Its evaluation contexts are not read.
    out : Path
        Run directory: `scores.json` and `scores.csv` of the first run, `scores.<probe>.json` of further runs.
    runs : tuple of ScoreOptions
    run : RunOptions
    roles : tuple of str
    force : bool
    """

    model: Path
    data: DataOptions
    out: Path
    runs: tuple[ScoreOptions, ...]
    run: RunOptions = field(default_factory=RunOptions)
    roles: tuple[str, ...] = ()
    force: bool = False


def score_files(
    job: ScoreJob, progress: Progress | None = None, *, budgeted: QuantizeOptions | None = None
) -> tuple[Scores, ...]:
    """Score a model and write the scores.

    Parameters
    ----------
    job : ScoreJob
    progress : callable, optional
        See `score`.
    budgeted : QuantizeOptions, optional
        The job that will use the scores: what would make it fail later is raised before any scoring: a budget that no
        file can meet, and evaluation contexts that do not fit.

    Raises
    ------
    InputError, InfeasibleError, StoppedError
        See the stages.
    """
    source, data, bed = _scoring_bed(job, alone=budgeted is None)
    if budgeted is not None:
        offering.require_room(offering.offer(source, budgeted), source, bed.spec, budgeted)
        stages.require_judged(source, bed, data)
    names = ["scores" if i == 0 else f"scores.{run.probe.kind.value}" for i, run in enumerate(job.runs)]
    files = [f"{name}.{kind}" for name in names for kind in ("json", "csv")]
    if data.drafted:
        require_unedited(job.out / ROLLOUT_NAME, data.drafted)
        files.append(ROLLOUT_NAME)
    store = job.out / RESULTS_NAME
    refuse_overwriting([*(job.out / name for name in files), store], [*source.files, *data.files.values()])
    with run_directory(job.out, files, force=job.force) as begin:
        found = tuple(stages.scored(source, bed, run, store, progress) for run in job.runs)
        begin()
        if data.drafted:
            write_text(job.out / ROLLOUT_NAME, data.drafted)
        for name, scores in zip(names, found, strict=True):
            write_text(job.out / f"{name}.json", scores.to_json())
            write_text(job.out / f"{name}.csv", scores.to_csv())
    return found


def estimate_files(job: ScoreJob) -> tuple[Estimate, ...]:
    """Return the estimated cost of scoring, from one timed rollout per run; nothing is written."""
    source, _, bed = _scoring_bed(job, alone=True)
    return tuple(estimate(plan_sweep(bed, source.sha256, run)) for run in job.runs)


def _scoring_bed(job: ScoreJob, *, alone: bool) -> tuple[Source, Data, Testbed]:
    source = stages.opened(job.model, job.run, job.roles)
    data = stages.read(job.data, source, job.run, scoring_only=alone)
    return source, data, stages.bed_of(source, data, job.run)


@dataclass(frozen=True, slots=True)
class AllocateJob:
    """Allocate from scores.

    Parameters
    ----------
    model, scores : Path
    out : Path
        Path of plan.json; integers chosen by data are written to codes.npz beside it.
    options : QuantizeOptions
    data : DataOptions or None
        The contexts used for scoring. Without them nothing is rolled out: the integers are chosen from the weights
        alone, no other plan is compared, and no drift is predicted.
    force : bool
    """

    model: Path
    scores: Path
    out: Path
    options: QuantizeOptions
    data: DataOptions | None = None
    force: bool = False


def allocate_files(job: AllocateJob) -> Allocated:
    """Spend a byte budget and write the plan.

    Raises
    ------
    InputError, InfeasibleError
        See the stages; also if the options need rollouts and no contexts are given.
    """
    options, out = job.options, job.out
    source = open_source(job.model)
    read = () if job.data is None else job.data.read_files.values()
    refuse_overwriting([out, codes_path(out)], [*source.files, job.scores, *read])
    with output_file(out, force=job.force):
        scores = read_scores(job.scores)
        aimless = options.budget.target is None
        data = None if job.data is None else read_data(job.data, source, scoring_only=aimless)
        store = job.scores.with_name(RESULTS_NAME)
        times = job.scores.with_name(TIMES_NAME)
        found = stages.allocated(source, scores, data, options, store if store.exists() else None, times)
        if found.codes:
            write_codes(codes_path(out), found.codes)
        write_text(out, found.plan.to_json())
    return found


def emit_files(
    model: Path, plan_file: Path, out: Path, *, target: ServingTarget | None = None, force: bool = False
) -> Emitted:
    """Write the file that a plan describes.

    Parameters
    ----------
    model, plan_file, out : Path
    target : ServingTarget, optional
        Refuse the plan if this target cannot serve it; default: the plan's own target.
    force : bool
        Replace an existing file.

    Raises
    ------
    InputError
        The plan is for another model, its target cannot serve it, or `out` exists or is an input.
    """
    source = open_source(model)
    refuse_overwriting(with_data(out), [*source.files, plan_file, codes_path(plan_file)])
    with output_file(out, force=force):
        plan = read_plan(plan_file)
        stages.require_plan_of(source, plan, str(plan_file))
        require_served(plan, source, target or plan.target)
        codes = codes_beside(plan_file, plan)
        with removed_on_failure(out):
            emit(source.lifted, plan, out, codes)
            require_stated(plan, codes, source.lifted, file_facts(out).n_bytes, plan_file)
    return Emitted(out, source.facts.n_bytes, file_facts(out).n_bytes, plan.n_bytes)


@dataclass(frozen=True, slots=True)
class VerifyJob:
    """Verify an emitted file.

    Parameters
    ----------
    emitted, source, plan, scores : Path
        The file, its source model, its plan, and scores.json for the σ.
    data : DataOptions
    manifest : Path
        Path of manifest.json.
    gates : tuple of str
    run : RunOptions
    settings : dict
        Settings of the job, for the manifest.
    force : bool
    timing : bool
        Time the file against its source, also if no gate needs it.
    save_traces : int or None
        See `QuantizeOptions`.
    """

    emitted: Path
    source: Path
    plan: Path
    scores: Path
    data: DataOptions
    manifest: Path
    gates: tuple[str, ...]
    run: RunOptions
    settings: dict[str, Any]
    force: bool = False
    timing: bool = False
    save_traces: int | None = None


def verify_files(job: VerifyJob) -> Verified:
    """Verify a file and write its manifest.

    Raises
    ------
    InputError, GateError
        See the stages. Failed gates do not raise; they are returned.
    """
    source = open_source(job.source)
    read = [*source.files, *with_data(job.emitted), job.plan, job.scores, *job.data.read_files.values()]
    refuse_overwriting([job.manifest, job.manifest.with_name(TRACES_NAME)], read)
    with output_file(job.manifest, force=job.force, option="manifest"):
        return _verified(job, source)


def _verified(job: VerifyJob, source: Source) -> Verified:
    require_loadable(job.source, resolve_provider(job.run.provider), job.run.max_memory, job.run.device)
    plan = read_plan(job.plan)
    data = stages.read(job.data, source, job.run, job.gates)
    scores = read_scores(job.scores)
    stages.require_made_of(source, plan, scores, data)
    bed = stages.bed_of(source, data, job.run, scores)
    codes = codes_beside(job.plan, plan)
    require_stated(plan, codes, source.lifted, file_facts(job.emitted).n_bytes, job.plan)
    subject = Subject(job.source, job.emitted, source.lifted, source.survey, plan, codes)
    traces = stages.Traces(job.manifest.with_name(TRACES_NAME), job.save_traces)
    verification, gates = stages.verified(subject, bed, data, job.gates, traces=traces, timing=job.timing)
    made = {"plan": job.plan, "scores": job.scores}
    if plan.codes_sha256 is not None:
        made["codes"] = codes_path(job.plan)
    times = job.scores.with_name(TIMES_NAME)
    if plan.time is not None and times.exists():
        made["times"] = times
    manifest = stages.recorded(subject, source, data, made, verification, gates, job.settings, bed)
    write_text(job.manifest, manifest.to_json())
    return Verified(verification, gates, job.emitted)
