"""Computes the figures behind the paper's claims from scores: ranks by role, transfer, concentration, agreement."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from tqs_onnx.analysis.sensitivity import ROLES, by_role, gammas, percentiles, share, targets
from tqs_onnx.scoring.scores import Scores, Status, spearman
from tqs_passes.weights import Role

IO = (Role.INPUT, Role.OUTPUT)
__all__ = ["ROLES", "by_role", "gammas", "percentiles", "share", "spearman", "targets"]


def io_leads(table: dict[Role, tuple[int, float, float]]) -> bool:
    """Return whether both I/O roles have a higher mean percentile than every body role."""
    body = [mean for role, (_, mean, _) in table.items() if role not in IO]
    return min(mean for role, (_, mean, _) in table.items() if role in IO) > max(body)


def transfer(by_set: dict[str, Scores]) -> dict[tuple[str, str], float]:
    """Return the rank correlation of each pair of sets."""
    found = {(a, b): spearman(by_set[a], by_set[b]) for a, b in combinations(by_set, 2)}
    return {pair: rho for pair, rho in found.items() if rho is not None}


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
