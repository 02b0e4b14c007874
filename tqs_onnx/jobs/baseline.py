"""Uniform baselines as real files: every weight of two or more dimensions at one width, the rest FP16.

The file is written by the emitter that writes mixed precision, on the same grids, and verified like any other, so that
a comparison of methods is one of files. Data-aware methods are calibrated on the scoring contexts, or on a set of their
own; the evaluation contexts are not touched before the file is there.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqs_onnx.allocate.file_size import file_bytes
from tqs_onnx.allocate.request import menus_of, note_of_opset, prepared_source, size_of
from tqs_onnx.allocate.servable import require_served
from tqs_onnx.allocate.uniform_plan import uniform_choices
from tqs_onnx.emit import emit
from tqs_onnx.inputs.data import DataFiles, read_data
from tqs_onnx.inputs.source import Source, open_source, require_scorable
from tqs_onnx.jobs.quantize import Say
from tqs_onnx.jobs.release import judge, manifest_of, require_evaluable, summary_of
from tqs_onnx.jobs.run_directory import (
    emitted_name,
    refuse_overwriting,
    removed_on_failure,
    run_directory,
    with_data,
)
from tqs_onnx.rollout.injection import ExposedWeights
from tqs_onnx.rollout.options import Provider
from tqs_onnx.rollout.variables import sigma
from tqs_onnx.rounding.assign import DATA_AWARE, Assigned, RoundingOptions, round_plan, told
from tqs_onnx.rounding.codes_file import CODES_NAME, codes_digest, write_codes
from tqs_onnx.rounding.tune import Tuner, Where, qep_settings
from tqs_onnx.verify.gates import Gate
from tqs_onnx.verify.manifest import GateResult, licence_of
from tqs_onnx.verify.verify import Bench, Subject, Verification, verify
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text
from tqs_passes.plan.forms import Profile
from tqs_passes.plan.plan import Plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier


@dataclass(frozen=True, slots=True)
class BaselineJob:
    """A baseline job.

    Parameters
    ----------
    model : Path
    data : DataFiles
    out : Path
        Run directory.
    bits : int
        1 to 8.
    rounding : RoundingOptions
    group : int
        Values of a channel that share a scale; 0: all.
    tune : bool
        Choose QEP's damping and strength on held-out scoring contexts.
    profile : {"fast", "exact", "small"}
    serving : Serving
    gates : tuple of Gate
    provider : str
    batch : int or None
    threads : int
    force : bool
        Write into a directory that holds an earlier run.
    """

    model: Path
    data: DataFiles
    out: Path
    bits: int
    rounding: RoundingOptions
    group: int = 0
    tune: bool = True
    profile: Profile = "fast"
    serving: Serving = field(default_factory=Serving)
    gates: tuple[Gate, ...] = ()
    provider: Provider = "cpu"
    batch: int | None = None
    threads: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True)
class BaselineOutcome:
    """What a baseline job gave.

    Parameters
    ----------
    assigned : Assigned
        Plan, codes and what was rounded otherwise than asked for.
    rounding : RoundingOptions
        As used: tuned where that was asked for.
    verification : Verification
    gates : tuple of GateResult
    emitted, plan_file, manifest_file : Path
    wall_s : float
    """

    assigned: Assigned
    rounding: RoundingOptions
    verification: Verification
    gates: tuple[GateResult, ...]
    emitted: Path
    plan_file: Path
    manifest_file: Path
    wall_s: float

    def summary(self) -> dict[str, Any]:
        """Return the JSON object of `tqs baseline --json`: the keys of `tqs quantize`, and the rounding."""
        return {
            **summary_of(self.verification, self.emitted, self.plan_file, self.manifest_file),
            "n_weights": len(self.assigned.plan.assignments),
            "n_dead": 0,
            "wall_s": self.wall_s,
            "rounding": asdict(self.rounding),
            "notes": [{"weight": note.what, "why": note.why} for note in self.assigned.notes],
        }


def unscored_uniform_plan(
    source: Source, bits: int, profile: Profile, serving: Serving, group: int = 0
) -> Plan:
    """Return the uniform plan of a model that nobody has scored, rounded by least squares: it predicts no drift.

    Raises
    ------
    InputError
        There is no such width.
    """
    if not 1 <= bits <= 8:
        raise InputError(f"bits must be 1 to 8, not {bits}")
    if note := note_of_opset(source, serving):
        raise InputError(f"cannot round to {bits} bits: {note}", where=str(source.path))
    ready = prepared_source(source, serving)
    tiers = (Tier(f"INT{bits}"), Tier.FP16)
    chosen = uniform_choices(menus_of(source, ready, profile, tiers, serving, "mse"), bits, group)
    return Plan(
        source_sha256=source.sha256,
        profile=profile,
        target=serving.target,
        constants=serving.constants_as_stored,
        opset=serving.opset,
        compute=serving.compute,
        assignments=tuple(c.assignment for c in chosen),
        n_bytes=file_bytes(size_of(source, ready), chosen),
        source_bytes=source.facts.n_bytes,
    )


def baseline(job: BaselineJob, say: Say) -> BaselineOutcome:
    """Round uniformly, emit and verify.

    Raises
    ------
    InputError, GateError
        See the stages. Failed gates do not raise: they are in the outcome.
    """
    start = time.perf_counter()
    source = open_source(job.model)
    require_scorable(source)
    data = read_data(job.data, source)
    require_evaluable(job.gates, data)
    for note in data.notes:
        say(f"note: {note}")
    name = emitted_name(job.model)
    emitted, plan_file, manifest_file = job.out / name, job.out / "plan.json", job.out / "manifest.json"
    files = [name, "plan.json", CODES_NAME, "manifest.json"]
    outputs = [*(job.out / file for file in files), *with_data(emitted)]
    refuse_overwriting(outputs, [*source.files, *data.files.values()])
    plan = unscored_uniform_plan(source, job.bits, job.profile, job.serving, job.group)
    require_served(plan, source, plan.target)
    run = {"provider": job.provider, "batch": job.batch, "threads": job.threads}
    rolled = tuple(w for w in source.survey.weights if w.outputs)
    with run_directory(job.out, files, force=job.force) as begin:
        nominal = ExposedWeights(
            source.lifted,
            (),
            data.spec,
            data.scoring,
            provider=job.provider,
            batch=job.batch,
            threads=job.threads,
        ).run({})
        scale = sigma(data.spec, data.scoring, nominal.outputs).values
        fed = data.scoring if data.calibration is None else data.calibration
        where = Where(source.lifted, rolled, data.spec, fed, scale, job.provider, job.batch, job.threads)
        rounding = job.rounding
        if rounding.method == "qep" and job.tune:
            rounding, _ = Tuner(where).best(plan, qep_settings(rounding), say)
        assigned = round_plan(plan, where.calibration(), rounding)
        for line in told(assigned.notes):
            say(f"note: {line}")
        begin()
        if assigned.codes:
            plan = assigned.plan.model_copy(update={"codes_sha256": codes_digest(assigned.codes)})
            assigned = replace(assigned, plan=plan)
        write_text(plan_file, assigned.plan.to_json())
        write_codes(job.out / CODES_NAME, assigned.codes)
        subject = Subject(job.model, emitted, source.lifted, source.survey, assigned.plan, assigned.codes)
        bench = Bench(data.spec, data.evaluation, scale, job.provider, job.batch, job.threads)
        made = {"plan": plan_file, "codes": job.out / CODES_NAME}
        with removed_on_failure(emitted):
            emit(source.lifted, assigned.plan, emitted, assigned.codes)
            verification = verify(subject, bench)
            results = judge(job.gates, verification)
            settings = {
                "baseline": rounding.method,
                "bits": job.bits,
                "group": job.group,
                "rounding": asdict(rounding),
                "data_aware": rounding.method in DATA_AWARE,
                "tuned": rounding.method == "qep" and job.tune,
                "profile": job.profile,
                **run,
                "steps": job.data.steps,
                "max_contexts": job.data.max_contexts,
                "max_eval_contexts": job.data.max_eval_contexts,
            }
            manifest = manifest_of(
                subject, data.files | made, verification, results, licence_of(source.metadata), settings
            )
            write_text(manifest_file, manifest.to_json())
    return BaselineOutcome(
        assigned,
        rounding,
        verification,
        results,
        emitted,
        plan_file,
        manifest_file,
        time.perf_counter() - start,
    )
