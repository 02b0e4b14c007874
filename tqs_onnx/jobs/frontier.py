"""The frontier: many targets from one set of scores; another target costs one allocation, not another scoring run.

Every point is emitted and its file rolled out. Besides the added drift of single weights, each point has the predicted
drift: all weights of the plan at once, on contexts that chose no integers, before a file exists. Combinations of tier
sets, FP32 fractions, thresholds, solvers and objectives give the paper's ablations (Table 3, A.15): each is a series of
points.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqs_onnx.allocation.budget import Budget
from tqs_onnx.allocation.costing import Request
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.request import request_for, require_contexts_of
from tqs_onnx.allocation.solver.algorithm2 import Solver
from tqs_onnx.allocation.tier_set import TierSet
from tqs_onnx.inputs.data import Data, DataOptions
from tqs_onnx.inputs.source import Given, Source
from tqs_onnx.jobs import stages
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.pareto import Pareto, Point, pareto_of
from tqs_onnx.jobs.run_directory import refuse_overwriting, run_directory, with_data
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.refinement.refine import Refined
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rollout.stream import Kept
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.rounding.codes_file import codes_path, write_codes
from tqs_onnx.scoring.measure.store import RESULTS_NAME, Results
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_onnx.verification.evaluate import drift_between, truth_errors
from tqs_onnx.verification.moments import compared
from tqs_onnx.verification.verify import require_runs
from tqs_passes.errors import InfeasibleError
from tqs_passes.files.atomic import write_text
from tqs_passes.files.model import file_facts

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Axis:
    """The axes of a sweep: every combination is one series of targets. An empty axis keeps the value of the options.

    Parameters
    ----------
    compressions : tuple of float
    tier_sets : tuple of TierSet
        Bottom-tier ablation (A.15).
    p_fp32 : tuple of float
        FP32 fraction ablation.
    gamma_min : tuple of float or None
    solvers : tuple of {"mckp", "greedy", "greedy-top"}
    objectives : tuple of Objective
    """

    compressions: tuple[float, ...]
    tier_sets: tuple[TierSet, ...] = ()
    p_fp32: tuple[float | None, ...] = ()
    gamma_min: tuple[float | None, ...] = ()
    solvers: tuple[Solver, ...] = ()
    objectives: tuple[Objective, ...] = ()

    def series(self, options: QuantizeOptions) -> Iterator[tuple[QuantizeOptions, str]]:
        """Yield the options of every series, and the suffix of its file names."""
        plan = options.planning
        tier_sets = self.tier_sets or (options.tiers,)
        bottoms = [t.tiers[-1].value.lower() for t in tier_sets]
        varied = [len(values) > 1 for values in (self.objectives, self.solvers, self.p_fp32, self.gamma_min)]
        for (i, tiers), objective, solver, share, least in itertools.product(
            enumerate(tier_sets),
            self.objectives or (plan.aim,),
            self.solvers or (plan.solver,),
            self.p_fp32 or (plan.p_fp32,),
            self.gamma_min or (plan.gamma_min,),
        ):
            chosen = replace(plan, objective=objective, solver=solver, p_fp32=share, gamma_min=least)
            bottom = bottoms[i] if bottoms.count(bottoms[i]) == 1 else f"tiers{i + 1}"
            texts = (
                objective.value,
                solver,
                f"p{chosen.protected_share:g}",
                "gamma-none" if least is None else f"gamma{least:g}",
            )
            parts = [bottom] if len(bottoms) > 1 else []
            parts += [text for text, shown in zip(texts, varied, strict=True) if shown]
            yield replace(options, tiers=tiers, plan=chosen), ".".join(["", *parts])


@dataclass(frozen=True, slots=True)
class SweepJob:
    """A sweep over many targets, from one set of scores.

    Parameters
    ----------
    model : path, ModelProto or Source
    scores : path or Scores
        Scores of the model. Measured responses are kept in the store beside the file, if there is one, otherwise in the
        run directory.
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


def sweep(job: SweepJob) -> Pareto:
    """Plan, write and measure every target; write plans, files, `pareto.json` and `pareto.csv` into the run directory.

    Raises
    ------
    InputError
        See the stages. A budget that cannot be met becomes a point without a file.
    """
    options = job.options
    source = stages.opened(job.model, options.run, options.roles)
    known = job.scores if isinstance(job.scores, Scores) else read_scores(job.scores)
    data = stages.read(job.data, source)
    require_runs(options.serving.compute, resolve_provider(options.run.provider))
    require_contexts_of(known, data.spec, data.scoring)
    store = None if isinstance(job.scores, Scores) else job.scores.with_name(RESULTS_NAME)
    scores = [] if isinstance(job.scores, Scores) else [job.scores]
    refuse_overwriting(_outputs(job, source), [*source.files, *data.files.values(), *scores])
    with (
        run_directory(job.out, ["pareto.json", "pareto.csv"], force=job.force) as begin,
        Results(store if store is not None and store.exists() else job.out / RESULTS_NAME) as results,
    ):
        if results.note:
            _LOG.info(results.note)
        begin()
        bed = stages.bed_of(source, data, options.run, known)
        sweeper = Sweeper(source, known, options, bed, data, results)
        pareto = trace(sweeper, job.axis, job.out)
        bed.close()
    return pareto


