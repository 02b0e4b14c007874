"""Scores weights: perturbs each weight (or block), rolls out, and compares with the nominal rollout.

A weight that reaches no trajectory output is `off-trajectory`, one that reaches no output at all is `dead`; neither is
rolled out. All others are measured (`plan.sweep_plan` → `measure.task` → `workers` → `measure.store`) and scored
(`judge`). What no context ran is then told from what has no effect (`unseen`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from tqs_onnx.rollout.contexts.context_set import contexts_hash
from tqs_onnx.rollout.session import runtime_version
from tqs_onnx.rollout.spec.spec import content_hash
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.activations import score_activations
from tqs_onnx.scoring.judge import Judged, blank, judge, mean_of, scored, settle_minimum
from tqs_onnx.scoring.measure.facts import Floors
from tqs_onnx.scoring.measure.floors import SessionFloors
from tqs_onnx.scoring.measure.station import Frame
from tqs_onnx.scoring.measure.store import Expected, Results, StoppedError
from tqs_onnx.scoring.measure.task import Finding, tasks_of
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan, on_trajectory, plan_sweep
from tqs_onnx.scoring.scores import ProbeFacts, Scores, Status, WeightScore
from tqs_onnx.scoring.unseen import with_unseen
from tqs_onnx.scoring.workers.local import Crew, Here, Workers
from tqs_onnx.scoring.workers.ray_crew import cluster_crew
from tqs_passes.errors import InputError
from tqs_passes.weights import Survey

Progress = Callable[[int, int, str], None]
_LOG = logging.getLogger(__name__)

__all__ = ["Progress", "ScoreOptions", "on_trajectory", "score"]


def score(
    bed: Testbed,
    source_sha256: str,
    options: ScoreOptions | None = None,
    progress: Progress | None = None,
    *,
    store: Path | None = None,
) -> Scores:
    """Score every weight of a lifted model; `plan_sweep` describes the shared parameters.

    Parameters
    ----------
    bed : Testbed
        Holds the scoring contexts.
    source_sha256 : str
    options : ScoreOptions, optional
    progress : callable, optional
        Called with (done, total, label) after each weight.
    store : Path, optional
        SQLite file that receives the measurements as they arrive; an earlier run is resumed from it.

    Raises
    ------
    InputError
        The model does not run, its nominal rollout is not finite, a horizon exceeds the number of steps, or the store
        cannot be used.
    StoppedError
        The user stopped scoring; the measurements so far are in the store.
    """
    options = options or ScoreOptions()
    plan = plan_sweep(bed, source_sha256, options)
    survey = bed.survey
    with Results(store) as results:
        if results.note:
            _LOG.info(results.note)
        counter = _Counter(plan, survey, progress)
        try:
            frame, floors = _measure(plan, results, counter)
            counter.finish()
        except KeyboardInterrupt as error:
            if store is None:
                raise
            raise StoppedError(
                f"stopped: {counter.n_kept} of {plan.n_rollouts} rollouts are kept in {store}",
                todo="Run the same command again to resume",
            ) from error
        judged, saved = _judged(plan, results, floors)
    return Scores(
        source_sha256=source_sha256,
        rollout_sha256=content_hash(bed.spec),
        contexts_sha256=contexts_hash(bed.contexts),
        provider=bed.provider,
        runtime=runtime_version(),
        probe=_probe_facts(options),
        horizons=plan.horizons,
        units=options.units,
        sigma=frame.sigma,
        n_contexts=bed.contexts.n_contexts,
        n_values=frame.n_values,
        noise_floor=max(f.noise for f in floors),
        rounding_floor=max(f.rounding for f in floors),
        floors=floors,
        sessions=plan.n_sessions,
        rollouts_saved=saved,
        placement=frame.placement,
        weights=with_unseen(bed, _rows(plan, survey, frame, judged)),
        activations=score_activations(bed, frame.sigma, plan.horizons, options.ranges)
        if options.activations
        else (),
    )


class _Counter:
    """Counts stored measurements, and reports each finished weight to the progress callback."""

    def __init__(self, plan: SweepPlan, survey: Survey, progress: Progress | None) -> None:
        self.n_kept = 0
        self._progress = progress
        self._total = len(survey.weights)
        self._left = {
            t.name: {r.key(plan.job) for r in plan.rollouts(t)} for group in plan.groups for t in group
        }
        self._target_of = {key: name for name, keys in self._left.items() for key in keys}
        self._n_weights = {t.name: len(t.weights) for group in plan.groups for t in group}
        self._labels = {
            t.name: t.weights[0].label if len(t.weights) == 1 else t.name
            for group in plan.groups
            for t in group
        }
        self._idle = [w.label for w in survey.weights if not on_trajectory(w, plan.spec)]
        self._done = 0

    def kept(self, keys: set[str]) -> None:
        """Count these measurements as stored."""
        self.n_kept += len(keys)
        for key in sorted(keys):
            name = self._target_of[key]
            self._left[name].discard(key)
            if not self._left[name]:
                self._tick(self._n_weights[name], self._labels[name])

    def finish(self) -> None:
        """Count the weights that need no rollout."""
        for label in self._idle:
            self._tick(1, label)

    def _tick(self, n: int, label: str) -> None:
        self._done += n
        if self._progress is not None:
            self._progress(self._done, self._total, label)


def _measure(plan: SweepPlan, results: Results, counter: _Counter) -> tuple[Frame, tuple[Floors, ...]]:
    """Measure what the store lacks; return the facts about the nominal rollout, and the floors of each session."""
    frame = _frame(results.frame(plan.job))
    keys = (r.key(plan.job) for group in plan.groups for t in group for r in plan.rollouts(t))
    n_variables = None if frame is None else len(frame.sigma)
    expected = Expected(plan.contexts.n_contexts, len(plan.horizons), n_variables, plan.spec.rollout.steps)
    kept = results.known(keys, expected)
    counter.kept(kept)
    tasks = tasks_of(plan, kept, results.floors(plan.job))
    if results.n_damaged:
        _LOG.warning("%s: %d entries are damaged and are measured again", results.path, results.n_damaged)

    def keep(found: Finding) -> None:
        if isinstance(found, SessionFloors):
            results.put_floors(plan.job, found)
            return
        results.put(plan.job, found)
        counter.kept({key for key, _ in found})

    if frame is None or tasks:
        with crew_for(plan) as crew:
            if frame is None:
                frame = crew.frame()
                results.put_frame(plan.job, plan.facts, frame.model_dump_json())
            crew.measure(frame, tasks, keep)
    for note in frame.notes:
        _LOG.warning("%s", note)
    if frame.placement is not None and frame.placement.on_cpu:
        _LOG.warning("%s", frame.placement)
    floors = results.floors(plan.job)
    return frame, tuple(floors[session] for session in range(plan.n_sessions))


def _frame(text: str | None) -> Frame | None:
    """Return a stored frame, or None if there is none that makes sense."""
    try:
        frame = None if text is None else Frame.model_validate_json(text)
    except ValidationError:
        return None
    sound = frame is not None and frame.n_values > 0 and all(0 < s < math.inf for s in frame.sigma.values())
    return frame if sound else None


@contextmanager
def crew_for(plan: SweepPlan) -> Generator[Crew]:
    """Yield the workers that a plan's options select."""
    options = plan.options
    if options.engine == "ray":
        with cluster_crew(plan) as crew:
            yield crew
    elif (workers := options.workers or len(plan.run.devices)) > 1:
        yield Workers(plan, workers)
    else:
        yield Here(plan)


