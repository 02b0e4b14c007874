"""The stages of the trip as plain functions, which every way in calls: the commands, `tqs build` and the Python API.

    opened ─▶ read ─▶ offer ─▶ scored ─▶ planned ─▶ refined ─▶ emitted ─▶ verified ─▶ recorded

Each takes values and returns values. Files other than the emitted one are written by the jobs (`quantize`, `single`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqs_onnx.allocation.costing import Request
from tqs_onnx.allocation.file_size import FileSize, require_feasible
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.offers import offers_before_scoring
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import (
    menus_of,
    note_of_opset,
    prepared_source,
    require_contexts_of,
    require_scores_of,
    size_of,
)
from tqs_onnx.allocation.servable import require_served
from tqs_onnx.emission import emit, stayed
from tqs_onnx.inputs.data import Data, DataOptions, read_data
from tqs_onnx.inputs.source import Given, Source, open_source, parse_role, require_scorable
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.release import judge, manifest_of, require_evaluable
from tqs_onnx.jobs.results import Allocated
from tqs_onnx.refinement.instruments import Instruments, instruments_on
from tqs_onnx.refinement.measured_objective import planned as planned_by
from tqs_onnx.refinement.refine import Refined, refine
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.assign import DATA_AWARE
from tqs_onnx.scoring.measure.store import Results
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.score import Progress, on_trajectory, score
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.gates import parse_gate
from tqs_onnx.verification.manifest import GateResult, Manifest, licence_of
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.verify import Verification, require_runs, verify
from tqs_passes.errors import InputError
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.candidates import Menu
from tqs_passes.plan.plan import Plan
from tqs_passes.survey.roles import with_roles

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be chosen for a model, and how many bytes there are for it.

    Parameters
    ----------
    menus : tuple of Menu
        Every way to store each weight.
    size : FileSize
        What the file holds besides its weights.
    max_bytes : int
        The budget of the whole file.
    """

    menus: tuple[Menu, ...]
    size: FileSize
    max_bytes: int


def opened(model: Given | Source, run: RunOptions, roles: Sequence[str] = ()) -> Source:
    """Open a model that is to be scored.

    Parameters
    ----------
    model : path, ModelProto or Source
        One that is open already is checked, not opened again.
    run : RunOptions
    roles : sequence of str
        ``PATTERN=ROLE``.

    Raises
    ------
    InputError
        It cannot be read, cannot be scored, or crashes the runtime; or a role matches no weight.
    """
    source = model if isinstance(model, Source) else open_source(model)
    source = replace(source, survey=with_roles(source.survey, [parse_role(text) for text in roles]))
    require_scorable(source)
    require_loadable(source.path, resolve_provider(run.provider))
    return source


def opened_quietly(model: Given | Source) -> Source:
    """Open a model without rolling it out: it is not loaded in a child process first."""
    return model if isinstance(model, Source) else open_source(model)


def read(given: DataOptions | Data, source: Source, gates: Sequence[str] = ()) -> Data:
    """Read the rollout spec and the contexts of a job; notes on them are logged.

    Parameters
    ----------
    given : DataOptions or Data
        Data that were read already are checked, not read again.
    source : Source
    gates : sequence of str

    Raises
    ------
    InputError
        A file is bad, does not fit the model, sets of contexts overlap, or a gate cannot be evaluated on them.
    """
    data = given if isinstance(given, Data) else read_data(given, source)
    require_evaluable(tuple(parse_gate(text) for text in gates), data)
    if data is not given:
        for note in data.notes:
            _LOG.info("note: %s", note)
    return data


def offer(source: Source, options: QuantizeOptions) -> Offer:
    """Return what can be chosen within the budget; what the user should know of it is logged.

    Raises
    ------
    InputError
        No budget is given, the model cannot be prepared as asked, or a rule leaves a weight no way to be stored.
    """
    options.budget.require()
    serving = options.serving
    ready = prepared_source(source, serving)
    menus = menus_of(source, ready, options.profile, options.tiers, serving, options.refine.rounding.free)
    if ready.skipped:
        _LOG.info(stayed(ready.skipped))
    if lacking := note_of_opset(source, serving):
        _LOG.info("note: %s", lacking)
    size = size_of(source, ready)
    return Offer(menus, size, options.budget.n_bytes(menus, size))


def require_room(offered: Offer, source: Source, spec: RolloutSpec, options: QuantizeOptions) -> None:
    """Refuse a budget that no file can meet, before anything is rolled out.

    Raises
    ------
    InputError
        The provider has no kernels for the blocks that compute with 16-bit floats.
    InfeasibleError
        No file that small can be written; it carries the smallest size.
    """
    require_runs(options.serving.compute, resolve_provider(options.run.provider))
    weights = source.survey.weights
    off = frozenset(w.name for w in weights if w.outputs and not on_trajectory(w, spec))
    offers = offers_before_scoring(offered.menus, off, options.planning)
    require_feasible(offered.size, offers, offered.max_bytes)


def bed_of(source: Source, data: Data, run: RunOptions, scores: Scores | None = None) -> Testbed:
    """Return where the rollouts of a job happen: with the scoring contexts, and the σ of the scores where known."""
    sigma = None if scores is None else scores.sigma
    return Testbed(source.lifted, source.survey, data.spec, data.scoring, run, sigma)


