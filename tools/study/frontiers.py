"""The frontiers of the study, and what its sections take from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from tools.study.protocols import FULL_TABLE
from tools.study.runs import Runs
from tqs_onnx.jobs.matched import UNIFORM
from tqs_onnx.jobs.pareto import Pareto, Point, read_pareto
from tqs_passes.plan.plan import Plan, read_plan

FRONTIERS = {
    "timesfm_mini": ("timesfm.W2", "timesfm.W3", "timesfm.W4"),
    "aurora_mini": ("aurora.W2",),
    "pangu_mini": ("pangu.paper",),
}
FRONTIER_RUNS = tuple(run for runs in FRONTIERS.values() for run in runs)
SCORES = {
    "timesfm_mini": f"timesfm_mini.{FULL_TABLE}",
    "aurora_mini": "aurora.score",
    "pangu_mini": "pangu.score",
}


def pareto(runs: Runs, run: str) -> Pareto:
    """Return the frontier of a run."""
    return read_pareto(runs.folder / run / "pareto.json")


def frontier(runs: Runs, model: str) -> Pareto:
    """Return the points of all sweeps of a model with baselines."""
    found = [pareto(runs, run) for run in FRONTIERS[model]]
    return found[0].model_copy(update={"points": tuple(p for f in found for p in f.points)})


def plan_of(runs: Runs, run: str, point: Point) -> Plan:
    """Return the plan of a point."""
    return read_plan(runs.folder / run / f"{point.name}.plan.json")


def ours(found: Pareto) -> list[Point]:
    """Return the points that are not baselines and have a file."""
    return [p for p in found.points if p.objective != UNIFORM and p.n_bytes is not None]


def uniform(found: Pareto, bits: int) -> dict[str, Point]:
    """Return the baselines of one width, by method."""
    return {p.solver: p for p in found.points if p.objective == UNIFORM and p.tiers.startswith(f"INT{bits},")}


def geometric(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(mean(math.log(v) for v in values))
