"""Sections on the scores: dead weights, spread, concentration, probes, transfer, roles, structure (A.7 to A.14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import mean

import numpy as np

from tools.study import claims
from tools.study.markdown import markdown, shown
from tools.study.runs import Runs
from tools.study.scored import DRAWS
from tools.study.section import Claim, Section
from tqs_onnx.analysis.sensitivity import (
    agreement_table,
    concentration_table,
    dead_table,
    horizon_table,
    percentiles,
    role_table,
    spread_table,
    structure_table,
)
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_passes.weights import Role

SCORED = {
    "timesfm_mini": "timesfm_mini.ETTh1",
    "aurora_mini": "aurora.score",
    "pangu_mini": "pangu.score",
    "pangu_mini, blocks": "pangu.blocks",
    "lorenz96": "lorenz.score",
}
#: Matrices of the body by what they do, told by their labels.
KINDS = {
    "attention": r"attn|attention|qkv|query|key|value",
    "FFN up": r"(mlp|ffn)\W?(up|hidden|in)",
    "FFN down": r"(mlp|ffn)\W?(down|output|out)",
}
PAPER_DEAD = "TimesFM 3 of 89, Aurora 36 of 85, Pangu 0 of 28 blocks"
PAPER_TOP = {
    "TimesFM-2.5": (24.0, 43.7, 69.2),
    "Aurora-small": (17.3, 37.4, 66.1),
    "Pangu-Weather": (18.4, 40.1, 73.0),
}


def probes_of(runs: Runs, run: str) -> dict[str, Scores]:
    """Return the scores of both probes of a run."""
    folder = runs.folder / run
    return {"quant": read_scores(folder / "scores.json"), "gauss": read_scores(folder / "scores.gauss.json")}


def both(runs: Runs) -> dict[str, Scores]:
    """Return the scores of every model, the gauss probe under ``NAME (gauss)``."""
    found: dict[str, Scores] = {}
    for name, run in SCORED.items():
        pair = probes_of(runs, run)
        found |= {name: pair["quant"], f"{name} (gauss)": pair["gauss"]}
    return found


def dead(scores: Mapping[str, Scores]) -> Section:
    """Table 2."""
    table = dead_table(scores)
    return Section(
        "Table 2: dead weights",
        f"Paper: {PAPER_DEAD}.\n\n{shown(table)}",
        tuple(SCORED.values()),
        (("table2_dead", table),),
    )


def spread(scores: Mapping[str, Scores]) -> Section:
    """Table 4."""
    table = spread_table(scores)
    return Section(
        "Table 4: range of γ",
        "Paper: TimesFM 4.27 nats (1.85 decades, 71×), Pangu 2.21 (quant) and 1.28 (gauss), Aurora 0.061 and 0.026. "
        "γ is a logarithm per step, so ranges over 120 steps (aurora_mini) are not those over 4; the paper's ratio "
        f"is of e^range.\n\n{shown(table)}",
        tuple(SCORED.values()),
        (("table4_spread", table),),
    )


def concentration(scores: Mapping[str, Scores]) -> Section:
    """Table 5 and Figure 3."""
    table = concentration_table(scores)
    paper = "; ".join(f"{n} {a:g}, {b:g}, {c:g}" for n, (a, b, c) in PAPER_TOP.items())
    top = [float(r[2]) for r in table.rows if r[0] != "uniform" and isinstance(r[2], float)]
    inside = sum(17.0 <= t <= 24.0 for t in top)
    return Section(
        "Table 5 and Figure 3: concentration",
        f"Paper: {paper}.\n\n{shown(table)}",
        tuple(SCORED.values()),
        (("table5_concentration", table),),
        (
            Claim(
                "the top 10 % of the weights carry 17–24 % of the γ-shift",
                f"{min(top):.1f}–{max(top):.1f} %, {inside} of {len(top)} rankings inside",
                inside == len(top),
            ),
        ),
    )


def agreement(runs: Runs) -> Section:
    """Table 6, the correlations."""
    rows: list[list[str]] = []
    pairs: list[tuple[float, float]] = []
    for name, run in SCORED.items():
        pair = probes_of(runs, run)
        fine = claims.spearman(pair["quant"], pair["gauss"]) or 0.0
        if "blocks" in name:
            rows.append([name, "–", "–", f"{fine:.2f} ({len(claims.targets(pair['quant']))})"])
            continue
        coarse, n = claims.mean_agreement(pair["quant"], pair["gauss"])
        pairs.append((fine, coarse))
        rows.append([name, f"{fine:.2f}", f"{coarse:.2f} ({n})", "–"])
    head = ["model", "over weights", "over blocks of 8, means", "over blocks probed as one"]
    return Section(
        "Table 6: gauss against quant",
        "Spearman's ρ of γ_task between the probes; number of blocks in brackets. Paper: Aurora .57 over tensors, "
        f"Pangu .96 over blocks. Gauss takes {DRAWS} draws.\n\n{markdown(head, rows)}",
        tuple(SCORED.values()),
        claims=(
            Claim(
                "the probes agree better on blocks than on weights",
                "; ".join(f"{a:.2f} → {b:.2f}" for a, b in pairs),
                all(b > a for a, b in pairs),
            ),
            Claim(
                "over single weights they disagree (Aurora: ρ = .57)",
                f"least ρ {min(a for a, _ in pairs):.2f}",
                min(a for a, _ in pairs) < 0.7,
            ),
        ),
    )


def transfer(runs: Runs, tables: tuple[str, ...]) -> Section:
    """Table 9, the correlations."""
    scores = {t: probes_of(runs, f"timesfm_mini.{t}")["quant"] for t in tables}
    table = agreement_table(scores)
    rho = [float(r[4]) for r in table.rows if isinstance(r[4], float)]
    return Section(
        "Table 9: does the ranking transfer between data sets?",
        f"Spearman's ρ of γ_task of timesfm_mini between {len(tables)} tables, quant probe: mean {mean(rho):.2f}, "
        f"least {min(rho):.2f}. Paper: mean .82, least .70.",
        tuple(f"timesfm_mini.{t}" for t in tables),
        (("table9_agreement", table),),
        (
            Claim(
                "the ranking transfers (ρ ≥ .70 for every pair of data sets)",
                f"mean {mean(rho):.2f}, least {min(rho):.2f} of {len(rho)} pairs",
                min(rho) >= 0.7,
            ),
        ),
    )


def roles(scores: Mapping[str, Scores]) -> Section:
    """Figure 2, and whether the matrices that lead out of feed-forward blocks are the bottleneck."""
    table = role_table(scores)
    rows: list[list[str]] = []
    down_leads: list[bool] = []
    for name, found in scores.items():
        if "blocks" in name:
            continue
        matrices = [w for w in found.weights if sum(n > 1 for n in w.shape) >= 2]
        percentile = percentiles(found.model_copy(update={"weights": tuple(matrices)}))
        groups: dict[str, list[float]] = {"input and output": [], **{k: [] for k in KINDS}}
        for w in matrices:
            if w.weight not in percentile:
                continue
            kind = next((k for k, p in KINDS.items() if re.search(p, w.label)), "")
            if w.role in (Role.INPUT, Role.OUTPUT):
                kind = "input and output"
            if kind:
                groups[kind].append(percentile[w.weight])
        if not groups["FFN down"]:
            continue
        means = {k: float(np.mean(v)) for k, v in groups.items() if v}
        down_leads.append(max(means, key=lambda k: means[k]) == "FFN down")
        rows.append([name, *(f"{means[k]:.0f} ({len(groups[k])})" if k in means else "–" for k in groups)])
    head = ["model", "input and output", *KINDS]
    return Section(
        "Figure 2: percentile of γ by role",
        "Mean percentile of γ_task among the matrices, 100 the most sensitive; number of matrices in brackets. "
        "Paper: input and output 93 to 98, attention of TimesFM 26, body of Pangu 21; the matrices that lead out of "
        f"feed-forward blocks are not the bottleneck, unlike in LLMs.\n\n{markdown(head, rows)}",
        tuple(SCORED.values()),
        (("figure2_roles", table),),
        (
            Claim(
                "FFN-down is not the bottleneck",
                f"it ranks highest in {sum(down_leads)} of {len(down_leads)} rankings",
                not any(down_leads),
            ),
        ),
    )


def structure(scores: Mapping[str, Scores]) -> Section:
    """A.14: two regimes, and convergence with the horizon."""
    table = structure_table(scores)
    horizons = horizon_table({n: s for n, s in scores.items() if "pangu" in n})
    kept = {(r[0], r[1]): r for r in table.rows}
    size = {
        n: kept[n, "number of values"]
        for n in ("pangu_mini", "pangu_mini, blocks")
        if (n, "number of values") in kept
    }
    place = {n: kept[n, "place in the graph"] for n in size if (n, "place in the graph") in kept}
    says = "; ".join(
        f"{n}: ρ with size {float(r[3] or 0):.2f} (p {float(r[4] or 0):.1g}), with place {float(place[n][3] or 0):.2f}"
        for n, r in size.items()
    )
    blocks = kept.get(("pangu_mini, blocks", "number of values"))
    both_negative = (
        blocks is not None
        and float(blocks[3] or 0) < -0.5
        and float(place["pangu_mini, blocks"][3] or 0) < -0.5
    )
    return Section(
        "A.14: two regimes of Pangu, and the horizon",
        "Paper: small early blocks are sensitive, large late ones are not: Spearman's ρ of γ with the number of "
        "values −.80, with the place in the graph −.79; γ(1)/γ(4) = 2.13 ± .09, γ(2)/γ(4) = 2.011 ± .0002. The "
        "ratios below mean little where γ is near 0.\n\n"
        f"{shown(table)}\n{shown(horizons)}",
        ("pangu.score", "pangu.blocks"),
        (("a14_structure", table), ("a14_horizons", horizons)),
        (Claim("γ falls with size and with depth (two regimes)", says, both_negative),),
    )