def _judged(plan: SweepPlan, results: Results, floors: tuple[Floors, ...]) -> tuple[dict[str, Judged], float]:
    """Return the score of every target, and the share of model calls that was saved."""
    found: dict[str, Judged] = {}
    made = wanted = 0
    n_draws = plan.options.probe.n_draws
    targets = [(i, t, plan.rollouts(t)) for i, group in enumerate(plan.groups) for t in group]
    kept = results.read(r.key(plan.job) for _, _, rollouts in targets for r in rollouts)
    for session, target, rollouts in targets:
        keys = [r.key(plan.job) for r in rollouts]
        all_of = [kept[key] for key in keys if key in kept]
        if len(all_of) < len(keys):
            raise InputError(
                "a measurement is missing", where=str(results.path), todo="Run the same command again"
            )
        found[target.name] = judge(
            all_of[:n_draws], all_of[n_draws:], plan.horizons, floors[session], plan.options
        )
        moving = [m for m in all_of if m.delta_sq > 0 and m.finite]
        made += sum(m.steps for m in moving)
        wanted += len(moving) * plan.spec.rollout.steps
    if plan.options.dead_at_minimum:
        found = settle_minimum(found)
    return found, 1.0 - made / wanted if wanted else 0.0


def _rows(
    plan: SweepPlan, survey: Survey, frame: Frame, judged: dict[str, Judged]
) -> tuple[WeightScore, ...]:
    names = list(frame.sigma)
    target_of = {w.name: t.name for group in plan.groups for t in group for w in t.weights}
    session_of = {w.name: i for i in range(plan.n_sessions) for w in plan.weights_of(i)}
    rows: list[WeightScore] = []
    for weight in survey.weights:
        if weight.name in target_of:
            block = plan.block_of.get(weight.name, "")
            row = scored(weight, judged[target_of[weight.name]], names, block)
            rows.append(row.model_copy(update={"session": session_of[weight.name]}))
        else:
            rows.append(blank(weight, Status.OFF_TRAJECTORY if weight.outputs else Status.DEAD))
    if plan.options.blocks is not None and plan.options.blocks.score == "mean":
        members: dict[str, list[WeightScore]] = {}
        for row in rows:
            members.setdefault(row.block, []).append(row)
        means = {block: mean_of(found) for block, found in members.items() if block}
        rows = [
            row.model_copy(update=means[row.block]) if row.block and row.status is Status.ALIVE else row
            for row in rows
        ]
    return tuple(rows)


def _probe_facts(options: ScoreOptions) -> ProbeFacts:
    probe = options.probe
    return ProbeFacts(
        kind=probe.kind,
        bits=probe.bits,
        response_bits=options.response_bits,
        per_channel=probe.per_channel,
        draws=probe.n_draws,
        seed=probe.seed,
    )
