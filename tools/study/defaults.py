"""Writes models/zoo/DEFAULTS.md: files of `tqs quantize` without options beside the best uniform file of their bytes.

Ours: `--compression 2, 4, 6, 8`, nothing else. Theirs: every matrix at the largest width (FP16, or 8 to 1 bits) whose
file has at most the bytes asked of ours, the rest FP16, by RTN, GPTQ, GPTAQ and tuned QEP, each on least-squares scales
and on ours. Both are judged in a stock session on contexts that chose nothing. Models: the zoo, three of other people,
and three trained for this (`tools.study.spot`, which needs PyTorch); the two grid models without any data too.

    python -m tools.study.spot --out RUNS/spot
    python -m tools.study.defaults --runs RUNS --out models/zoo/DEFAULTS.md [--model pangu_mini]

Figures are kept row by row in RUNS.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.study.markdown import markdown
from tools.study.real_cases import RECURRENT, case_of
from tools.study.scored import Study
from tools.study.spot import NAMES, TABLE
from tools.study.zoo import TABLES, ZOO, data_root
from tqs_onnx.allocation.bare_plan import bare_plan
from tqs_onnx.allocation.budget import Budget
from tqs_onnx.allocation.request import menus_of, prepared_source, settled_serving, size_of
from tqs_onnx.allocation.uniform_plan import uniform_choices
from tqs_onnx.emission import emit
from tqs_onnx.inputs.bundled import demo_files
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.jobs import stages
from tqs_onnx.jobs.baseline import unscored_uniform_plan
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.quantize import Job, quantize
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.refinement.prediction import ratio_interval
from tqs_onnx.rollout.distance import n_space, ruler_for
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.assign import RoundingOptions, round_plan
from tqs_onnx.rounding.tune import qep_settings
from tqs_onnx.verification.evaluate import measure_drift
from tqs_passes.errors import InfeasibleError
from tqs_passes.plan.plan import Plan
from tqs_passes.tier import Tier

COMPRESSIONS = (2, 4, 6, 8)
OTHERS = ("earthpulse", "mvts_transformer", "rul")
"""Models of other people, in `$TQS_DATA/models`."""
GRIDS = ("pangu_mini", "aurora_mini")
NO_DATA = ", no data"
MODELS = (
    *("timesfm_mini", "lorenz96", *GRIDS, *(f"{g}{NO_DATA}" for g in GRIDS), *RECURRENT, *OTHERS, *NAMES),
)
THREADS = 1
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the two kinds of data it gets: ours, and that of uniform files."""

    model: Path
    data: DataOptions
    theirs: DataOptions


def grid(name: str, runs: Path) -> Case:
    """Return a grid model: scored on months of validation, or on made contexts; judged on months of the test year."""
    model, study = name.removesuffix(NO_DATA), Study(runs / "contexts", THREADS)
    (scoring, most), (judging, _) = (study.contexts(model, kind) for kind in ("early", "test"))
    folder = ZOO / model
    real = DataOptions(folder / "rollout.toml", scoring, judging, max_contexts=most, max_eval_contexts=most)
    ours = replace(real, contexts="made", max_contexts=None) if name != model else real
    return Case(folder / "model.onnx", ours, real)


def found(name: str, runs: Path) -> Case | None:
    """Return the case of a name; None if its model or its data are missing."""
    if name == "lorenz96":
        files = demo_files()
        data = DataOptions(files.rollout, files.contexts, files.evaluation)
        return Case(files.model, data, data)
    if name == "timesfm_mini":
        folder, table = ZOO / name, data_root() / TABLES["ETTh1"][0]
        data = DataOptions(folder / "rollout.toml", table, max_contexts=42)
        return Case(folder / "model.onnx", data, data) if table.exists() else None
    if name.removesuffix(NO_DATA) in GRIDS:
        return grid(name, runs)
    if name in NAMES:
        model, table = runs / "spot" / f"{name}.onnx", data_root() / TABLES[TABLE][0]
        data = DataOptions(model.with_name("rollout.toml"), table, max_contexts=16)
        return Case(model, data, data) if model.exists() else None
    case = case_of(name, runs / "real")
    if case is None:
        return None
    data = replace(case.data, calibration=None)  # no option but the compression
    return Case(case.source, data, data)