def scored(
    source: Source, bed: Testbed, options: ScoreOptions, store: Path | None, progress: Progress | None = None
) -> Scores:
    """Measure the sensitivity of every weight; see `score` for the errors."""
    return score(bed, source.sha256, options, progress, store=store)


def planned(
    request: Request,
    max_bytes: int,
    source: Source,
    instruments: Instruments,
    options: QuantizeOptions,
    results: Results,
) -> tuple[Plan, Request]:
    """Spend the bytes; return the plan, and the request with the responses that were measured for it.

    Raises
    ------
    InfeasibleError
        No file that small can be written.
    InputError
        The target cannot serve the plan.
    """
    rounding = options.refine.rounding
    plan, request = planned_by(request, max_bytes, options.planning, instruments, rounding, results)
    require_served(plan, source, plan.target)
    for warning in plan.warnings:
        _LOG.warning("%s", warning)
    return plan, request


def refined(plan: Plan, request: Request, instruments: Instruments, options: QuantizeOptions) -> Refined:
    """Repair a plan, choose its integers, and measure what they do together; see `refine`."""
    return refine(plan, request, instruments, options.planning, options.refine)


def allocated(
    source: Source, scores: Scores, data: Data | None, options: QuantizeOptions, store: Path | None
) -> Allocated:
    """Spend a byte budget by scores that are known: what `planned` and `refined` give.

    Parameters
    ----------
    source : Source
    scores : Scores
    data : Data or None
        With the contexts that were scored on. Without them nothing is rolled out: no repair, no rounding by data, no
        objective `measured`, and no joint drift in the plan.
    options : QuantizeOptions
    store : Path or None
        Where measured responses are kept.

    Raises
    ------
    InputError
        The scores are of another model or of other contexts, or the options need rollouts and there are no contexts.
    InfeasibleError
        No file that small can be written.
    """
    require_scores_of(source, scores)
    offered = offer(source, options)
    request = Request(offered.menus, scores, offered.size, options.profile, options.serving)
    if data is None:
        plan = _planned_by_scores(request, offered.max_bytes, source, options)
        return Allocated(plan, {}, request)
    require_contexts_of(scores, data.spec, data.scoring)
    instruments = instruments_on(bed_of(source, data, options.run, scores), data.calibration)
    with Results(store) as results:
        if results.note:
            _LOG.info(results.note)
        plan, request = planned(request, offered.max_bytes, source, instruments, options, results)
    done = refined(plan, request, instruments, options)
    return Allocated(done.plan, done.codes, request)


def _planned_by_scores(request: Request, max_bytes: int, source: Source, options: QuantizeOptions) -> Plan:
    planning = options.planning
    if planning.aim is Objective.MEASURED or options.refine.rounding.method in DATA_AWARE:
        raise InputError(
            "the objective `measured` and rounding by data need rollouts",
            todo="Give `rollout` and `contexts`",
        )
    if options.refine.repair_rounds:
        _LOG.info("note: no joint repair, which needs rollouts: give rollout and contexts for it")
    plan = plan_within(request, max_bytes, planning)
    require_served(plan, source, plan.target)
    for warning in plan.warnings:
        _LOG.warning("%s", warning)
    return plan


def emitted(source: Source, plan: Plan, out: Path, codes: Mapping[str, Codes]) -> Subject:
    """Write the file of a plan, and return what is to be verified; see `emit` for the errors."""
    emit(source.lifted, plan, out, codes)
    return Subject(source.path, out, source.lifted, source.survey, plan, codes)


def verified(
    subject: Subject, bed: Testbed, data: Data, gates: Sequence[str]
) -> tuple[Verification, tuple[GateResult, ...]]:
    """Roll the file out as a stock server runs it, and hold it against its gates.

    Parameters
    ----------
    subject : Subject
    bed : Testbed
        Of the source, with the σ of the scores; its contexts are exchanged for the evaluation contexts.
    data : Data
    gates : sequence of str

    Raises
    ------
    GateError
        The file is not what its plan says; see `verify`. A gate that fails does not raise.
    InputError
        A gate cannot be evaluated, or the file does not run.
    """
    verification = verify(subject, bed.on(data.evaluation))
    return verification, judge(tuple(parse_gate(text) for text in gates), verification)


def recorded(
    subject: Subject,
    source: Source,
    data: Data,
    written: Mapping[str, Path],
    verification: Verification,
    gates: tuple[GateResult, ...],
    settings: Mapping[str, object],
    bed: Testbed,
) -> Manifest:
    """Return the manifest of an emitted file.

    Parameters
    ----------
    subject : Subject
    source : Source
    data : Data
    written : mapping of str to Path
        Role to each further file that the emitted one was made with.
    verification : Verification
    gates : tuple of GateResult
    settings : mapping
        The job: see `jobs.options.settings_of`.
    bed : Testbed
        Where the file was verified.
    """
    files, licence = data.files | dict(written), licence_of(source.metadata)
    return manifest_of(
        subject, files, data.digests, verification, gates, licence, dict(settings), bed.provider
    )