def _outputs(job: SweepJob, source: Source) -> Iterator[Path]:
    """Yield every file that a sweep may write."""
    yield from (job.out / "pareto.json", job.out / "pareto.csv")
    for _, suffix in job.axis.series(job.options):
        for compression in job.axis.compressions:
            name = _name(source, compression, suffix)
            plan_file = job.out / f"{name}.plan.json"
            yield from (*with_data(job.out / f"{name}.onnx"), plan_file, codes_path(plan_file))


def _name(source: Source, compression: float, suffix: str) -> str:
    return f"{source.path.stem}.C{compression:g}{suffix}"


def trace(sweeper: Sweeper, axis: Axis, out: Path) -> Pareto:
    """Write and measure every point of an axis into a folder, and `pareto.json` and `pareto.csv` beside the files."""
    points = list(sweeper.points(axis, out))
    pareto = pareto_of(sweeper.source_sha256, points, on_made_contexts=sweeper.on_made_contexts)
    write_text(out / "pareto.json", pareto.model_dump_json(indent=2) + "\n")
    write_text(out / "pareto.csv", pareto.to_csv())
    return pareto


class Sweeper:
    """State shared by all points: the sessions of one testbed, the captured activations and the measured responses.

    Parameters
    ----------
    source : Source
    scores : Scores
    options : QuantizeOptions
    bed : Testbed
        With the scoring contexts and the σ of the scores.
    data : Data
    results : Results
        Where measured responses are kept.
    """

    def __init__(
        self,
        source: Source,
        scores: Scores,
        options: QuantizeOptions,
        bed: Testbed,
        data: Data,
        results: Results,
    ) -> None:
        self.source_sha256 = source.sha256
        self._source = source
        self._scores = scores
        self._options = options
        self._instruments = instruments_on(bed, data.calibration)
        self._judging = bed.on(data.evaluation)
        self._results = results
        self.on_made_contexts = data.evaluation.is_made

    def points(self, axis: Axis, out: Path) -> Iterator[Point]:
        """Yield every point of an axis, after its plan and its file are written to the folder `out`."""
        source = self._source
        nominal = Kept(self._judging.stream_file(source.path))
        requests: dict[TierSet, Request] = {}
        for options, suffix in axis.series(self._options):
            tiers = options.tiers
            request = requests.get(tiers) or self._request(tiers)
            for compression in axis.compressions:
                name = _name(source, compression, suffix)
                blank = _blank(name, compression, options)
                start = time.perf_counter()
                max_bytes = Budget(compression).n_bytes(request.menus, request.size)
                try:
                    found, request = stages.planned(
                        *(request, max_bytes, source, self._instruments, options, self._results)
                    )
                except InfeasibleError as error:
                    _LOG.warning("%s: %s", name, error)
                    yield blank.model_copy(update={"allocate_s": time.perf_counter() - start})
                    continue
                spent_s = time.perf_counter() - start
                refined = stages.refined(found, request, self._instruments, options)
                point = self._written(refined, nominal, out / f"{name}.onnx", blank)
                prediction = refined.plan.prediction
                update = {
                    "drift_added": refined.plan.added_drift,
                    "drift_predicted": refined.plan.predicted_drift,
                    "predicted_low": None if prediction is None else prediction.low,
                    "predicted_high": None if prediction is None else prediction.high,
                    "allocate_s": spent_s,
                }
                drift = _text(point.drift_measured)
                _LOG.info("%s: %s bytes, drift %s, allocated in %.2f s", name, point.n_bytes, drift, spent_s)
                yield point.model_copy(update=update)
            requests[tiers] = request

    def _request(self, tiers: TierSet) -> Request:
        options = self._options
        rounding = options.refine.rounding.free
        return request_for(self._source, self._scores, options.profile, tiers, options.serving, rounding)

    def _written(self, refined: Refined, nominal: Kept, file: Path, blank: Point) -> Point:
        """Write the file of a plan, roll it out, and return its point."""
        plan, judging = refined.plan, self._judging
        stages.emitted(self._source, plan, file, refined.codes)
        plan_file = file.with_name(f"{blank.name}.plan.json")
        write_text(plan_file, plan.to_json())
        if refined.codes:
            write_codes(codes_path(plan_file), refined.codes)
        n_bytes = file_facts(file).n_bytes
        facts = plan.solver
        update: dict[str, object] = {
            "compression": self._source.facts.n_bytes / n_bytes,
            "n_bytes": n_bytes,
            "unspent_bytes": None if facts is None else facts.budget_bytes - n_bytes,
            "found_by": None if facts is None else facts.solver,
            "saturated": facts is not None and facts.saturated,
        }
        try:
            ours = judging.stream_file(file)()
            found = compared(nominal(), ours, judging.spec, judging.contexts)
        except NonFiniteError:
            return blank.model_copy(update=update)
        truth = truth_errors(found, judging.contexts.factors)
        update["drift_measured"] = drift_between(found, judging.sigma).total
        update["degradation"] = max((e.degradation for e in truth.values()), default=None)
        return blank.model_copy(update=update)


def _blank(name: str, compression: float, options: QuantizeOptions) -> Point:
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
        allocate_s=0.0,
    )


def _text(drift: float | None) -> str:
    return "not finite" if drift is None else f"{drift:.4g}"
