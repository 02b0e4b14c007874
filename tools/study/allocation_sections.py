"""Sections on allocation: cost, ablations, greedy against MCKP, bottom tiers, protection, sizes (Tables 1 to 11)."""

from __future__ import annotations

import math
from statistics import mean, median

from tools.study.frontiers import (
    FRONTIER_RUNS,
    FRONTIERS,
    SCORES,
    geometric,
    ours,
    pareto,
    plan_of,
    uniform,
)
from tools.study.markdown import markdown, shown
from tools.study.protocols import FULL_TABLE
from tools.study.runs import Runs
from tools.study.section import Claim, Section
from tqs_onnx.analysis.allocation import protected_table, size_table
from tqs_onnx.analysis.frontiers import points_table
from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.jobs.matched import UNIFORM
from tqs_onnx.jobs.pareto import Point
from tqs_onnx.scoring.scores import read_scores
from tqs_passes.plan.plan import Plan

DATA_AWARE = ("gptq", "gptaq", "qep")


def _seconds(p: Point) -> float:
    return p.allocate_s + p.calibrate_s + p.emit_s + p.evaluate_s


def cost(runs: Runs) -> Section:
    """Table 1."""
    rows: list[list[str]] = []
    cheaper: list[bool] = []
    for model, names in FRONTIERS.items():
        seconds: dict[str, list[float]] = {}
        for name in names:
            spent = runs.cost(name)
            for p in pareto(runs, name).points:
                if p.n_bytes is not None:
                    kind = p.solver if p.objective == UNIFORM else "tqs"
                    seconds.setdefault(kind, []).append(_seconds(p) * spent.cpu_s / spent.wall_s)
        each = {kind: median(found) for kind, found in seconds.items()}
        sweep = runs.cost(SCORES[model])
        total = each["tqs"] + sweep.cpu_s / len(seconds["tqs"])
        others = [f"{each[m]:.1f}" if m in each else "–" for m in ("rtn", *DATA_AWARE)]
        if not sweep.resumed:
            cheaper.append(all(total < each[m] for m in DATA_AWARE if m in each))
        shared = (
            ("–", "–") if sweep.resumed else (f"{sweep.cpu_s:.0f} / {len(seconds['tqs'])}", f"{total:.1f}")
        )
        rows.append([model, shared[0], f"{each['tqs']:.2f}", shared[1], *others])
    head = [
        "model",
        "sweep s / points",
        "TQS, each point",
        "TQS with its share",
        "RTN",
        "GPTQ",
        "GPTAQ",
        "QEP",
    ]
    return Section(
        "Table 1: seconds a point",
        "Seconds of CPU on one thread, medians over the points; those of a point are its seconds on the clock times "
        "the share of the CPU that its sweep got. The scoring sweep takes both probes; its time is shared by the "
        "points (–: it was stopped, so its time is not known). QEP includes the choice among six settings. Paper, "
        "minutes: TQS 46, 32, 57.5; GPTQ 208, 38.5, 32.3; GPTAQ 234, 54, 66.9; QEP 234, 54, – (TimesFM, Aurora, "
        f"Pangu).\n\n{markdown(head, rows)}",
        (*SCORES.values(), *FRONTIER_RUNS),
        claims=(
            Claim(
                "TQS is cheaper per point than GPTQ, GPTAQ and QEP",
                "; ".join(f"{r[0]} {r[3]} s against {', '.join(r[5:])}" for r in rows),
                all(cheaper),
            ),
        ),
    )


def ablations(runs: Runs) -> Section:
    """Table 3: probe, allocator, FP32 share, and which γ."""
    found = pareto(runs, "timesfm.ablation")
    table = points_table({"timesfm.ablation": found})
    rows: list[list[str]] = []
    for what, field in (
        ("allocator", "solver"),
        ("FP32 share", "p_fp32"),
        ("probe", "scores"),
        ("γ", "rank_by"),
    ):
        for value in dict.fromkeys(getattr(p, field) for p in ours(found)):
            drift = [p.drift_measured for p in ours(found) if getattr(p, field) == value and p.drift_measured]
            worst = [
                p.degradation for p in ours(found) if getattr(p, field) == value and p.degradation is not None
            ]
            rows.append(
                [what, str(value), str(len(drift)), f"{geometric(drift):.3g}", f"{median(worst):.3g}"]
            )
    head = ["axis", "value", "points", "drift, geometric mean", "degradation %, median"]
    return Section(
        "Table 3: ablations",
        f"timesfm_mini on {FULL_TABLE}, the paper's objective, C = 8 of the weights, every combination."
        f"\n\n{markdown(head, rows)}",
        ("timesfm.ablation",),
        (("table3_ablations", table),),
    )


