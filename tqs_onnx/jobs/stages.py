"""The stages of a job as plain functions, shared by every entry point: the commands, `tqs build` and the Python API.

    opened ─▶ read ─▶ offer ─▶ scored ─▶ planned ─▶ refined ─▶ emitted ─▶ verified ─▶ recorded

`offer` is in `offering`. Each takes values and returns values. `emitted` writes its file; the jobs (`quantize`,
`single`) write the others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqs_onnx.allocation.costing import Request
from tqs_onnx.allocation.file_size import smallest_file
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.offers import offers_before_scoring
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import (
    hinting,
    require_contexts_of,
    require_scores_of,
)
from tqs_onnx.allocation.servable import require_served
from tqs_onnx.emission import emit
from tqs_onnx.inputs.data import Data, DataOptions, read_data
from tqs_onnx.inputs.source import Given, Source, open_source, parse_role, require_scorable
from tqs_onnx.jobs.offering import Offer, offer, ranged, rounding_inputs, timed
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.release import judge, manifest_of, require_evaluable
from tqs_onnx.jobs.results import Allocated
from tqs_onnx.jobs.target import Trial, smallest_passing, value_of
from tqs_onnx.refinement.instruments import Instruments, instruments_on
from tqs_onnx.refinement.measured_objective import planned as planned_by
from tqs_onnx.refinement.refine import Refined, refine
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rollout.stream import Kept
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.measure.store import Results
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.score import Progress, score
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.gates import needs_timing, parse_gate
from tqs_onnx.verification.manifest import GateResult, Manifest, licence_of
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.timing import measure_timing
from tqs_onnx.verification.traces import Tracer
from tqs_onnx.verification.truth_shape import require_truth_fits
from tqs_onnx.verification.verify import Verification, verify
from tqs_passes.errors import InputError
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan
from tqs_passes.survey.roles import with_roles

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Traces:
    """Forecasts that a verification keeps.

    Parameters
    ----------
    path : Path
        The `.npz` to write.
    wanted : int or None
        Number of contexts; see `Tracer`.
    """

    path: Path
    wanted: int | None = None


def opened(model: Given | Source, run: RunOptions, roles: Sequence[str] = ()) -> Source:
    """Open a model for scoring.

    Parameters
    ----------
    model : path, ModelProto or Source
        A `Source` is already open; it is only checked.
    run : RunOptions
    roles : sequence of str
        ``PATTERN=ROLE``.

    Raises
    ------
    InputError
        The model cannot be read or scored, crashes the runtime, or takes memory out of proportion; or a role matches no
        weight.
    """
    source = model if isinstance(model, Source) else open_source(model)
    if roles:
        survey = with_roles(source.survey, [parse_role(text) for text in roles])
        source = replace(source, survey=survey, roles=(*source.roles, *roles))
    require_scorable(source)
    require_loadable(source.path, resolve_provider(run.provider), run.max_memory, run.device)
    return source


def opened_quietly(model: Given | Source) -> Source:
    """Open a model that will not be rolled out; skip the trial load in a child process."""
    return model if isinstance(model, Source) else open_source(model)


def read(
    given: DataOptions | Data,
    source: Source,
    run: RunOptions,
    gates: Sequence[str] = (),
    *,
    scoring_only: bool = False,
) -> Data:
    """Read the rollout spec and the contexts of a job; log the notes on them.

    Parameters
    ----------
    given : DataOptions or Data
        A `Data` is already read; only the gates are checked.
    source : Source
    run : RunOptions
        Its `max_memory` decides where contexts lie; see `read_data`.
    gates : sequence of str
    scoring_only : bool

    Raises
    ------
    InputError
        A file is invalid or does not fit the model, sets of contexts overlap, or a gate cannot be evaluated on them.
    """
    if isinstance(given, Data):
        data = given
    else:
        data = read_data(given, source, scoring_only=scoring_only, max_memory=run.max_memory)
    require_evaluable(tuple(parse_gate(text) for text in gates), data)
    if data is not given:
        for note in data.notes:
            _LOG.info("note: %s", note)
    return data


def require_judged(source: Source, bed: Testbed, data: Data) -> None:
    """Refuse evaluation contexts or truth that do not fit, by one call, before anything is scored.

    Raises
    ------
    InputError
        See `require_truth_fits`.
    """
    if data.judging is not None:
        require_truth_fits(source.path, bed.on(data.judging))


def bed_of(source: Source, data: Data, run: RunOptions, scores: Scores | None = None) -> Testbed:
    """Return the testbed of a job: it holds the scoring contexts, and the σ of the scores if given."""
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
    """Allocate the byte budget; return the plan, and the request with the responses measured for it.

    Raises
    ------
    InfeasibleError
        No file that small can be written.
    InputError
        The target cannot serve the plan.
    """
    rounding = options.refine.rounding
    with hinting(source, options.serving, options.tiers):
        plan, request = planned_by(request, max_bytes, options.planning, instruments, rounding, results)
    require_served(plan, source, plan.target)
    for warning in plan.warnings:
        _LOG.warning("%s", warning)
    return plan, request


def refined(
    plan: Plan,
    request: Request,
    instruments: Instruments,
    options: QuantizeOptions,
    smaller: Sequence[Refined] = (),
) -> Refined:
    """Choose among a plan and others of its budget, choose their integers, and predict the drift; see `refine`."""
    return refine(plan, request, instruments, options.planning, options.refine, smaller)


def decided(
    request: Request,
    offered: Offer,
    source: Source,
    instruments: Instruments,
    judging: Testbed | None,
    options: QuantizeOptions,
    results: Results,
) -> tuple[Refined, Request]:
    """Plan and refine within the byte budget, or for the smallest file that meets the budget's target.

    Parameters
    ----------
    request : Request
    offered : Offer
    source : Source
    instruments : Instruments
    judging : Testbed or None
        Holds the evaluation contexts; needed for a target.
    options : QuantizeOptions
    results : Results

    Returns
    -------
    Refined, and the request with the responses measured for it

    Raises
    ------
    InfeasibleError
        No file that small can be written, or no file meets the target.
    InputError
        The target cannot serve the plan, or a target is given without evaluation contexts.
    """
    every: list[Refined] = []

    def made(max_bytes: int) -> Refined:
        nonlocal request
        plan, request = planned(request, max_bytes, source, instruments, options, results)
        smaller = [r for r in every if r.plan.n_bytes <= max_bytes]
        every.append(refined(plan, request, instruments, options, smaller))
        return every[-1]

    target = options.budget.target
    if target is None:
        return made(offered.max_bytes), request
    if judging is None:
        raise InputError("a target needs evaluation contexts", todo="Give `contexts`, and `eval_contexts`")
    gate = parse_gate(target)
    nominal = Kept(judging.stream_file(source.path))

    def attempt(max_bytes: int) -> Trial[Refined]:
        found = made(max_bytes)
        return Trial(max_bytes, found.plan.n_bytes, value_of(gate, found, source, judging, nominal), found)

    offers = offers_before_scoring(offered.menus, frozenset(), options.planning)
    smallest, _ = smallest_file(offered.size, offers)
    return smallest_passing(gate, smallest, offered.max_bytes, attempt).made, request


def allocated(
    source: Source,
    scores: Scores,
    data: Data | None,
    options: QuantizeOptions,
    store: Path | None,
    times: Path | None = None,
) -> Allocated:
    """Allocate a byte budget from known scores: `planned`, then `refined`.

    Parameters
    ----------
    source : Source
    scores : Scores
    data : Data or None
        Holds the contexts used for scoring. Without them nothing is rolled out: the integers are chosen from the
        weights alone, no other plan is compared, and no drift is predicted.
    options : QuantizeOptions
    store : Path or None
        Path of the store of measured responses.
    times : Path or None
        Path of the table of times; see `timed`.

    Raises
    ------
    InputError
        The scores are for another model or other contexts, or the options need rollouts and no contexts are given.
    InfeasibleError
        No file that small can be written.
    """
    require_scores_of(source, scores)
    require_activations_of(scores, options)
    offered = ranged(offer(source, options), scores)
    request = Request(offered.menus, scores, offered.size, options.profile, offered.serving)
    if data is None:
        plan = _planned_by_scores(request, offered.max_bytes, source, options)
        return Allocated(plan, {}, request)
    require_contexts_of(scores, data.spec, data.scoring)
    bed = bed_of(source, data, options.run, scores)
    request = replace(request, times=timed(source, offered, options, bed, times))
    instruments = instruments_on(rounding_inputs(bed, offered.menus), data.calibration, data.beside)
    judging = instruments.bed.on(data.evaluation) if options.budget.target is not None else None
    with Results(store) as results:
        if results.note:
            _LOG.info(results.note)
        done, request = decided(request, offered, source, instruments, judging, options, results)
    return Allocated(done.plan, done.codes, request)


def require_activations_of(scores: Scores, options: QuantizeOptions) -> None:
    """Refuse scores that lack the activations that a job may round.

    Raises
    ------
    InputError
        Inputs may be rounded, and the scores hold none, or with other ranges than the profile writes.
    """
    wanted = options.scoring
    if not options.plan.rounds_inputs:
        return
    if not scores.activations:
        raise InputError(
            "the scores hold no activations, which a `speedup` needs",
            todo="Run tqs score with `activations`, on a model with matrices",
        )
    kinds = {s.ranges[0].kind if s.ranges else None for s in scores.activations}
    if kinds != {wanted.ranges}:
        fixed = "without `ranges`" if wanted.ranges is None else f"with `ranges` {wanted.ranges}"
        raise InputError(
            "the scores hold activations that were rounded in another way than this profile and target write",
            todo=f"Run tqs score {fixed}",
        )


def _planned_by_scores(request: Request, max_bytes: int, source: Source, options: QuantizeOptions) -> Plan:
    planning = options.plan.decided(by_data=False)
    if options.budget.target is not None:
        raise InputError("a target needs rollouts", todo="Give `rollout` and `contexts`")
    if planning.aim is Objective.MEASURED:
        raise InputError("the objective `measured` needs rollouts", todo="Give `rollout` and `contexts`")
    _LOG.info(
        "note: nothing is rolled out without `rollout` or `contexts`: the weights alone choose integers, and no other "
        "plan is compared"
    )
    with hinting(source, options.serving, options.tiers):
        plan = plan_within(request, max_bytes, planning)
    require_served(plan, source, plan.target)
    for warning in plan.warnings:
        _LOG.warning("%s", warning)
    return plan


def emitted(source: Source, plan: Plan, out: Path, codes: Mapping[str, Codes]) -> Subject:
    """Write the file of a plan, and return the subject to verify; see `emit` for the errors."""
    emit(source.lifted, plan, out, codes)
    return Subject(source.path, out, source.lifted, source.survey, plan, codes)


def require_made_of(source: Source, plan: Plan, scores: Scores, data: Data) -> None:
    """Refuse to verify by a plan, scores or contexts that do not belong together.

    Raises
    ------
    InputError
        The plan or the scores are for another model, or the scoring contexts are not those of the scores: the
        evaluation contexts could then be contexts that were scored on.
    """
    require_plan_of(source, plan)
    require_scores_of(source, scores)
    require_contexts_of(scores, data.spec, data.scoring)


def require_plan_of(source: Source, plan: Plan, where: str = "") -> None:
    """Refuse a plan for another model.

    Raises
    ------
    InputError
        The digests of the models differ.
    """
    if plan.source_sha256 != source.sha256:
        raise InputError(
            "the plan is for another model", where=where or str(source.path), todo="Allocate for this model"
        )


def verified(
    subject: Subject,
    bed: Testbed,
    data: Data,
    gates: Sequence[str],
    *,
    traces: Traces | None = None,
    timing: bool = False,
) -> tuple[Verification, tuple[GateResult, ...]]:
    """Roll the file out under stock server options, and check its gates.

    Parameters
    ----------
    subject : Subject
    bed : Testbed
        Testbed of the source, with the σ of the scores; the evaluation contexts replace its contexts.
    data : Data
    gates : sequence of str
    traces : Traces, optional
        Which forecasts to keep, and where.
    timing : bool
        Time the file against its source, also if no gate needs it.

    Raises
    ------
    GateError
        The file does not match its plan; see `verify`. Failed gates do not raise.
    InputError
        A gate cannot be evaluated, or the file does not run.
    """
    # Without `max_memory`: a file of few bits unfolds to many times its bytes.
    require_loadable(subject.emitted, bed.provider, device=bed.run.device)
    tracer = None if traces is None else Tracer(data.spec, data.evaluation, traces.wanted)
    verification = verify(subject, bed.on(data.evaluation), tracer)
    parsed = tuple(parse_gate(text) for text in gates)
    if timing or subject.plan.time is not None or any(needs_timing(gate) for gate in parsed):
        timed = measure_timing(subject.source, subject.emitted, bed.on(data.evaluation))
        verification = verification.model_copy(update={"timing": timed})
    judged = judge(parsed, verification)
    if tracer is not None and traces is not None:
        tracer.write(traces.path)
    return verification, judged


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
        The further files used to make the emitted one, by role.
    verification : Verification
    gates : tuple of GateResult
    settings : mapping
        Settings of the job; see `jobs.options.settings_of`.
    bed : Testbed
        The testbed of the verification.
    """
    files, licence = data.files | dict(written), licence_of(source.metadata)
    return manifest_of(
        subject, files, data.digests, verification, gates, licence, dict(settings), bed.provider
    )
