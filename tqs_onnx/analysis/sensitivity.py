"""What scores say about a model: dead weights, the spread and concentration of γ, roles, size and depth, probes.

γ is γ_task of the alive weights, a block counted once. The γ-shift is γ − min γ: not negative, so that shares of it can
be taken (paper, A.9). Percentiles run from 0, the least, to 100, the most sensitive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.scoring.scores import Scores, Status, WeightScore, spearman
from tqs_passes.weights import Role

ROLES = tuple(Role)
#: Fractions of the weights whose share of the γ-shift Table 5 gives.
TOPS = (0.10, 0.25, 0.50)
_FEWEST_RANKED = 3

Floats = NDArray[np.float64]


def targets(scores: Scores) -> list[WeightScore]:
    """Return the alive weights, or one member of each alive block, in graph order."""
    found: dict[str, WeightScore] = {}
    for w in scores.weights:
        if w.gamma_task is not None:
            found.setdefault(w.block or f"\0{w.weight}", w)
    return list(found.values())


def gammas(scores: Scores) -> Floats:
    """Return γ_task of the alive targets."""
    return np.array([w.gamma_task for w in targets(scores)], np.float64)


def percentiles(scores: Scores) -> dict[str, float]:
    """Return the percentile of γ_task of each alive target among all, by weight."""
    alive = targets(scores)
    rank = rankdata(gammas(scores)) - 1
    return {w.weight: 100 * float(r) / max(len(alive) - 1, 1) for w, r in zip(alive, rank, strict=True)}


def by_role(scores: Scores, *, matrices: bool = False) -> dict[Role, tuple[int, float, float]]:
    """Return the number of weights and the mean and median percentile of each role.

    With `matrices`, percentiles are among weights with two or more long axes: the paper's layers.
    """
    kept = [w for w in scores.weights if not matrices or sum(n > 1 for n in w.shape) >= 2]
    chosen = scores.model_copy(update={"weights": tuple(kept)})
    percentile = percentiles(chosen)
    result: dict[Role, tuple[int, float, float]] = {}
    for role in ROLES:
        found = [percentile[w.weight] for w in kept if w.role is role and w.weight in percentile]
        if found:
            result[role] = (len(found), float(np.mean(found)), float(np.median(found)))
    return result


def share(scores: Scores, top: float) -> float:
    """Return the share of the γ-shift that the `top` fraction of alive targets carries; NaN if all γ are equal."""
    values = gammas(scores)
    shift = np.sort(values - values.min())[::-1]
    count = max(1, round(top * len(shift)))
    return float(shift[:count].sum() / shift.sum()) if shift.sum() > 0 else math.nan


def cumulative(scores: Scores) -> tuple[Floats, Floats]:
    """Return the share of the alive targets, most sensitive first, and their share of the γ-shift (Figure 3)."""
    values = gammas(scores)
    if values.size == 0:
        return np.zeros(1), np.zeros(1)
    shift = np.sort(values - values.min())[::-1]
    total = shift.sum() or 1.0
    return np.arange(len(shift) + 1) / len(shift), np.concatenate([[0.0], np.cumsum(shift) / total])


def dead_table(runs: Mapping[str, Scores]) -> Table:
    """Return how many weights the forecast does not depend on, by run."""
    rows: list[tuple[Cell, ...]] = []
    for name, scores in runs.items():
        gone = [w for w in scores.weights if w.status in (Status.DEAD, Status.BELOW_FLOOR)]
        n, values = len(scores.weights), sum(math.prod(w.shape) for w in scores.weights)
        rows.append(
            (
                *(name, n, sum(w.status is Status.DEAD for w in gone), len(gone)),
                100.0 * len(gone) / n if n else 0.0,
                100.0 * sum(math.prod(w.shape) for w in gone) / values if values else 0.0,
                ", ".join(w.label for w in gone) or "none",
            )
        )
    columns = ("run", "weights", "dead", "dead or below the floor", "% of weights", "% of values", "which")
    return Table("dead", "Weights that the forecast does not depend on", columns, tuple(rows), "Table 2")


def spread_table(runs: Mapping[str, Scores]) -> Table:
    """Return the range of γ by run, in nats, decades and as a ratio."""
    rows: list[tuple[Cell, ...]] = []
    for name, scores in runs.items():
        values = gammas(scores)
        if values.size:
            span = float(np.ptp(values))
            kind = "block" if any(w.block for w in scores.weights) else "weight"
            rows.append(
                (
                    *(name, scores.probe.kind.value, kind, len(values)),
                    *(float(values.min()), float(values.max()), span, span / math.log(10), math.exp(span)),
                )
            )
    columns = (
        *("run", "probe", "per", "n", "lowest γ", "highest γ", "range (nats)", "decades"),
        "highest / lowest growth factor",
    )
    return Table("spread", "Range of γ over the alive weights", columns, tuple(rows), "Table 4")


def concentration_table(runs: Mapping[str, Scores]) -> Table:
    """Return the share of the γ-shift that the most sensitive weights carry, by run."""
    rows: list[tuple[Cell, ...]] = [
        (name, len(gammas(s)), *(100 * share(s, top) for top in TOPS))
        for name, s in runs.items()
        if gammas(s).size
    ]
    rows.append(("uniform", None, *(100 * top for top in TOPS)))
    columns = ("run", "n", *(f"top {100 * top:.0f} %" for top in TOPS))
    return Table("concentration", "Share of the γ-shift in the top of the ranking, percent", columns, tuple(rows),
                 "Table 5, Figure 3")  # fmt: skip


def role_table(runs: Mapping[str, Scores]) -> Table:
    """Return the percentiles of γ by role and run: all weights, and matrices alone."""
    rows: list[tuple[Cell, ...]] = []
    for name, scores in runs.items():
        matrices = by_role(scores, matrices=True)
        for role, (n, mean, median) in by_role(scores).items():
            few = matrices.get(role)
            rows.append((name, role.value, n, mean, median, *(few if few else (0, None, None))))
    columns = ("run", "role", "weights", "mean", "median", "matrices", "mean (matrices)", "median (matrices)")
    return Table(
        "roles", "Percentile of γ by role: 100 is the most sensitive", columns, tuple(rows), "Figure 2"
    )


def agreement_table(runs: Mapping[str, Scores]) -> Table:
    """Return the rank correlation of γ for every two runs of the same model."""
    rows: list[tuple[Cell, ...]] = []
    for (one, a), (other, b) in combinations(runs.items(), 2):
        if a.source_sha256 != b.source_sha256:
            continue
        differ = "probes" if a.probe.kind is not b.probe.kind else "contexts"
        n = len({w.weight for w in targets(a)} & {w.weight for w in targets(b)})
        rows.append((one, other, differ, n, spearman(a, b)))
    columns = ("run", "other run", "they differ in", "n", "Spearman's ρ")
    return Table(
        "agreement", "Rank correlation of γ between runs of one model", columns, tuple(rows), "Tables 6 and 9"
    )


def structure_table(runs: Mapping[str, Scores]) -> Table:
    """Return the rank correlations of γ with size, place in the graph and growth, with their p-values.

    A block has the values of all its weights, and the place of the first.
    """
    rows: list[tuple[Cell, ...]] = []
    for name, scores in runs.items():
        alive = targets(scores)
        place = {w.weight: i for i, w in enumerate(scores.weights)}
        values: dict[str, int] = {}
        for w in scores.weights:
            values[w.block or w.weight] = values.get(w.block or w.weight, 0) + math.prod(w.shape)
        pairs: dict[str, list[tuple[float, float]]] = {
            "number of values": [(w.gamma_task or 0.0, values[w.block or w.weight]) for w in alive],
            "place in the graph": [(w.gamma_task or 0.0, place[w.weight]) for w in alive],
            "growth per step": [(w.gamma_task or 0.0, w.growth) for w in alive if w.growth is not None],
            "nonlinearity": [(w.gamma_task or 0.0, r) for w in alive if (r := w.nonlinearity) is not None],
        }
        for what, points in pairs.items():
            x, y = (np.array(side) for side in zip(*points, strict=True)) if points else (np.empty(0),) * 2
            if len(x) >= _FEWEST_RANKED and np.ptp(x) > 0 and np.ptp(y) > 0:
                found = spearmanr(x, y)
                rows.append((name, what, len(x), float(found.statistic), float(found.pvalue)))
    columns = ("run", "γ against", "n", "Spearman's ρ", "p")
    return Table(
        "structure", "Rank correlation of γ with size, depth and growth", columns, tuple(rows), "A.14"
    )


def horizon_table(runs: Mapping[str, Scores]) -> Table:
    """Return γ(T) / γ(T_max) at every horizon, mean and deviation over the alive weights."""
    rows: list[tuple[Cell, ...]] = []
    for name, scores in runs.items():
        for i, horizon in enumerate(scores.horizons):
            ratios = [w.convergence[i] for w in targets(scores) if w.convergence is not None]
            known = np.array([r for r in ratios if r is not None])
            if known.size:
                rows.append((name, horizon, known.size, float(known.mean()), float(known.std())))
    columns = ("run", "horizon", "n", "γ(T) / γ(T_max)", "deviation")
    return Table("horizons", "Convergence of γ with the horizon", columns, tuple(rows), "A.14")