def allocator(runs: Runs) -> Section:
    """Greedy against MCKP."""
    found = pareto(runs, "timesfm.greedy")
    rows: list[list[str]] = []
    ratios: dict[str, list[float]] = {}
    for objective in ("paper", "energy"):
        for c in dict.fromkeys(p.compression_asked for p in ours(found)):
            here = {p.solver: p for p in ours(found) if p.objective == objective and p.compression_asked == c}
            drift = {s: p.drift_measured for s, p in here.items() if p.drift_measured}
            if len(drift) < 3:
                continue
            ratios.setdefault(objective, []).append(drift["greedy"] / drift["mckp"])
            names = [here[s].name.split(".", 1)[1].split(".")[0] for s in here]
            rows.append([objective, names[0], *(f"{drift[s]:.3g}" for s in ("mckp", "greedy", "greedy-top")),
                         *(_mass(plan_of(runs, "timesfm.greedy", here[s])) for s in ("mckp", "greedy"))])  # fmt: skip
    head = [
        "objective",
        "target",
        "drift: MCKP",
        "greedy",
        "greedy from the top",
        "tiers of the values: MCKP",
        "greedy",
    ]
    worst = max(max(r, 1 / r) for r in ratios["paper"])
    return Section(
        "Is greedy as good as MCKP? (A.13, A.15)",
        "Greedy lifts the weight of highest γ as far as the budget allows, then the next (`greedy-top`: the other "
        "reading of the paper, every weight at the finest tier that still fits). The cost (γ − γ_min)·2^−b of the "
        "objective `paper` knows neither how many values a weight has nor how large its rounding error is. MCKP "
        "still trades bytes between weights and lifts nearly all of them off the bottom; greedy spends the same "
        "bytes on 16 or 32 bits for some and leaves the large matrices at the bottom tier, where they make nearly "
        "all of the drift. Near the highest compression both leave most values there, and agree. In the paper they "
        "agree because the budget does not bind: dead weights at the bottom tier pay for FP32 everywhere else (its "
        f"saturation regime). Nothing is dead here.\n\n{markdown(head, rows)}",
        ("timesfm.greedy",),
        (("greedy_mckp", points_table({"timesfm.greedy": found})),),
        (
            Claim(
                "greedy and MCKP are as good as each other",
                f"objective `paper`: drift apart by up to {worst:.1f}×; `energy`: "
                f"{max(max(r, 1 / r) for r in ratios['energy']):.2f}×",
                worst < 1.2,
            ),
        ),
    )


def _mass(plan: Plan) -> str:
    """Return the share of the values in every tier, finest first."""
    total = sum(math.prod(a.shape) for a in plan.assignments)
    tiers = dict.fromkeys(a.tier for a in sorted(plan.assignments, key=lambda a: -a.tier.bits))
    shares = {t: sum(math.prod(a.shape) for a in plan.assignments if a.tier is t) / total for t in tiers}
    return ", ".join(f"{t.value} {100 * s:.0f} %" for t, s in shares.items() if s >= 0.005)


