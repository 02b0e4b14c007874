"""The frontier: one sweep of scores, many targets; a new target costs an allocation, not a sweep.

Every point is emitted and its file rolled out. Beside the additive prediction stands the joint drift on the scoring
contexts (all weights of the plan at once, before a file exists). Several tier sets, FP32 fractions, thresholds, solvers
and objectives make the ablations of the paper (Table 3, A.15): every combination is a series of points.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tqs_onnx.allocate.costing import PlanOptions, Request
from tqs_onnx.allocate.objective import Objective
from tqs_onnx.allocate.servable import require_served
from tqs_onnx.allocate.solver.algorithm2 import Solver
from tqs_onnx.allocate.tier_set import TierSet
from tqs_onnx.emit import emit
from tqs_onnx.inputs.source import Source
from tqs_onnx.jobs.pareto import Pareto, Point, pareto_of
from tqs_onnx.refine.joint_drift import Joint, Place
from tqs_onnx.refine.measured_objective import planned
from tqs_onnx.refine.refine import RefineOptions, refine
from tqs_onnx.rollout.trajectory import NonFiniteError, Trajectory
from tqs_onnx.rounding.assign import DATA_AWARE, RoundingOptions
from tqs_onnx.rounding.codes_file import codes_path, write_codes
from tqs_onnx.score.measure.store import Results
from tqs_onnx.verify.evaluate import measure_drift, measure_truth
from tqs_onnx.verify.verify import Bench, roll_file
from tqs_passes.errors import InfeasibleError
from tqs_passes.files.atomic import write_text
from tqs_passes.files.model import file_facts
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class Axis:
    """What is varied: every combination is one series of targets.

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
    tier_sets: tuple[TierSet, ...] = (TierSet(),)
    p_fp32: tuple[float | None, ...] = (None,)
    gamma_min: tuple[float | None, ...] = (None,)
    solvers: tuple[Solver, ...] = ("mckp",)
    objectives: tuple[Objective, ...] = (Objective.ENERGY,)

    def series(self, options: PlanOptions) -> Iterator[tuple[TierSet, PlanOptions, str]]:
        """Yield the tier set, the plan options and what is added to the file name, of every series."""
        bottoms = [t.tiers[-1].value.lower() for t in self.tier_sets]
        several = (
            len(self.objectives) > 1,
            len(self.solvers) > 1,
            len(self.p_fp32) > 1,
            len(self.gamma_min) > 1,
        )
        for (i, tiers), objective, solver, share, least in itertools.product(
            enumerate(self.tier_sets), self.objectives, self.solvers, self.p_fp32, self.gamma_min
        ):
            chosen = replace(options, objective=objective, solver=solver, p_fp32=share, gamma_min=least)
            bottom = bottoms[i] if bottoms.count(bottoms[i]) == 1 else f"tiers{i + 1}"
            texts = (
                objective.value,
                solver,
                f"p{chosen.protected_share:g}",
                "gamma-none" if least is None else f"gamma{least:g}",
            )
            parts = [bottom] if len(bottoms) > 1 else []
            parts += [text for text, varied in zip(texts, several, strict=True) if varied]
            yield tiers, chosen, ".".join(["", *parts])


@dataclass(frozen=True, slots=True)
class Sweeper:
    """What every point needs.

    Parameters
    ----------
    source : Source
    request_of : callable
        Returns the candidates for a tier set.
    options : PlanOptions
        As far as the axis does not say otherwise.
    rounding : RoundingOptions
    scoring : Place
        The scoring contexts.
    bench : Bench
        The evaluation contexts.
    results : Results
        Where measured responses are kept.
    """

    source: Source
    request_of: Callable[[TierSet], Request]
    options: PlanOptions
    rounding: RoundingOptions
    scoring: Place
    bench: Bench
    results: Results


