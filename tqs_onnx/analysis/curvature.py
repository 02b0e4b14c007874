"""Curvature against γ: do Hessian and Fisher rank the weights as trajectories do? (paper, Figures 4 and 5, A.13)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr

from tqs_onnx.analysis.growth import linear_growth
from tqs_onnx.analysis.sensitivity import targets
from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.jobs.curvature import Curvature, by_weight
from tqs_onnx.scoring.scores import Scores

_FEWEST_RANKED = 3
_MEASURES = {
    "tr H (Hessian)": "hessian",
    "H_Δ / H (error of the inputs)": "inputs",
    "tr F (Fisher)": "fisher",
}


def curvature_table(scores: Mapping[str, Scores], found: Mapping[str, Curvature]) -> Table:
    """Return the rank correlation of γ with every measure of curvature, by run."""
    rows: list[tuple[Cell, ...]] = []
    for run, curvature in found.items():
        if run not in scores or scores[run].source_sha256 != curvature.source_sha256:
            continue
        known = by_weight(curvature)
        for measure, field in _MEASURES.items():
            pairs = [
                (w.gamma_task or 0.0, value)
                for w in targets(scores[run])
                if w.weight in known and (value := getattr(known[w.weight], field)) is not None
            ]
            x, y = (np.array(side) for side in zip(*pairs, strict=True)) if pairs else (np.empty(0),) * 2
            if len(x) >= _FEWEST_RANKED and np.ptp(x) > 0 and np.ptp(y) > 0:
                rank = spearmanr(x, y)
                rows.append((run, measure, len(x), float(rank.statistic), float(rank.pvalue)))
    columns = ("run", "γ against", "n", "Spearman's ρ", "p")
    return Table(
        "curvature", "Rank correlation of γ with curvature", columns, tuple(rows), "Figures 4 and 5, A.13"
    )


def weight_curvature_table(scores: Mapping[str, Scores], found: Mapping[str, Curvature]) -> Table:
    """Return γ and the measures of curvature of every weight: the points of Figures 4 and 5."""
    rows: list[tuple[Cell, ...]] = []
    for run, curvature in found.items():
        gamma = {w.weight: w.gamma_task for w in scores[run].weights} if run in scores else {}
        rows += [
            (run, w.label, gamma.get(w.weight), w.hessian, w.inputs, w.fisher) for w in curvature.weights
        ]
    columns = ("run", "weight", "γ_task", "tr H", "H_Δ / H", "tr F")
    return Table("curvatures", "γ and curvature of every weight", columns, tuple(rows), "Figures 4 and 5")


def state_table(scores: Mapping[str, Scores], found: Mapping[str, Curvature]) -> Table:
    """Return how an error of the state grows, beside the errors of the weights, by run.

    The exponent is that of ‖ΔY‖ by step in its linear range, with its interval; `growth` is that of A, which is squared
    and summed over the steps, for the state and for the weights alike; weights are left out if their horizons are not
    those of the state.
    """
    rows: list[tuple[Cell, ...]] = []
    for run, curvature in found.items():
        state = curvature.state
        if state is None:
            continue
        fit = linear_growth(state.distance_per_step, 1.0)
        exponent: tuple[Cell, ...] = (None,) * 4
        if fit is not None:
            exponent = (fit.rate, fit.low, fit.high, f"{fit.first}–{fit.last}")
        known = scores.get(run)
        alike = known is not None and known.horizons == state.horizons
        growths = [w.growth for w in targets(known) if w.growth is not None] if known and alike else []
        spread = tuple(float(q) for q in np.quantile(growths, (0.5, 0.0, 1.0))) if growths else (None,) * 3
        faster = sum(g > state.growth for g in growths) if state.growth is not None else None
        rows.append((run, *exponent, state.growth, *spread, faster if growths else None, len(growths)))
    columns = (
        *("run", "exponent of the state", "low", "high", "steps", "growth of the state"),
        *("median growth of weights", "least", "most", "weights that grow faster", "of"),
    )
    return Table("state", "Growth per step of an error of the state, beside those of the weights", columns,
                 tuple(rows), "A.12")  # fmt: skip
