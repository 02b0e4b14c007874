"""Uniform baselines as real files: every weight of two or more dimensions at one width, the rest FP16.

The emitter that writes mixed-precision files also writes these, on the same grids, and they are verified in the same
way, so that methods are compared by their files. Data-aware methods are calibrated on the scoring contexts, or on a
separate calibration set; the evaluation contexts are not used until the file is written.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqs_onnx.allocation.bare_plan import bare_plan
from tqs_onnx.allocation.request import menus_of, note_of_opset, prepared_source, settled_serving, size_of
from tqs_onnx.allocation.servable import require_served
from tqs_onnx.allocation.uniform_plan import uniform_choices
from tqs_onnx.inputs.data import Data, DataOptions
from tqs_onnx.inputs.source import Given, Source
from tqs_onnx.jobs import stages
from tqs_onnx.jobs.options import BaselineOptions, job_settings, settings_of
from tqs_onnx.jobs.release import outcome_facts, summary_of
from tqs_onnx.jobs.run_directory import (
    emitted_name,
    refuse_overwriting,
    removed_on_failure,
    run_directory,
    with_data,
)
from tqs_onnx.jobs.stages import Traces
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.rounding.assign import DATA_AWARE, Assigned, RoundingOptions, round_plan, told
from tqs_onnx.rounding.codes_file import CODES_NAME, codes_digest, write_codes
from tqs_onnx.rounding.tune import qep_settings
from tqs_onnx.shown import Shown
from tqs_onnx.verification.manifest import GateResult
from tqs_onnx.verification.traces import TRACES_NAME
from tqs_onnx.verification.verify import Verification
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text
from tqs_passes.plan.forms import Profile
from tqs_passes.plan.plan import Plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BaselineJob:
    """A baseline job.

    Parameters
    ----------
    model : path, ModelProto or Source
    data : DataOptions or Data
    out : Path
        Run directory.
    options : BaselineOptions
    force : bool
        Write into a directory that holds an earlier run.
    """

    model: Given | Source
    data: DataOptions | Data
    out: Path
    options: BaselineOptions = field(default_factory=BaselineOptions)
    force: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class BaselineOutcome(Shown):
    """The result of a baseline job.

    Parameters
    ----------
    assigned : Assigned
        Plan, codes, and notes on weights that were not rounded as requested.
    rounding : RoundingOptions
        As used: tuned if that was requested.
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

    def facts(self) -> dict[str, str]:
        """Return the verdict, the sizes, the drift and the path of the file."""
        return {"rounding": self.rounding.title} | outcome_facts(self.verification, self.gates, self.emitted)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `tqs baseline` prints: the keys of `tqs quantize`, and the rounding."""
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
    """Return the uniform plan of an unscored model, with least-squares scales: it predicts no drift.

    Raises
    ------
    InputError
        `bits` is not 1 to 8, or the model's opset cannot store integers.
    """
    if not 1 <= bits <= 8:
        raise InputError(f"`bits` must be 1 to 8, not {bits}")
    if note := note_of_opset(source, serving):
        raise InputError(f"cannot round to {bits} bits: {note}", where=str(source.path))
    serving = replace(serving, groups=(group,)) if group else serving
    serving = settled_serving(source, serving.under(profile))
    ready = prepared_source(source, serving)
    tiers = (Tier(f"INT{bits}"), Tier.FP16)
    chosen = uniform_choices(menus_of(source, ready, profile, tiers, serving, "mse"), bits, group)
    return bare_plan(source, chosen, size_of(source, ready), profile, serving)


def baseline(job: BaselineJob) -> BaselineOutcome:
    """Round uniformly, emit and verify.

    Raises
    ------
    InputError, GateError
        See the stages. Failed gates do not raise; they are part of the outcome.
    """
    start = time.perf_counter()
    options = job.options
    source = stages.opened(job.model, options.run, options.roles)
    data = stages.read(job.data, source, options.run, options.gates)
    name = emitted_name(source.path)
    emitted, plan_file, manifest_file = job.out / name, job.out / "plan.json", job.out / "manifest.json"
    files = [name, "plan.json", CODES_NAME, "manifest.json", TRACES_NAME]
    outputs = [*(job.out / file for file in files), *with_data(emitted)]
    refuse_overwriting(outputs, [*source.files, *data.files.values()])
    plan = unscored_uniform_plan(source, options.bits, options.profile, options.serving, options.group)
    require_served(plan, source, plan.target)
    with run_directory(job.out, files, force=job.force) as begin:
        bed = stages.bed_of(source, data, options.run)
        bed = bed.scaled(bed.sigma)
        instruments = instruments_on(bed, data.calibration, data.beside)
        rounding = options.rounding
        if options.tune:
            rounding, _ = instruments.tuner.best(plan, qep_settings(rounding))
        assigned = round_plan(plan, instruments.calibration, rounding)
        for line in told(assigned.notes):
            _LOG.info("note: %s", line)
        begin()
        if assigned.codes:
            plan = assigned.plan.model_copy(update={"codes_sha256": codes_digest(assigned.codes)})
            assigned = replace(assigned, plan=plan)
        write_text(plan_file, assigned.plan.to_json())
        if assigned.codes:
            write_codes(job.out / CODES_NAME, assigned.codes)
        made = {"plan": plan_file, "codes": job.out / CODES_NAME}
        with removed_on_failure(emitted):
            subject = stages.emitted(source, assigned.plan, emitted, assigned.codes)
            verification, gates = stages.verified(
                *(subject, bed, data, options.gates),
                traces=Traces(job.out / TRACES_NAME, options.save_traces),
                timing=options.timing,
            )
            settings = job_settings(
                "baseline", source.file, data.options, job.out, replace(options, roles=source.roles)
            )
            found = {"rounding_used": settings_of(rounding), "data_aware": rounding.method in DATA_AWARE}
            manifest = stages.recorded(
                subject, source, data, made, verification, gates, settings | found, bed
            )
            write_text(manifest_file, manifest.to_json())
        bed.close()
    return BaselineOutcome(
        assigned,
        rounding,
        verification,
        gates,
        emitted,
        plan_file,
        manifest_file,
        time.perf_counter() - start,
    )