def trace(sweeper: Sweeper, axis: Axis, out: Path, say: Callable[[str], None]) -> Pareto:
    """Plan, write and measure every target; write plans, files, `pareto.json` and `pareto.csv` into `out`.

    Parameters
    ----------
    sweeper : Sweeper
    axis : Axis
    out : Path
        Existing folder.
    say : callable
        Called with one line a point.
    """
    source = sweeper.source
    nominal = roll_file(source.path, sweeper.bench, keep_other=False)
    joint = Joint(sweeper.scoring)
    requests: dict[TierSet, Request] = {}
    points: list[Point] = []
    for tiers, options, suffix in axis.series(sweeper.options):
        request = requests.get(tiers) or sweeper.request_of(tiers)
        for compression in axis.compressions:
            blank = Point(
                name=f"{source.path.stem}.C{compression:g}{suffix}",
                compression_asked=compression,
                tiers=",".join(tiers.tiers),
                p_fp32=options.protected_share,
                gamma_min=options.gamma_min,
                objective=options.objective.value,
                solver=options.solver,
                allocate_s=0.0,
            )
            start = time.perf_counter()
            try:
                plan, request = planned(
                    request,
                    int(request.size.source_bytes / compression),
                    options,
                    sweeper.scoring,
                    sweeper.rounding,
                    sweeper.results,
                    say,
                )
            except InfeasibleError as error:
                say(f"{blank.name}: {error}")
                points.append(blank.model_copy(update={"allocate_s": time.perf_counter() - start}))
                continue
            require_served(plan, source, plan.target)
            spent_s = time.perf_counter() - start
            rounded, codes, together = _rounded(sweeper, plan, request, options, joint, say)
            point = _written(sweeper, rounded, codes, nominal, out / f"{blank.name}.onnx", blank)
            found = {"drift_predicted": plan.predicted_drift, "drift_joint": together, "allocate_s": spent_s}
            points.append(point.model_copy(update=found))
            drift = _text(point.drift_measured)
            say(f"{point.name}: {point.n_bytes} bytes, drift {drift}, allocated in {spent_s:.2f} s")
        requests[tiers] = request
    pareto = pareto_of(source.sha256, points)
    write_text(out / "pareto.json", pareto.model_dump_json(indent=2) + "\n")
    write_text(out / "pareto.csv", pareto.to_csv())
    return pareto


def _rounded(
    sweeper: Sweeper,
    plan: Plan,
    request: Request,
    options: PlanOptions,
    joint: Joint,
    say: Callable[[str], None],
) -> tuple[Plan, dict[str, Codes], float | None]:
    """Return the plan with its integers chosen, their codes, and the joint drift on the scoring contexts."""
    if sweeper.rounding.method not in DATA_AWARE:
        return plan, {}, joint.drift(plan.assignments)
    refining = RefineOptions(repair_rounds=0, rounding=sweeper.rounding)
    refined = refine(plan, request, sweeper.scoring, options, refining, say)
    return refined.plan, refined.codes, refined.plan.joint_drift


def _written(
    sweeper: Sweeper, plan: Plan, codes: dict[str, Codes], nominal: Trajectory, file: Path, blank: Point
) -> Point:
    """Write the file of a plan, roll it out, and return its point."""
    bench = sweeper.bench
    emit(sweeper.source.lifted, plan, file, codes)
    plan_file = file.with_name(f"{blank.name}.plan.json")
    write_text(plan_file, plan.to_json())
    if codes:
        write_codes(codes_path(plan_file), codes)
    n_bytes = file_facts(file).n_bytes
    facts = plan.solver
    update: dict[str, object] = {
        "compression": sweeper.source.facts.n_bytes / n_bytes,
        "n_bytes": n_bytes,
        "unspent_bytes": None if facts is None else facts.budget_bytes - n_bytes,
        "found_by": None if facts is None else facts.solver,
        "saturated": facts is not None and facts.saturated,
    }
    try:
        ours = roll_file(file, bench, keep_other=False)
    except NonFiniteError:
        return blank.model_copy(update=update)
    compared = (nominal.outputs, ours.outputs, bench.spec, bench.contexts)
    truth = measure_truth(*compared, nominal.time_after)
    update["drift_measured"] = measure_drift(*compared, bench.sigma, nominal.time_after).total
    update["degradation"] = max((e.degradation for e in truth.values()), default=None)
    return blank.model_copy(update=update)


def _text(drift: float | None) -> str:
    return "not finite" if drift is None else f"{drift:.4g}"
