"""The whole trip as functions of values: open → score → allocate → emit → verify, into a run directory.

What a run directory holds is always whole. A job that fails before its sweep is done leaves nothing. From then on the
scores are kept, and the plan once there is one: they are what took long. An emitted file that was not verified to
the end is removed (`tqs emit` writes it again from the plan); one that was verified but fails a gate is kept beside a
manifest that says so, and the exit code is 3.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx.external_data_helper import uses_external_data

from tqs_onnx.allocate.planning import (
    FileSize,
    PlanOptions,
    Request,
    offers_before_scoring,
    plan_within,
    require_feasible,
)
from tqs_onnx.emit import emit, placeholder_metadata, prepared
from tqs_onnx.joint import Place
from tqs_onnx.refine import RefineOptions, refine
from tqs_onnx.rollout.check import check_spec
from tqs_onnx.rollout.context_set import Contexts
from tqs_onnx.rollout.contexts import check_disjoint, load_contexts
from tqs_onnx.rollout.spec import RolloutSpec, load_spec
from tqs_onnx.rounding.codes_file import CODES_NAME, write_codes
from tqs_onnx.score.results import RESULTS_NAME
from tqs_onnx.score.store import Scores, Status
from tqs_onnx.score.sweep import Progress, SweepOptions, on_trajectory, sweep
from tqs_onnx.source import Source, open_source, require_scorable
from tqs_onnx.verify.gates import Gate, Measured, gate_value, needs_truth, passes
from tqs_onnx.verify.manifest import GateResult, Manifest, licence_of, versions
from tqs_onnx.verify.verify import Bench, Subject, Verification, verify
from tqs_onnx.version import VERSION
from tqs_passes.candidates import Menu, kitchen_of, menus
from tqs_passes.encode.fragment import field_size
from tqs_passes.errors import InputError
from tqs_passes.forms import Profile
from tqs_passes.model_io import Model, file_facts, sha256_of_file, write_text
from tqs_passes.plan import Plan
from tqs_passes.rewrite import kept_size, skeleton
from tqs_passes.targets import Serving
from tqs_passes.tier import DEFAULT_TIERS, Tier

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Data:
    """The rollout of a job and its two sets of contexts.

    Parameters
    ----------
    spec : RolloutSpec
    scoring, evaluation : Contexts
        Disjoint.
    files : dict of str to Path
        Role to file, for the manifest.
    """

    spec: RolloutSpec
    scoring: Contexts
    evaluation: Contexts
    files: dict[str, Path]


@dataclass(frozen=True, slots=True)
class DataFiles:
    """Where the rollout spec and the contexts are.

    Parameters
    ----------
    rollout : Path
    contexts : Path
        Scoring contexts; a table is cut into both splits.
    evaluation : Path or None
        Evaluation contexts; None: the test rows of the table.
    steps : int or None
        Overrides the spec's.
    max_contexts, max_eval_contexts : int or None
    """

    rollout: Path
    contexts: Path
    evaluation: Path | None = None
    steps: int | None = None
    max_contexts: int | None = None
    max_eval_contexts: int | None = None


def read_spec(files: DataFiles, source: Source) -> RolloutSpec:
    """Read the rollout spec and hold it against the model."""
    spec = load_spec(files.rollout)
    if files.steps is not None:
        spec = spec.with_steps(files.steps)
    check_spec(spec, source.signature)
    return spec


def read_data(files: DataFiles, source: Source) -> Data:
    """Read spec and contexts.

    Raises
    ------
    InputError
        A file is bad, the spec does not fit the model, or scoring and evaluation contexts overlap.
    """
    spec = read_spec(files, source)
    scoring = load_contexts(
        files.contexts, spec, source.signature, split="validation", limit=files.max_contexts
    )
    if files.evaluation is None and scoring.rows is None:
        raise InputError(
            "holds one set of contexts: they cannot be both scored on and evaluated on",
            where=str(files.contexts),
            todo="Give --eval-contexts",
        )
    evaluation = load_contexts(
        files.evaluation or files.contexts,
        spec,
        source.signature,
        split="test",
        limit=files.max_eval_contexts,
    )
    check_disjoint(scoring, evaluation)
    named = {"rollout": files.rollout, "contexts": files.contexts}
    if files.evaluation is not None:
        named["evaluation"] = files.evaluation
    return Data(spec, scoring, evaluation, named)


def request_for(
    source: Source,
    scores: Scores,
    profile: Profile,
    tiers: tuple[Tier, ...],
    serving: Serving | None = None,
) -> Request:
    """Return everything allocation needs: candidates with exact bytes and errors, scores and sizes.

    Raises
    ------
    InputError
        The scores are of another model.
    """
    require_scores_of(source, scores)
    serving = serving or Serving()
    ready = prepared_source(source, serving)
    return Request(
        menus_of(source, ready, profile, tiers, serving), scores, size_of(source, ready), profile, serving
    )


def require_scores_of(source: Source, scores: Scores) -> None:
    """Refuse the scores of another model.

    Raises
    ------
    InputError
        The digests differ, or the scored weights are not those of the model.
    """
    names = {w.name for w in source.survey.weights}
    if scores.source_sha256 != source.sha256 or {s.weight for s in scores.weights} != names:
        raise InputError("the scores are of another model", where=str(source.path), todo="Score it again")


def prepared_source(source: Source, serving: Serving) -> Model:
    """Return the lifted model of a source as emission sees it: converted, its constants stored small."""
    names = frozenset(w.name for w in source.survey.weights)
    return prepared(source.lifted, names, serving.constants_as_stored, serving.opset)


def menus_of(
    source: Source, ready: Model, profile: Profile, tiers: tuple[Tier, ...], serving: Serving
) -> tuple[Menu, ...]:
    """Return every way to store each weight of a source; `ready` is its prepared model."""
    return menus(kitchen_of(ready, profile, serving), source.survey.weights, tiers)


def size_of(source: Source, ready: Model) -> FileSize:
    """Return what a file made from a source is made of besides its weights; `ready` is its prepared model."""
    names = frozenset(w.name for w in source.survey.weights)
    bare = skeleton(ready, names, placeholder_metadata(), VERSION)
    # A tensor stored in another file now will be stored in this one.
    moved = sum(
        field_size(kept_size(t)) - field_size(t.ByteSize())
        for t in bare.graph.initializer
        if uses_external_data(t)
    )
    graph = bare.graph.ByteSize()
    whole = bare.ByteSize() - field_size(graph) + field_size(graph + moved)
    return FileSize(source.facts.n_bytes, whole, graph + moved)


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
        Byte budget; one of the two is given.
    sweep : SweepOptions
    plan : PlanOptions
    profile : {"fast", "exact"}
    serving : Serving
    tiers : tuple of Tier
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
    sweep: SweepOptions = field(default_factory=SweepOptions)
    plan: PlanOptions = field(default_factory=PlanOptions)
    profile: Profile = "fast"
    serving: Serving = field(default_factory=Serving)
    tiers: tuple[Tier, ...] = DEFAULT_TIERS
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
        v = self.verification
        degradation: dict[str, float | None] = {"worst": None}
        if v.truth:
            degradation = {"worst": max(e.degradation for e in v.truth.values())}
            degradation |= {name: e.degradation for name, e in v.truth.items()}
        return {
            "out": str(self.emitted),
            "bytes_in": v.bytes_in,
            "bytes_out": v.bytes_out,
            "compression": v.compression,
            "drift_predicted": v.predicted_drift,
            "drift_measured": v.drift.total,
            "degradation": degradation,
            "plan": str(self.plan_file),
            "manifest": str(self.manifest_file),
            "n_weights": len(self.plan.assignments),
            "n_dead": sum(s.status is Status.DEAD for s in self.scores.weights),
            "wall_s": self.wall_s,
        }


def budget_bytes(source_bytes: int, compression: float | None, max_bytes: int | None) -> int:
    """Return the byte budget of a file.

    Raises
    ------
    InputError
        Neither or both are given, or one is not positive.
    """
    if (compression is None) == (max_bytes is None):
        raise InputError("give either --compression or --max-bytes")
    if max_bytes is not None:
        if max_bytes <= 0:
            raise InputError(f"--max-bytes must be positive, not {max_bytes}")
        return max_bytes
    assert compression is not None
    if not compression > 0:
        raise InputError(f"--compression must be positive, not {compression}")
    ratio = source_bytes / compression
    return int(ratio) if math.isfinite(ratio) else sys.maxsize


def _require_free(out: Path, names: list[str], *, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("is a file, not a run directory", where=str(out), todo="Choose another --out")
    taken = [name for name in names if (out / name).exists()]
    if taken and not force:
        raise InputError(
            f"already holds {taken[0]}", where=str(out), todo="Choose another --out, or give --force"
        )


@contextmanager
def run_directory(out: Path, names: list[str], *, force: bool) -> Generator[None]:
    """Make a run directory, refusing one that holds these files unless forced; on failure remove it if still empty.

    Raises
    ------
    InputError
        It exists and holds an earlier run, is a file, or cannot be made or written to.
    """
    _require_free(out, names, force=force)
    made = [p for p in (out, *out.parents) if not p.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made ({error.strerror})", where=str(out), todo="Choose another --out"
        ) from error
    try:
        _require_writable(out)
        yield
    except BaseException:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


def emitted_name(model: Path) -> str:
    """Return the default name of the file made from a model: `<model>.tqs.onnx`."""
    return f"{model.stem}.tqs.onnx"


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
    name = emitted_name(job.model)
    emitted, plan_file, manifest_file = job.out / name, job.out / "plan.json", job.out / "manifest.json"
    if emitted.resolve() == job.model.resolve():
        raise InputError(
            "the output would overwrite the input", where=str(emitted), todo="Choose another --out"
        )
    budget = budget_bytes(source.facts.n_bytes, job.compression, job.max_bytes)
    files = [name, "plan.json", "scores.json", "scores.csv", "manifest.json", CODES_NAME]
    with run_directory(job.out, files, force=job.force):
        say(
            f"{len(source.survey.weights)} weights, {sum(w.n_values for w in source.survey.weights)} values; "
            f"{data.scoring.n_contexts} scoring and {data.evaluation.n_contexts} evaluation contexts"
        )
        ready = prepared_source(source, job.serving)
        offered = menus_of(source, ready, job.profile, job.tiers, job.serving)
        size = size_of(source, ready)
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
        for file in files:
            (job.out / file).unlink(missing_ok=True)
        write_text(job.out / "scores.json", scores.to_json())
        write_text(job.out / "scores.csv", scores.to_csv())
        request = Request(offered, scores, size, job.profile, job.serving)
        plan = plan_within(request, budget, job.plan)
        for warning in plan.warnings:
            say(f"warning: {warning}")
        place = Place(
            source.lifted,
            source.survey,
            data.spec,
            data.scoring,
            scores.sigma,
            job.sweep.provider,
            job.sweep.batch,
            job.sweep.threads,
        )
        refined = refine(plan, request, place, job.plan, job.refine, say)
        plan = refined.plan
        if refined.codes:
            write_codes(job.out / CODES_NAME, refined.codes)
        write_text(plan_file, plan.to_json())
    subject = Subject(job.model, emitted, source.lifted, source.survey, plan, refined.codes)
    bench = Bench(
        data.spec, data.evaluation, scores.sigma, job.sweep.provider, job.sweep.batch, job.sweep.threads
    )
    with removed_on_failure(emitted):
        emit(source.lifted, plan, emitted, refined.codes)
        verification = verify(subject, bench)
        results = judge(job.gates, verification)
        manifest = manifest_of(
            subject, data.files, verification, results, licence_of(source.metadata), settings_of(job)
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


def _require_writable(out: Path) -> None:
    """Refuse a directory that cannot be written to now, not after the sweep."""
    try:
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(
            f"cannot be written to ({error.strerror})", where=str(out), todo="Choose another --out"
        ) from error


@contextmanager
def removed_on_failure(emitted: Path) -> Generator[None]:
    """Remove an emitted file, and its external data, when what follows does not come to its end."""
    try:
        yield
    except BaseException:
        emitted.unlink(missing_ok=True)
        emitted.with_name(emitted.name + ".data").unlink(missing_ok=True)
        raise


def require_evaluable(gates: tuple[Gate, ...], data: Data) -> None:
    """Refuse a gate that is bound to fail for want of data, before anything is computed.

    Raises
    ------
    InputError
        A gate needs the truth, and the evaluation contexts hold none.
    """
    for gate in gates:
        if needs_truth(gate) and not data.evaluation.truth:
            raise InputError(
                f"gate {gate.text!r} cannot be evaluated: the evaluation contexts hold no truth",
                where=data.evaluation.source,
                todo="Add truth/<output> to them",
            )


def judge(gates: tuple[Gate, ...], verification: Verification) -> tuple[GateResult, ...]:
    """Hold gates against what was measured.

    Raises
    ------
    InputError
        A gate cannot be evaluated.
    """
    measured = Measured(verification.drift, verification.truth, verification.compression)
    values = [(gate, gate_value(gate, measured)) for gate in gates]
    return tuple(GateResult(gate=g.text, value=v, passed=passes(g, v)) for g, v in values)


def manifest_of(
    subject: Subject,
    files: dict[str, Path],
    verification: Verification,
    gates: tuple[GateResult, ...],
    licence: str | None,
    settings: dict[str, Any],
) -> Manifest:
    """Return the manifest of an emitted file."""
    inputs = {"model": file_facts(subject.source).sha256}
    inputs |= {role: {path.name: sha256_of_file(path)} for role, path in files.items() if path.is_file()}
    return Manifest(
        inputs=inputs,
        output=file_facts(subject.emitted).sha256,
        versions=versions(),
        settings=settings,
        profile=subject.plan.profile,
        licence=licence,
        plan_sha256=subject.plan.digest(),
        verification=verification,
        gates=gates,
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
        "tiers": [t.value for t in job.tiers],
        "target": job.serving.target.value,
        "encoding": job.serving.encoding.value,
        "constants": job.serving.constants,
        "opset": job.serving.opset,
        "profile": job.profile,
        "repair_rounds": job.refine.repair_rounds,
        "rounding": job.refine.rounding.method,
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
