"""Computes the figures behind the paper's claims from scores: ranks by role, transfer, concentration, agreement."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from tqs_onnx.scoring.scores import Scores, Status, WeightScore, spearman
from tqs_passes.weights import Role

ROLES = tuple(Role)
IO = (Role.INPUT, Role.OUTPUT)


def targets(scores: Scores) -> list[WeightScore]:
    """Return the alive weights, or one member of each alive block."""
    found: dict[str, WeightScore] = {}
    for w in scores.weights:
        if w.gamma_task is not None:
            found.setdefault(w.block or f"\0{w.weight}", w)
    return list(found.values())


def gammas(scores: Scores) -> np.ndarray:
    """Return γ_task of the alive targets, float64."""
    return np.array([w.gamma_task for w in targets(scores)], np.float64)


def percentiles(scores: Scores) -> dict[str, float]:
    """Return the percentile of γ_task of each alive weight among all: 0 the least, 100 the most sensitive."""
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


def io_leads(table: dict[Role, tuple[int, float, float]]) -> bool:
    """Return whether both I/O roles have a higher mean percentile than every body role."""
    body = [mean for role, (_, mean, _) in table.items() if role not in IO]
    return min(mean for role, (_, mean, _) in table.items() if role in IO) > max(body)


def transfer(by_set: dict[str, Scores]) -> dict[tuple[str, str], float]:
    """Return the rank correlation of each pair of sets."""
    found = {(a, b): spearman(by_set[a], by_set[b]) for a, b in combinations(by_set, 2)}
    return {pair: rho for pair, rho in found.items() if rho is not None}


def share(scores: Scores, top: float) -> float:
    """Return the share of the summed γ − γ_min that the `top` fraction of alive targets carries (A.9)."""
    shift = np.sort(gammas(scores) - gammas(scores).min())[::-1]
    count = max(1, round(top * len(shift)))
    return float(shift[:count].sum() / shift.sum())


def mean_agreement(a: Scores, b: Scores, size: int = 8) -> tuple[float, int]:
    """Return the rank correlation of two probes over blocks like those of the paper's Pangu, and the number of blocks.

    A block is `size` consecutive weights of the file; its γ is the mean of its alive members' own.
    """
    sides: list[list[float]] = []
    for scores in (a, b):
        rows = [scores.weights[i : i + size] for i in range(0, len(scores.weights), size)]
        sides.append(
            [float(np.mean([w.gamma_task for w in row if w.gamma_task is not None])) for row in rows]
        )
    x, y = (rankdata(np.array(side)) for side in sides)
    return float(np.corrcoef(x, y)[0, 1]), len(x)


def insensitive(many: Iterable[Scores]) -> dict[str, str]:
    """Return the weights that one of the scores marks dead or below the floor, label by name."""
    gone = (Status.DEAD, Status.BELOW_FLOOR)
    return {w.weight: w.label for scores in many for w in scores.weights if w.status in gone}


def weakest(scores: Scores, count: int, but: Iterable[str] = ()) -> list[str]:
    """Return the names of the `count` alive weights of lowest γ_task."""
    left = set(but)
    alive = [w for w in targets(scores) if w.weight not in left]
    ordered = sorted(alive, key=lambda w: (w.gamma_task or 0.0, w.weight))
    return [w.weight for w in ordered[:count]]
