"""Measures what a point of a frontier costs, in CPU seconds, for every method in one run.

A method writes and rolls out all its points from sessions of its own; what its points share (menus, captured inputs,
tuning) is spread over them. Uniform methods have one point for each width. Ours need scores too: they are measured
once, and `with scoring` spreads them over the points of one method. Usage::

    python tools/bench_frontier.py [--quick] [--model timesfm_mini --model demo --model transformer] [--points 10]

`timesfm_mini` reads ETTh1 from `$TQS_DATA` or ../shared/data, and made contexts without it. `transformer` has 19
million random weights. `--quick` has a tiny transformer, two points and three methods.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from bench_sweep import REPLACE, TOKENS, transformer

from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.inputs.bundled import demo_files
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.jobs import stages
from tqs_onnx.jobs.axis import Axis
from tqs_onnx.jobs.frontier import Sweeper
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.pareto import Point
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rounding.assign import METHODS, Method, RoundingOptions
from tqs_onnx.scoring.measure.store import Results
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.scores import Scores

ROOT = Path(__file__).resolve().parents[1]
UNIFORM = ("rtn", "gptq", "gptaq", "qep")
OURS: dict[str, tuple[Objective, Method]] = {
    "energy": (Objective.ENERGY, "unbiased"),
    "measured": (Objective.MEASURED, "unbiased"),
    "energy + qep": (Objective.ENERGY, "qep"),
    "measured + qep": (Objective.MEASURED, "qep"),
}
COARSEST, FINEST = 16.0, 2.0
"""Compressions between which the points lie, evenly in their logarithm, unless the model cannot be made so small."""


@dataclass(frozen=True)
class Given:
    """A model, its data, and the widest range of compressions that it allows."""

    model: Path
    data: DataOptions
    coarsest: float = COARSEST


@dataclass(frozen=True)
class Cost:
    """What the points of one method took.

    Parameters
    ----------
    n_points : int
    cpu_s : float
        Of all points together, and of what they share.
    scoring_s : float
        Of the scores that the points need.
    """

    n_points: int
    cpu_s: float
    scoring_s: float = 0.0

    @property
    def per_point(self) -> float:
        """CPU seconds of a point."""
        return self.cpu_s / self.n_points

    @property
    def with_scoring(self) -> float:
        """CPU seconds of a point, with its share of the scores."""
        return (self.cpu_s + self.scoring_s) / self.n_points


def timesfm_mini(folder: Path) -> Given:
    """Return the zoo's decoder-only transformer with 14 scoring contexts."""
    zoo = ROOT / "models" / "zoo" / "timesfm_mini"
    data = Path(os.environ.get("TQS_DATA", ROOT.parent / "shared" / "data")) / "ETT-small" / "ETTh1.csv.gz"
    contexts = data if data.is_file() else "made:14"
    return Given(
        zoo / "model.onnx", DataOptions(rollout=zoo / "rollout.toml", contexts=contexts, max_contexts=14)
    )


def demo(folder: Path) -> Given:
    """Return the bundled model of the Lorenz '96 system with its contexts."""
    files = demo_files()
    return Given(files.model, DataOptions(files.rollout, files.contexts, files.evaluation), 8.0)


def random_transformer(
    folder: Path, width: int, hidden: int, layers: int, contexts: int, coarsest: float = COARSEST
) -> Given:
    """Return a transformer with random weights and states."""
    model, rollout, states = folder / "transformer.onnx", folder / "rollout.toml", folder / "states.npz"
    onnx.save(transformer(width, hidden, layers), model)
    rollout.write_text(REPLACE.format(steps=3))
    drawn = 0.5 * np.random.default_rng(1).standard_normal((contexts, TOKENS, width)).astype(np.float32)
    np.savez(states, x=drawn)
    evaluation = folder / "evaluation.npz"
    np.savez(evaluation, x=drawn[:2] + np.float32(0.1))
    return Given(model, DataOptions(rollout, states, evaluation), coarsest)


MODELS: dict[str, Callable[[Path], Given]] = {
    "timesfm_mini": timesfm_mini,
    "demo": demo,
    "transformer": lambda folder: random_transformer(folder, 512, 2048, 6, 8),
}