class Judge:
    """Rolls files out on the evaluation contexts of a case."""

    def __init__(self, bed: Testbed, model: Path) -> None:
        self._bed = bed
        self._nominal = bed.roll_file(model, keep_other=False)

    def judged(self, file: Path) -> tuple[float, NDArray[np.float64]]:
        """Return the drift of a file, and its squared drift by context."""
        bed, nominal = self._bed, self._nominal
        ours = bed.roll_file(file, keep_other=False)
        args = (nominal.outputs, ours.outputs, bed.spec, bed.contexts, bed.sigma, nominal.time_after)
        squares = ruler_for(nominal.outputs, bed.spec, bed.contexts, bed.sigma).squares(
            ours.outputs, nominal.outputs
        )
        spaces = n_space(nominal.outputs, bed.spec, bed.contexts)
        energies = np.mean([s.mean(axis=1) / spaces[v] for v, s in squares.items()], axis=0)
        return measure_drift(*args).total, energies

    def ratio(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float]:
        """Return the interval of the ratio of two drifts."""
        return ratio_interval(self._bed.contexts, ours, theirs)


def half(source: Source) -> Plan:
    """Return the plan that stores every weight as FP16."""
    profile = QuantizeOptions().profile
    serving = settled_serving(source, QuantizeOptions().serving.under(profile))
    ready = prepared_source(source, serving)
    chosen = uniform_choices(menus_of(source, ready, profile, (Tier.FP16,), serving, "mse"), 16)
    return bare_plan(source, chosen, size_of(source, ready), profile, serving)


def uniform_of(case: Case, budget: int) -> Plan | None:
    """Return the uniform plan of the most bits whose file has at most so many bytes; None if there is none."""
    source, options = open_source(case.model), QuantizeOptions()
    plan = half(source)
    for bits in range(8, 0, -1):
        if plan.n_bytes <= budget:
            return plan
        plan = unscored_uniform_plan(source, bits, options.profile, options.serving)
    return plan if plan.n_bytes <= budget else None


def uniform_files(case: Case, plan: Plan, sigma: dict[str, float], folder: Path) -> dict[str, Path]:
    """Write the uniform files of one width, by the name of their rounding."""
    source = open_source(case.model)
    if not any(a.tier.is_integer for a in plan.assignments):
        emit(source.lifted, plan, folder / "half.onnx")
        return {"FP16": folder / "half.onnx"}
    run = RunOptions("cpu", threads=THREADS)
    data = stages.read(case.theirs, source, run)
    bed = stages.bed_of(source, data, run).scaled(sigma)
    instruments = instruments_on(bed)
    files: dict[str, Path] = {}
    for scales in ("mse", "unbiased"):
        ways = [RoundingOptions(scales), *(RoundingOptions(m, scales) for m in ("gptq", "gptaq"))]
        settings = qep_settings(RoundingOptions("qep", scales))
        ways.append(instruments.tuner.best(plan, settings)[0])
        for way in ways:
            assigned = round_plan(plan, instruments.calibration, way)
            bits = min(a.tier.bits for a in plan.assignments)
            title = f"{bits} bits, {way.title}"
            files[title] = folder / f"uniform.{len(files)}.onnx"
            emit(source.lifted, assigned.plan, files[title], assigned.codes)
    bed.close()
    return files


def row_of(name: str, case: Case, compression: int, folder: Path) -> Row:
    """Measure one budget of one model; where no file is that small, the smallest."""
    options = QuantizeOptions(Budget(compression), run=RunOptions("cpu", threads=THREADS))
    try:
        outcome = quantize(Job(case.model, case.data, folder / "ours", options, True))
    except InfeasibleError as error:
        options = replace(options, budget=Budget(max_bytes=error.smallest_bytes))
        outcome = quantize(Job(case.model, case.data, folder / "ours", options, True))
    asked = options.budget.max_bytes or outcome.source.facts.n_bytes // compression
    judge = Judge(outcome.bed, outcome.source.path)
    drift, energies = judge.judged(outcome.emitted)
    plan = outcome.plan
    row: Row = {
        "model": name,
        "compression": compression,
        "bytes": outcome.verification.bytes_out,
        "drift": drift,
        "predicted": plan.predicted_drift,
        "chosen": next((t.name for t in plan.tried if t.chosen), None),
        "wall_s": outcome.wall_s,
    }
    uniform = uniform_of(case, asked)
    if uniform is None:
        return row | {"best": "no uniform file is that small"}
    files = uniform_files(case, uniform, outcome.scores.sigma, folder)
    theirs = {title: judge.judged(file) for title, file in files.items()}
    best = min(theirs, key=lambda title: theirs[title][0])
    low, high = judge.ratio(energies, theirs[best][1])
    row |= {"best": best, "best_bytes": files[best].stat().st_size, "best_drift": theirs[best][0]}
    return row | {"low": low, "high": high}


