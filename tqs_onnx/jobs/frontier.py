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
from collections.abc import Iterator, Mapping
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
from tqs_onnx.rounding.assign import Method
from tqs_onnx.rounding.codes_file import codes_path, write_codes
from tqs_onnx.scoring.measure.store import RESULTS_NAME, Results
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_onnx.verification.errors import VariableErrors, errors_of
from tqs_onnx.verification.evaluate import drift_between
from tqs_onnx.verification.moments import compared
from tqs_onnx.verification.verify import require_runs
from tqs_passes.errors import InfeasibleError
from tqs_passes.files.atomic import write_text
from tqs_passes.files.model import file_facts
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Axis:
    """The axes of a sweep: every combination is one series of targets. An empty axis keeps the value of the options.

    Parameters
    ----------
    compressions : tuple of float
        Input file over output file.
    weight_compressions : tuple of float
        The paper's C: bytes of the weights over their stored bytes, scales and tables included.
    tier_sets : tuple of TierSet
        Bottom-tier ablation (A.15).
    p_fp32 : tuple of float
        FP32 fraction ablation.
    gamma_min : tuple of float or None
    solvers : tuple of {"mckp", "greedy", "greedy-top"}
    objectives : tuple of Objective
    baselines : tuple of {"rtn", "mse", "unbiased", "gptq", "gptaq", "qep"}
        Uniform baselines to write beside the series; every series then also gets a point within the bytes of theirs.
    baseline_bits : tuple of int
        Their widths.
    """

    compressions: tuple[float, ...]
    tier_sets: tuple[TierSet, ...] = ()
    p_fp32: tuple[float | None, ...] = ()
    gamma_min: tuple[float | None, ...] = ()
    solvers: tuple[Solver, ...] = ()
    objectives: tuple[Objective, ...] = ()
    baselines: tuple[Method, ...] = ()
    baseline_bits: tuple[int, ...] = (2, 3, 4)
    weight_compressions: tuple[float, ...] = ()

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
            # Where settings are compared, each point is the plan of its own settings.
            refine = replace(options.refine, candidates=1) if any(varied) else options.refine
            yield replace(options, tiers=tiers, plan=chosen, refine=refine), ".".join(["", *parts])


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
    bits = job.axis.baseline_bits if job.axis.baselines else ()
    labels = [*(f"C{c:g}" for c in job.axis.compressions), *(f"W{b}" for b in bits)]
    labels += [f"w{c:g}" for c in job.axis.weight_compressions]
    names = [f"{label}{suffix}" for _, suffix in job.axis.series(job.options) for label in labels]
    names += [f"W{b}.{method}" for b in bits for method in job.axis.baselines]
    for name in names:
        plan_file = job.out / f"{source.path.stem}.{name}.plan.json"
        file = job.out / f"{source.path.stem}.{name}.onnx"
        yield from (*with_data(file), plan_file, codes_path(plan_file))


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
        self._instruments = instruments_on(bed, data.calibration, data.beside)
        self._judging = bed.on(data.evaluation)
        self._results = results
        self.on_made_contexts = data.evaluation.is_made

    def points(self, axis: Axis, out: Path) -> Iterator[Point]:
        """Yield every point of an axis, after its plan and its file are written to the folder `out`."""
        source = self._source
        nominal = Kept(self._judging.stream_file(source.path))
        budgets = [(f"C{c:g}", Budget(c)) for c in axis.compressions]
        budgets += [(f"w{c:g}", Budget(weight_compression=c)) for c in axis.weight_compressions]
        for bits in axis.baseline_bits if axis.baselines else ():
            sizes: list[int] = []
            for made in uniform_files(source, self._instruments, self._options, axis.baselines, bits):
                point = self._baseline(made, nominal, out)
                sizes += [] if point.n_bytes is None else [point.n_bytes]
                yield point
            budgets.append((f"W{bits}", Budget(max_bytes=min(sizes))))
        requests: dict[TierSet, Request] = {}
        for options, suffix in axis.series(self._options):
            tiers = options.tiers
            request = requests.get(tiers) or self._request(tiers)
            asked = [
                (label, budget, budget.n_bytes(request.menus, request.size)) for label, budget in budgets
            ]
            found: dict[str, Point] = {}
            smaller: list[Refined] = []
            for label, budget, max_bytes in sorted(asked, key=lambda item: item[2]):
                compression = budget.compression or source.facts.n_bytes / max_bytes
                blank = _blank(f"{source.path.stem}.{label}{suffix}", compression, options)
                point, request = self._point(blank, request, max_bytes, options, nominal, out, smaller)
                found[label] = point
            yield from (found[label] for label, _ in budgets)
            requests[tiers] = request

    def _point(
        self,
        blank: Point,
        request: Request,
        max_bytes: int,
        options: QuantizeOptions,
        nominal: Kept,
        out: Path,
        smaller: list[Refined],
    ) -> tuple[Point, Request]:
        """Plan, write and measure one target; return its point, and the request with the responses measured for it.

        `smaller` holds the results for smaller budgets, and gets this one.
        """
        start = time.perf_counter()
        try:
            found, request = stages.planned(
                *(request, max_bytes, self._source, self._instruments, options, self._results)
            )
        except InfeasibleError as error:
            _LOG.warning("%s: %s", blank.name, error)
            return blank.model_copy(update={"allocate_s": time.perf_counter() - start}), request
        planned_s = time.perf_counter()
        refined = stages.refined(found, request, self._instruments, options, smaller)
        smaller.append(refined)
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
        return self._written(refined.plan, refined.codes, nominal, out / f"{blank.name}.onnx", blank), request

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

    def _request(self, tiers: TierSet) -> Request:
        options = self._options
        rounding = options.refine.rounding.free
        return request_for(self._source, self._scores, options.profile, tiers, options.serving, rounding)

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