def bottom(runs: Runs, tables: tuple[str, ...]) -> Section:
    """Table 11."""
    rows: list[list[str]] = []
    data: list[tuple[Cell, ...]] = []
    best: dict[str, list[str]] = {"greedy": [], "mckp": []}
    polarised: list[bool] = []
    for table in tables:
        points = [p for p in ours(pareto(runs, f"timesfm.floor.{table}")) if p.degradation is not None]
        for solver, won in best.items():
            found = {
                floor: next((p for p in points if p.name.endswith(f".w{c}.{floor.lower()}.{solver}")), None)
                for floor, c in (("INT1", 12), ("INT2", 12), ("INT4", 7))
            }
            data += [
                (table, floor, solver, p.compression, p.drift_measured, p.degradation)
                for floor, p in found.items()
                if p is not None
            ]
            rows.append(
                [table, solver, *(f"{p.degradation:+.1f}" if p else "cannot be met" for p in found.values())]
            )
            known = {floor: p.degradation or 0.0 for floor, p in found.items() if p is not None}
            won.append(min(known, key=lambda floor: known[floor]))
            if solver == "greedy":
                polarised.append(known.get("INT2", math.inf) < known.get("INT1", math.inf))
    head = ["table", "allocator", "INT1, C = 12", "INT2, C = 12", "INT4, C = 7"]
    columns = ("table", "bottom", "solver", "times smaller", "drift", "degradation %")
    n = len(tables)
    return Section(
        "Table 11: the bottom tier",
        "timesfm_mini, degradation of the worst column in percent near the highest compression of each bottom tier "
        "(scales keep weights of 2 bits below 16). Paper, greedy, C = 16: INT1 +87 to +3408, INT2 −18 to +50; INT4 "
        f"at C = 8 +30 to +233.\n\n{markdown(head, rows)}",
        tuple(f"timesfm.floor.{t}" for t in tables),
        (("table11_bottom", Table("bottom", "Bottom tiers", columns, tuple(data))),),
        (
            Claim(
                "INT2 is the best bottom tier on every data set, also against INT4 at about half the compression",
                f"greedy: {best['greedy'].count('INT2')} of {n}; MCKP: {best['mckp'].count('INT2')} of {n}",
                best["greedy"].count("INT2") == n,
            ),
            Claim(
                "INT1 at the bottom polarises the greedy allocator: INT2 is better at the same compression",
                f"on {sum(polarised)} of {n}",
                all(polarised),
            ),
        ),
    )


def sizes(runs: Runs) -> Section:
    """Table 10: allocated against on disk."""
    found = pareto(runs, "pangu.paper")
    chosen = {p.name.removeprefix("model."): p for p in ours(found)}
    plans = {name: plan_of(runs, "pangu.paper", p) for name, p in chosen.items()}
    table = size_table(plans, {})
    degraded = {name: mean(e.degradation or 0.0 for e in p.variables.values()) for name, p in chosen.items()}
    base = [(m, p) for m, p in uniform(found, 8).items()]
    rows = [[f"{m.upper()} W8", "–", f"{p.compression:.2f}", f"{_degraded(p):+.3f}"] for m, p in base]
    rows += [
        [str(r[0]), f"{float(r[2] or 0):.2f}", f"{float(r[4] or 0):.2f}", f"{degraded[str(r[0])]:+.3f}"]
        for r in table.rows
    ]
    gap = [float(r[2] or 0) / float(r[4] or 1) for r in table.rows]
    return Section(
        "Table 10: compression allocated against compression on disk",
        "pangu_mini, 6 h, tiers FP32, BF16, INT8, mean degradation over the variables in percent. Paper: 3.57× "
        "allocated, 1.67× on disk, because its graph rewrite reaches 23.9 of 276.7 M values; the FP32 cap and the "
        "blocks come from the same rewrite. Here every stored weight is reached and the file is what was allocated, "
        f"but for scales and the graph.\n\n{markdown(['file', 'allocated C', 'file C', 'MAE %'], rows)}",
        ("pangu.paper",),
        (("table10_sizes", table),),
        (
            Claim(
                "a Pangu-shaped file is half as small on disk as it was allocated (3.57× → 1.67×)",
                f"allocated over on disk {min(gap):.2f}–{max(gap):.2f}",
                max(gap) > 1.5,
            ),
        ),
    )


def _degraded(p: Point) -> float:
    return mean(e.degradation or 0.0 for e in p.variables.values())


def protected(runs: Runs) -> Section:
    """Table 7 and Figure 6."""
    found = pareto(runs, "aurora.W2")
    chosen = {p.name.removeprefix("model."): p for p in ours(found)}
    plans = {name: plan_of(runs, "aurora.W2", p) for name, p in chosen.items()}
    folder = runs.folder / "aurora.score"
    files = {"quant": "scores.json", "gauss": "scores.gauss.json"}
    scores = {n: read_scores(folder / files[p.scores]) for n, p in chosen.items()}
    table = protected_table(plans, scores)
    return Section(
        "Table 7 and Figure 6: what each probe protects",
        "aurora_mini. Paper, C = 16, greedy: quant protects the five atmospheric heads, gauss the embeddings of the "
        f"input side.\n\n{shown(table)}",
        ("aurora.W2",),
        (("table7_protected", table),),
    )
