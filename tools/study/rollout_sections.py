"""Sections on long rollouts and on curvature: Table 8, Figures 4, 5, 7 and 8, A.12."""

from __future__ import annotations

from statistics import mean

from tools.study.markdown import markdown, shown
from tools.study.protocols import LONG_BASELINES
from tools.study.runs import Runs
from tools.study.section import Claim, Section
from tqs_onnx.analysis.curvature import curvature_table, state_table, weight_curvature_table
from tqs_onnx.analysis.growth import growth_of, growth_table
from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.jobs.curvature import read_curvature
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_onnx.verification.manifest import read_manifest
from tqs_onnx.verification.verify import Verification

METHODS = LONG_BASELINES
PROBES = ("quant", "gauss")
CURVED = {
    "lorenz96": ("lorenz.score", "lorenz.curvature"),
    "aurora_mini": ("aurora.score", "aurora.curvature"),
}


def verified(runs: Runs) -> dict[str, Verification]:
    """Return the verified files of aurora_mini, by name."""
    prefix = "aurora."
    found = sorted(p.parent.name for p in runs.folder.glob(f"{prefix}*/manifest.json"))
    return {
        name.removeprefix(prefix): read_manifest(runs.folder / name / "manifest.json").verification
        for name in found
    }


def growth(runs: Runs, known: dict[str, Verification]) -> Section:
    """Table 8 and Figure 7."""
    chosen = [f"W2.{m}" for m in METHODS] + [f"W2.{p}" for p in PROBES]
    held = {name: known[name] for name in chosen if name in known}
    table = growth_table(held)
    variables = list(next(iter(held.values())).errors)
    rows: list[list[str]] = []
    excess: dict[str, list[float]] = {}
    for name, v in {"FP32": None, **held}.items():
        cells: list[str] = []
        for variable in variables:
            errors = (v or next(iter(held.values()))).errors[variable]
            curve = errors.file if v is not None else errors.fp32
            rate = growth_of(curve.mae_per_step) if curve is not None else None
            base = growth_of(errors.fp32.mae_per_step) if errors.fp32 is not None else None
            cells.append("–" if rate is None else f"{4 * rate.rate:+.4f}")
            if v is not None and rate is not None and base is not None:
                excess.setdefault(name, []).append(abs(4 * (rate.rate - base.rate)))
        rows.append([name, *cells])
    far = {name: mean(values) for name, values in excess.items()}
    ours = min(far[f"W2.{p}"] for p in PROBES if f"W2.{p}" in far)
    theirs = min(far[f"W2.{m}"] for m in METHODS if f"W2.{m}" in far)
    return Section(
        "Table 8 and Figure 7: λ_eff over 30 days",
        "aurora_mini, slope of log MAE a day (four steps) over 120 steps, at the bytes of W2. Paper: ±.002 a day for "
        "all methods. Errors against the truth soon saturate, so that slopes over 30 days tell how they wander at "
        "that level; the slopes in the linear range, and of the files against FP32, are in the data."
        f"\n\n{markdown(['file', *variables], rows)}",
        ("aurora.W2", *(f"aurora.{n}" for n in held)),
        (("table8_growth", table),),
        (
            Claim(
                "TQS changes λ_eff less than the baselines do",
                f"mean distance to FP32's, a day: TQS {ours:.4f}, best baseline {theirs:.4f}",
                ours < theirs,
            ),
        ),
    )


def bands(runs: Runs, known: dict[str, Verification]) -> Section:
    """Figure 8."""
    rows: list[tuple[Cell, ...]] = []
    overlaps: list[bool] = []
    for name, v in known.items():
        if name.removeprefix("W2.") in METHODS:
            continue
        for variable, e in v.errors.items():
            if e.file is None or e.fp32 is None:
                continue
            inside = e.degradation_low is not None and e.degradation_high is not None
            overlap = e.degradation_low <= 0.0 <= e.degradation_high if inside else None  # type: ignore[operator]
            overlaps += [] if overlap is None else [overlap]
            rows.append(
                (name, v.compression, variable, e.unit, e.fp32.mae, e.file.mae, e.degradation, e.degradation_low,
                 e.degradation_high, overlap)
            )  # fmt: skip
    columns = ("file", "times smaller", "variable", "unit", "MAE FP32", "MAE", "degradation %", "low", "high",
               "interval holds 0")  # fmt: skip
    table = Table("bands", "Degradation with 95 % intervals", columns, tuple(rows))
    return Section(
        "Figure 8: MAE by compression, with intervals",
        "aurora_mini, 30 days, the paper's objective; 95 % percentile bootstraps of 1,000 resamples over contexts. "
        f"Paper: the bands of all nine variables overlap FP32's at C = 8 to 32.\n\n{shown(table)}",
        tuple(f"aurora.{n}" for n in known if n.removeprefix("W2.") not in METHODS),
        (("figure8_bands", table),),
        (
            Claim(
                "up to C = 32 the file is indistinguishable from FP32 over 30 days",
                f"the interval of the degradation holds 0 for {sum(overlaps)} of {len(overlaps)} variables and files",
                bool(overlaps) and all(overlaps),
            ),
        ),
    )


def curvature(runs: Runs) -> Section:
    """Figures 4 and 5, A.12.1 and A.13."""
    scores: dict[str, Scores] = {}
    found = {}
    for model, (scored, run) in CURVED.items():
        if not (runs.folder / run / "curvature.json").is_file():
            continue
        for name, file in (("quant", "scores.json"), ("gauss", "scores.gauss.json")):
            scores[f"{model} ({name})"] = read_scores(runs.folder / scored / file)
            found[f"{model} ({name})"] = read_curvature(runs.folder / run / "curvature.json")
    table, points = curvature_table(scores, found), weight_curvature_table(scores, found)
    state = state_table(scores, found)
    hessian = [float(r[3] or 0.0) for r in table.rows if "Hessian" in str(r[1])]
    return Section(
        "Figures 4 and 5, A.12: curvature against γ, and the growth of the state",
        "Paper, Aurora: tr H against γ_task of quant ρ = .47, against both gauss scores −.12; Fisher against gauss "
        f".38; H_Δ/H .30 (n = 9).\n\n{shown(table)}\n{shown(state)}",
        tuple(run for pair in CURVED.values() for run in pair),
        (("figure4_5_correlations", table), ("figure4_5_points", points), ("a12_state", state)),
        (
            Claim(
                "γ is not a re-parametrisation of the Hessian (ρ within ±.5)",
                "ρ " + ", ".join(f"{h:+.2f}" for h in hessian),
                all(abs(h) <= 0.5 for h in hessian),
            ),
        ),
    )
