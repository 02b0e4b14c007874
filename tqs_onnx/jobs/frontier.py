"""The frontier: many targets from one set of scores; another target costs one allocation, not another scoring run.

Every point is emitted and its file rolled out. Besides the added drift of single weights, each point has the predicted
drift: all weights of the plan at once, on contexts that chose no integers, before a file exists. Combinations of tier
sets, FP32 fractions, thresholds, solvers and objectives give the paper's ablations (Table 3, A.15): each is a series of
points.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqs_onnx.allocation.budget import Budget
from tqs_onnx.allocation.costing import Request
from tqs_onnx.allocation.request import request_for, require_contexts_of, require_scores_of
from tqs_onnx.allocation.tier_set import TierSet
from tqs_onnx.allocation.times import TIMES_NAME, TimeTable
from tqs_onnx.inputs.data import Data, DataOptions
from tqs_onnx.inputs.source import Given, Source
from tqs_onnx.jobs import offering, stages
from tqs_onnx.jobs.axis import Axis, file_labels, named_scores
from tqs_onnx.jobs.matched import UNIFORM, Uniform, uniform_files
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.pareto import Pareto, Point, PointErrors, pareto_of
from tqs_onnx.jobs.run_directory import refuse_overwriting, run_directory, with_data
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.refinement.refine import Refined
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rollout.stream import Kept
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.rounding.codes_file import codes_path, write_codes
from tqs_onnx.scoring.measure.store import RESULTS_NAME, Results
from tqs_onnx.scoring.score import Progress
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.errors import VariableErrors, errors_of
from tqs_onnx.verification.evaluate import drift_between
from tqs_onnx.verification.moments import compared
from tqs_onnx.verification.timing import measure_timing
from tqs_onnx.verification.verify import require_runs
from tqs_passes.errors import InfeasibleError
from tqs_passes.files.atomic import write_text
from tqs_passes.files.model import file_facts
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SweepJob:
    """A sweep over many targets, from one set of scores.

    Parameters
    ----------
    model : path, ModelProto or Source
    scores : path or Scores
        Scores of the model on the scoring contexts. Measured responses are kept in the store beside the file, if there
        is one, otherwise in the run directory.
    data : DataOptions or Data
    out : Path
        Run directory.
    axis : Axis
    options : QuantizeOptions
        Used as far as the axis does not say otherwise, except for its budget and its gates.
    force : bool
        Write into a directory that holds an earlier run.
    """

    model: Given | Source
    scores: Path | Scores
    data: DataOptions | Data
    out: Path
    axis: Axis
    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    force: bool = False


def sweep(job: SweepJob, progress: Progress | None = None) -> Pareto:
    """Plan, write and measure every target; write plans, files, `pareto.json` and `pareto.csv` into the run directory.

    Parameters
    ----------
    job : SweepJob
    progress : callable, optional
        Gets (points done, points in all, name) after every point.

    Raises
    ------
    InputError
        See the stages; or scores are for another model. A budget that cannot be met becomes a point without a file.
    """
    options = job.options
    if job.axis.speedups:  # readers that round their inputs are then offered
        options = replace(options, plan=replace(options.plan, speedup=job.axis.speedups[0]))
    source = stages.opened(job.model, options.run, options.roles)
    scores = named_scores(job.scores, job.axis.scores)
    for known in scores.values():
        require_scores_of(source, known)
        stages.require_activations_of(known, options)
    known = next(iter(scores.values()))
    data = stages.read(job.data, source, options.run)
    require_runs(options.serving.compute, resolve_provider(options.run.provider))
    require_contexts_of(known, data.spec, data.scoring)
    store = None if isinstance(job.scores, Scores) else job.scores.with_name(RESULTS_NAME)
    read = [s for s in (job.scores, *job.axis.scores) if isinstance(s, Path)]
    labels = list(file_labels(job.axis, options, scores))
    refuse_overwriting(_outputs(job.out, source, labels), [*source.files, *data.files.values(), *read])
    with (
        run_directory(job.out, ["pareto.json", "pareto.csv"], force=job.force) as begin,
        Results(store if store is not None and store.exists() else job.out / RESULTS_NAME) as results,
    ):
        if results.note:
            _LOG.info(results.note)
        begin()
        bed = stages.bed_of(source, data, options.run, known)
        sweeper = Sweeper(source, scores, options, bed, data, results, job.out / TIMES_NAME)

        def done(n: int, name: str) -> None:
            if progress is not None:
                progress(n, len(labels), name)

        pareto = trace(sweeper, job.axis, job.out, done)
        bed.close()
    return pareto


def _outputs(out: Path, source: Source, labels: Sequence[str]) -> Iterator[Path]:
    """Yield every file that a sweep may write."""
    yield from (out / "pareto.json", out / "pareto.csv")
    for label in labels:
        plan_file = out / f"{source.path.stem}.{label}.plan.json"
        file = out / f"{source.path.stem}.{label}.onnx"
        yield from (*with_data(file), plan_file, codes_path(plan_file))


def trace(
    sweeper: Sweeper, axis: Axis, out: Path, done: Callable[[int, str], None] = lambda _, __: None
) -> Pareto:
    """Write and measure every point of an axis into a folder, and `pareto.json` and `pareto.csv` beside the files.

    After every point, `done` gets the number of points and its name.
    """
    points: list[Point] = []
    for point in sweeper.points(axis, out):
        points.append(point)
        done(len(points), point.name)
    points = sweeper.in_order(axis, points)
    pareto = pareto_of(sweeper.source_sha256, points, on_made_contexts=sweeper.on_made_contexts)
    write_text(out / "pareto.json", pareto.model_dump_json(indent=2) + "\n")
    write_text(out / "pareto.csv", pareto.to_csv())
    return pareto


class Sweeper:
    """State shared by all points: the sessions of one testbed, the captured activations and the measured responses.

    Parameters
    ----------
    source : Source
    scores : mapping of str to Scores
        By name; see `named_scores`.
    options : QuantizeOptions
    bed : Testbed
        With the scoring contexts and the σ of the first scores.
    data : Data
    results : Results
        Where measured responses are kept.
    times : Path or None
        The table of times: read if it exists, else measured and written. Only a budget of time needs it.
    """

    def __init__(
        self,
        source: Source,
        scores: Mapping[str, Scores],
        options: QuantizeOptions,
        bed: Testbed,
        data: Data,
        results: Results,
        times: Path | None = None,
    ) -> None:
        self.source_sha256 = source.sha256
        self._source = source
        self._scores = scores
        self._options = options
        self._times: TimeTable | None = None
        if options.plan.rounds_inputs:
            offered = offering.ranged(offering.offer(source, options), next(iter(scores.values())))
            self._times = offering.timed(source, offered, options, bed, times)
            bed = offering.rounding_inputs(bed, offered.menus)
        self._instruments = instruments_on(bed, data.calibration, data.beside)
        self._judging = bed.on(data.evaluation)
        self._results = results
        self.on_made_contexts = data.evaluation.is_made

    def points(self, axis: Axis, out: Path) -> Iterator[Point]:
        """Yield every point of an axis, after its plan and its file are written to the folder `out`.

        A series comes from its smallest file to its largest: plans for smaller budgets take part in larger ones.
        """
        source = self._source
        nominal = Kept(self._judging.stream_file(source.path))
        budgets = [(f"C{c:g}", Budget(c)) for c in axis.compressions]
        budgets += [(f"w{c:g}", Budget(weight_compression=c)) for c in axis.weight_compressions]
        for bits in axis.widths:
            sizes: list[int] = []
            for made in uniform_files(source, self._instruments, self._options, axis.baselines, bits):
                point = self._baseline(made, nominal, out)
                sizes += [] if point.n_bytes is None else [point.n_bytes]
                yield point
            budgets.append((f"W{bits}", Budget(max_bytes=min(sizes))))
        requests: dict[TierSet, Request] = {}
        for name, scores in self._scores.items():
            for options, suffix in axis.series(self._options):
                tiers = options.tiers
                request = replace(requests.get(tiers) or self._request(tiers, scores), scores=scores)
                asked = [(label, b, b.n_bytes(request.menus, request.size)) for label, b in budgets]
                smaller: tuple[Refined, ...] = ()
                for label, budget, max_bytes in sorted(asked, key=lambda item: item[2]):
                    compression = budget.compression or source.facts.n_bytes / max_bytes
                    stem = f"{source.path.stem}.{label}{suffix}{f'.{name}' if name else ''}"
                    blank = _blank(stem, compression, options, name)
                    blank, request, refined = self._planned(blank, request, max_bytes, options, smaller)
                    if refined is None:
                        yield blank
                        continue
                    smaller = (refined,)  # it took part in a contest with those before it
                    file = out / f"{blank.name}.onnx"
                    yield self._written(refined.plan, refined.codes, nominal, file, blank)
                requests[tiers] = request

    def in_order(self, axis: Axis, points: Sequence[Point]) -> list[Point]:
        """Return the points of an axis in the order in which their targets were given."""
        labels = file_labels(axis, self._options, self._scores)
        place = {f"{self._source.path.stem}.{label}": i for i, label in enumerate(labels)}
        return sorted(points, key=lambda point: place[point.name])

    def _planned(
        self,
        blank: Point,
        request: Request,
        max_bytes: int,
        options: QuantizeOptions,
        smaller: tuple[Refined, ...],
    ) -> tuple[Point, Request, Refined | None]:
        """Plan one target; return its point, the request with the responses measured for it, and what to write.

        `smaller` holds the result for the next smaller budget. Nothing is written if no file is that small.
        """
        start = time.perf_counter()
        try:
            found, request = stages.planned(
                *(request, max_bytes, self._source, self._instruments, options, self._results)
            )
        except InfeasibleError as error:
            _LOG.warning("%s: %s", blank.name, error)
            return blank.model_copy(update={"allocate_s": time.perf_counter() - start}), request, None
        planned_s = time.perf_counter()
        refined = stages.refined(found, request, self._instruments, options, smaller)
        prediction = refined.plan.prediction
        blank = blank.model_copy(
            update={
                "drift_added": refined.plan.added_drift,
                "drift_predicted": refined.plan.predicted_drift,
                "predicted_low": None if prediction is None else prediction.low,
                "predicted_high": None if prediction is None else prediction.high,
                "allocate_s": planned_s - start,
                "calibrate_s": time.perf_counter() - planned_s,
            }
        )
        return blank, request, refined

    def _baseline(self, made: Uniform, nominal: Kept, out: Path) -> Point:
        """Write and measure a uniform baseline."""
        plan = made.assigned.plan
        blank = Point(
            name=f"{self._source.path.stem}.W{made.bits}.{made.method}",
            compression_asked=plan.source_bytes / plan.n_bytes,
            tiers=f"INT{made.bits},FP16",
            p_fp32=0.0,
            gamma_min=None,
            objective=UNIFORM,
            solver=made.method,
            allocate_s=0.0,
            calibrate_s=made.calibrate_s,
        )
        return self._written(plan, made.assigned.codes, nominal, out / f"{blank.name}.onnx", blank)

    def _request(self, tiers: TierSet, scores: Scores) -> Request:
        options = self._options
        rounding = options.refine.rounding.free
        if options.plan.rounds_inputs:
            offered = offering.ranged(offering.offer(self._source, replace(options, tiers=tiers)), scores)
            return Request(
                *(offered.menus, scores, offered.size, options.profile, offered.serving), times=self._times
            )
        return request_for(self._source, scores, options.profile, tiers, options.serving, rounding)

    def _written(
        self, plan: Plan, codes: Mapping[str, Codes], nominal: Kept, file: Path, blank: Point
    ) -> Point:
        """Write the file of a plan, roll it out, and return its point."""
        judging, start = self._judging, time.perf_counter()
        stages.emitted(self._source, plan, file, codes)
        plan_file = file.with_name(f"{blank.name}.plan.json")
        write_text(plan_file, plan.to_json())
        if codes:
            write_codes(codes_path(plan_file), codes)
        written_s = time.perf_counter()
        n_bytes = file_facts(file).n_bytes
        facts = plan.solver
        update: dict[str, object] = {
            "compression": self._source.facts.n_bytes / n_bytes,
            "n_bytes": n_bytes,
            "unspent_bytes": None if facts is None else facts.budget_bytes - n_bytes,
            "found_by": None if facts is None else facts.solver,
            "chosen": next((t.name for t in plan.tried if t.chosen), None),
            "saturated": facts is not None and facts.saturated,
            "emit_s": written_s - start,
        }
        try:
            ours = judging.stream_file(file)()
            found = compared(nominal(), ours, judging.spec, judging.contexts)
        except NonFiniteError:
            _LOG.info("%s: %d bytes, drift not finite", blank.name, n_bytes)
            return blank.model_copy(update=update | {"evaluate_s": time.perf_counter() - written_s})
        if plan.time is not None:
            timing = measure_timing(self._source.path, file, judging)
            update["latency"] = timing.latency[plan.time.batch]
            update["latency_predicted"] = plan.time.predicted
        drift = drift_between(found, judging.sigma)
        errors = errors_of(found, judging.spec, judging.contexts)
        update["drift_measured"] = drift.total
        update["degradation"] = max(
            (e.degradation for e in errors.values() if e.degradation is not None), default=None
        )
        update["variables"] = {name: _errors(e, drift.per_variable[name]) for name, e in errors.items()}
        update["evaluate_s"] = time.perf_counter() - written_s
        _LOG.info(
            "%s: %d bytes, drift %.4g, allocated in %.2f s",
            blank.name,
            n_bytes,
            drift.total,
            blank.allocate_s,
        )
        return blank.model_copy(update=update)


def _errors(e: VariableErrors, drift: float) -> PointErrors:
    return PointErrors(
        unit=e.unit,
        drift=drift,
        mae_from_fp32=e.against_fp32.mae,
        mae_fp32=None if e.fp32 is None else e.fp32.mae,
        mae=None if e.file is None else e.file.mae,
        rmse_fp32=None if e.fp32 is None else e.fp32.rmse,
        rmse=None if e.file is None else e.file.rmse,
        degradation=e.degradation,
    )


def _blank(name: str, compression: float, options: QuantizeOptions, scores: str) -> Point:
    """Return a point that holds only what was requested."""
    plan = options.planning
    return Point(
        name=name,
        compression_asked=compression,
        tiers=",".join(options.tiers.tiers),
        p_fp32=plan.protected_share,
        gamma_min=plan.gamma_min,
        objective=plan.aim.value,
        solver=plan.solver,
        rank_by=plan.rank_by.value,
        scores=scores,
        speedup=plan.speedup,
        allocate_s=0.0,
    )