def rows_of(name: str, runs: Path) -> list[Row] | None:
    """Return the rows of a model, from `runs` where they were measured before; None if something is missing."""
    case: Case | None = None
    rows: list[Row] = []
    for compression in COMPRESSIONS:
        kept = runs / "rows" / f"{name}.{compression}.json"
        if not kept.exists():
            case = case or found(name, runs)
            if case is None:
                return None
            folder = runs / name
            folder.mkdir(parents=True, exist_ok=True)
            row = row_of(name, case, compression, folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
            print(row, file=sys.stderr, flush=True)
        rows.append(json.loads(kept.read_text(encoding="utf-8")))
    return rows


def line_of(row: Row) -> list[str]:
    """Return the cells of a row."""
    compared = "best_drift" in row
    ratio = (
        f"{row['drift'] / row['best_drift']:.2f} ({row['low']:.2f} … {row['high']:.2f})" if compared else "–"
    )
    held = "–" if not row["predicted"] else f"{row['drift'] / row['predicted']:.2f}"
    return [
        row["model"],
        f"{row['compression']}",
        f"{row['bytes']:,}",
        f"{row['drift']:.3g}",
        held,
        row["chosen"] or "–",
        row["best"],
        f"{row['best_bytes']:,}" if compared else "–",
        f"{row['best_drift']:.3g}" if compared else "–",
        ratio,
    ]


def _count(flags: list[bool]) -> str:
    return f"{sum(flags)} of {len(flags)}"


def summary(rows: list[Row]) -> str:
    """Return in how many rows our files drift less, for each compression, and how close the predictions are."""
    lines: list[str] = []
    for compression in COMPRESSIONS:
        held = [r for r in rows if r["compression"] == compression and "best_drift" in r]
        if not held:
            continue
        ratios = [r["drift"] / r["best_drift"] for r in held]
        moved = [r for r in ratios if r > 0]  # a file may equal FP32
        mean = f"{math.exp(float(np.mean(np.log(moved)))):.2f}" if moved else "–"
        lines.append(
            f"- C = {compression}: less drift in {_count([r < 1 for r in ratios])}, not more within the interval in "
            f"{_count([r['low'] <= 1 for r in held])}, surely less in {_count([r['high'] < 1 for r in held])}; "
            f"geometric mean of the ratio {mean}."
        )
    known = [(r["model"], r["drift"] / r["predicted"]) for r in rows if r["predicted"]]
    for kind, flag in (("real contexts", False), ("made contexts", True)):
        values = [v for name, v in known if name.endswith(NO_DATA) == flag]
        if values:
            shares = [f"within {h:g} in {sum(1 / h <= v <= h for v in values)}" for h in (1.3, 1.5, 2.0)]
            lines.append(f"- Measured over predicted drift, {kind}: {', '.join(shares)} of {len(values)}.")
    return "\n".join(lines) + "\n"


INTRO = """# Default settings beside the best uniform file

Made by `python -m tools.study.defaults --runs RUNS --out models/zoo/DEFAULTS.md`; no figure is typed in by hand.
Ours is `tqs quantize MODEL --compression C` with the contexts named in `tools/study/defaults.py` and no other option.
*m/p*: measured over predicted drift. The uniform file is the best, on the evaluation contexts themselves, of eight:
RTN, GPTQ, GPTAQ and tuned QEP, on least-squares scales and on ours, at the largest width (FP16, or 8 to 1 bits) that
fits the bytes asked of ours.
The ratio is ours over it, with the interval of 90 % over the evaluation contexts. Grid models *no data*: ours has made
contexts only, the uniform files have the real ones. Where the smallest file is above size / C, it stands in its place.

"""


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", action="append", choices=MODELS, help="May be repeated; default: all.")
    given = parser.parse_args()
    by_model = {name: rows_of(name, given.runs) for name in given.model or MODELS}
    rows = [row for found in by_model.values() if found is not None for row in found]
    missing = [name for name in MODELS if by_model.get(name) is None]
    head = [
        "model",
        "C",
        "bytes",
        "drift",
        "m/p",
        "chosen",
        "best uniform",
        "its bytes",
        "its drift",
        "ratio",
    ]
    text = INTRO + summary(rows) + "\n" + markdown(head, [line_of(row) for row in rows])
    text += f"\nNot measured: {', '.join(missing)}.\n" if missing else ""
    given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
