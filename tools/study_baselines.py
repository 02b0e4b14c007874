"""Drift at equal file bytes: uniform rtn, mse, gptq, gptaq and tuned qep against energy, free and with data.

For each table of a model and each width the budget is the size of the uniform file. `energy` allocates with the errors
of MSE rounding; `energy + gptq` and `energy + qep` then round the very tiers it chose with data. Calibration and tuning
see scoring contexts (validation rows) only, drift is measured on the test rows. `measured` allocates with the rollout's
own response to each matrix at each width, rounded by GPTQ with all others FP32. Wins count variables on which a method
has less drift than the best of the uniform files.

Usage: ``python tools/study_baselines.py --table ETT-small/ETTh1.csv.gz`` from the repository root; the tables lie under
``$TQS_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqs_onnx.allocate.costing import PlanOptions, Request
from tqs_onnx.allocate.objective import Objective
from tqs_onnx.allocate.planning import plan_within
from tqs_onnx.allocate.uniform import uniform_plan
from tqs_onnx.data import Data, DataFiles, read_data
from tqs_onnx.emit import emit
from tqs_onnx.joint import Place, where_of
from tqs_onnx.measured import Responder, plan_measured
from tqs_onnx.request import request_for
from tqs_onnx.rollout.trajectory import Trajectory
from tqs_onnx.rounding.assign import DATA_AWARE, Assigned, Method, RoundingOptions, round_plan
from tqs_onnx.rounding.calibrate import Calibration
from tqs_onnx.rounding.tune import Tuner
from tqs_onnx.score.results import Results
from tqs_onnx.score.sweep import SweepOptions, sweep
from tqs_onnx.source import Source, open_source
from tqs_onnx.verify.evaluate import Drift, measure_drift
from tqs_onnx.verify.verify import Bench, roll_file
from tqs_passes.plan import Plan
from tqs_passes.tier import DEFAULT_TIERS

ROOT = Path(__file__).resolve().parents[1]
UNIFORM: tuple[Method, ...] = ("rtn", "mse", "gptq", "gptaq", "qep")


@dataclass(frozen=True, slots=True)
class Table:
    """One table, ready to be measured on."""

    source: Source
    data: Data
    request: Request
    bench: Bench
    nominal: Trajectory
    calibration: Calibration
    tuner: Tuner
    responder: Responder


def opened(model: Path, path: Path, n_contexts: int, threads: int) -> Table:
    """Score a model on a table and get everything ready."""
    source = open_source(model / "model.onnx")
    files = DataFiles(model / "rollout.toml", path, max_contexts=n_contexts)
    data = read_data(files, source)
    scores = sweep(
        source.lifted,
        source.survey,
        data.spec,
        data.scoring,
        source.sha256,
        SweepOptions(threads=threads),
    )
    bench = Bench(data.spec, data.evaluation, scores.sigma, threads=threads)
    place = Place(source.lifted, source.survey, data.spec, data.scoring, scores.sigma, threads=threads)
    where = where_of(place)
    return Table(
        source,
        data,
        request_for(source, scores, "exact", DEFAULT_TIERS),
        bench,
        roll_file(source.path, bench, keep_other=False),
        where.calibration(),
        Tuner(where),
        Responder(place, RoundingOptions("gptq"), source.sha256, Results(None)),
    )


def measured(table: Table, assigned: Assigned, folder: Path) -> tuple[int, Drift]:
    """Write a file and roll it out on the test rows."""
    file = folder / "candidate.onnx"
    emit(table.source.lifted, assigned.plan, file, assigned.codes)
    ours = roll_file(file, table.bench, keep_other=False)
    drift = measure_drift(
        table.nominal.outputs,
        ours.outputs,
        table.data.spec,
        table.data.evaluation,
        table.bench.sigma,
        table.nominal.time_after,
    )
    return file.stat().st_size, drift


def rounded(table: Table, plan: Plan, method: Method, say: Callable[[str], None]) -> Assigned:
    """Round a plan; QEP with the best setting on held-out scoring contexts."""
    options = RoundingOptions(method)
    if method == "qep":
        options, _ = table.tuner.tuned(plan, options, lambda line: None)
        say(f"  qep: damping {options.qep_damp:g}, strength {options.qep_strength:g}")
    return round_plan(plan, table.calibration, options)


def study(table: Table, bits: int, say: Callable[[str], None]) -> None:
    """Print the rows of one width."""
    uniform = uniform_plan(table.request, bits)
    free = plan_within(table.request, uniform.n_bytes, PlanOptions())
    jobs: list[tuple[str, Plan, Method]] = [(f"uniform {m}", uniform, m) for m in UNIFORM]
    jobs += [("energy", free, "mse")]
    jobs += [(f"energy + {m}", free, m) for m in ("gptq", "qep")]
    options = PlanOptions(objective=Objective.MEASURED)
    found = plan_measured(table.request, uniform.n_bytes, options, table.responder, say)
    jobs += [(f"measured + {m}", found.plan, m) for m in DATA_AWARE]
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="tqs-study-") as folder:
        for name, plan, method in jobs:
            start = time.perf_counter()
            n_bytes, drift = measured(table, rounded(table, plan, method, say), Path(folder))
            wins = ""
            if plan is uniform:
                for variable, value in drift.per_variable.items():
                    best[variable] = min(value, best.get(variable, value))
            else:
                won = sum(value < best[v] for v, value in drift.per_variable.items())
                wins = f"{won}/{len(best)}"
            seconds = time.perf_counter() - start
            say(f"| W{bits} | {name} | {n_bytes} | {drift.total:.4f} | {wins} | {seconds:.0f} |")


def main() -> None:
    """Print one table of figures for each table of data, as Markdown."""
    parser = argparse.ArgumentParser(description="Drift at equal bytes, uniform against mixed precision.")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "zoo" / "timesfm_mini")
    parser.add_argument("--table", action="append", required=True, help="Path under the data folder.")
    parser.add_argument("--bits", type=int, action="append", help="Widths [default: 2 3 4].")
    parser.add_argument("--max-contexts", type=int, default=42, help="Scoring contexts.")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    data = Path(os.environ.get("TQS_DATA") or ROOT.parent / "shared" / "data")

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    for name in options.table:
        table = opened(options.model, data / name, options.max_contexts, options.threads)
        say(
            f"\n{name}: {table.data.scoring.n_contexts} scoring, {table.data.evaluation.n_contexts} test contexts\n"
        )
        say("| budget | method | bytes | drift | wins | s |\n|---|---|---:|---:|---:|---:|")
        for bits in options.bits or (2, 3, 4):
            study(table, bits, say)


if __name__ == "__main__":
    main()