def costs(given: Given, methods: Sequence[str], points: int, folder: Path) -> Iterator[tuple[str, Cost]]:
    """Yield every method and what its points took."""
    run = RunOptions("cpu", None, 1)
    scores, scoring_s = _scored(given, run)
    compressions = tuple(float(f"{c:.3g}") for c in np.geomspace(FINEST, given.coarsest, points))
    widths = tuple(range(8, 0, -1))[: min(points, 8)]
    for method in methods:
        options = QuantizeOptions(run=run)
        axis, n = Axis(compressions), points
        if method in UNIFORM:
            uniform: Method = next(m for m in METHODS if m == method)
            axis, n = Axis((), baselines=(uniform,), baseline_bits=widths), len(widths)
        else:
            aim, rounding = OURS[method]
            refine = replace(options.refine, rounding=RoundingOptions(rounding))
            options = replace(options, plan=PlanOptions(objective=aim), refine=refine)
        out = folder / method.replace(" ", "")
        out.mkdir(parents=True)
        start = time.process_time()
        made = list(itertools.islice(_points(given, scores, options, axis, out), n))
        cpu_s = time.process_time() - start
        if any(p.n_bytes is None for p in made):
            raise SystemExit(f"{method}: a point has no file; give fewer points")
        yield method, Cost(len(made), cpu_s, 0.0 if method in UNIFORM else scoring_s)


def _scored(given: Given, run: RunOptions) -> tuple[Scores, float]:
    start = time.process_time()
    source = stages.opened(given.model, run)
    data = stages.read(given.data, source, run)
    scores = stages.scored(source, stages.bed_of(source, data, run), ScoreOptions(), None)
    return scores, time.process_time() - start


def _points(given: Given, scores: Scores, options: QuantizeOptions, axis: Axis, out: Path) -> Iterator[Point]:
    source = stages.opened(given.model, options.run)
    data = stages.read(given.data, source, options.run)
    with Results(out / "sweep.sqlite") as results:
        bed = stages.bed_of(source, data, options.run, scores)
        yield from Sweeper(source, {"": scores}, options, bed, data, results).points(axis, out)
        bed.close()


def table(found: dict[str, Cost]) -> str:
    """Return the costs as a Markdown table, with their ratios to GPTQ and to tuned QEP where those were measured."""
    lines = ["| method | points | a point (s) | / GPTQ | / QEP | with scoring (s) |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for method, cost in found.items():
        ratios = [
            f"{cost.per_point / found[other].per_point:.2f}" if other in found else "–"
            for other in ("gptq", "qep")
        ]
        scoring = f"{cost.with_scoring:.2f}" if cost.scoring_s else "–"
        name = f"uniform {method}" if method in UNIFORM else method
        cells = [name, str(cost.n_points), f"{cost.per_point:.2f}", *ratios, scoring]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--model", action="append", choices=list(MODELS), help="May be repeated; default: all."
    )
    parser.add_argument("--method", action="append", choices=[*UNIFORM, *OURS], help="Likewise.")
    parser.add_argument("--points", type=int, default=10)
    given = parser.parse_args(arguments)
    models = {name: MODELS[name] for name in given.model or MODELS}
    methods, points = given.method or [*UNIFORM, *OURS], given.points
    if given.quick:
        models = {"tiny": lambda folder: random_transformer(folder, 16, 32, 1, 4, 2.4)}
        methods, points = given.method or ["gptq", "qep", "measured + qep"], 2
    for name, make in models.items():
        with tempfile.TemporaryDirectory(prefix="tqs-bench-") as folder:
            print(f"## {name}\n", flush=True)
            found: dict[str, Cost] = {}
            for method, cost in costs(make(Path(folder)), methods, points, Path(folder)):
                found[method] = cost
                print(f"{method}: {cost.per_point:.2f} CPU seconds a point", flush=True)
            scoring_s = max((cost.scoring_s for cost in found.values()), default=0.0)
            print(f"\n{table(found)}\n\nscoring, once: {scoring_s:.1f} CPU seconds\n", flush=True)


if __name__ == "__main__":
    main()
