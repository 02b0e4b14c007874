"""Frontiers: every point, and how far two series of one model are apart (paper, Figure 1, Tables 1, 3, 6, 9 and 11)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.jobs.matched import UNIFORM
from tqs_onnx.jobs.pareto import Pareto, Point


def points_table(runs: Mapping[str, Pareto]) -> Table:
    """Return every point of every frontier."""
    rows: list[tuple[Cell, ...]] = [
        (
            *(
                run,
                p.name,
                p.objective,
                p.solver,
                p.scores,
                p.rank_by,
                p.tiers,
                p.p_fp32,
                p.compression,
                p.n_bytes,
                p.drift_added,
            ),
            *(p.drift_predicted, p.drift_measured, p.degradation),
            *(p.allocate_s, p.calibrate_s, p.emit_s, p.evaluate_s),
        )
        for run, pareto in runs.items()
        for p in pareto.points
    ]
    columns = (
        *(
            "run",
            "file",
            "objective",
            "solver",
            "scores",
            "γ",
            "tiers",
            "FP32 share",
            "times smaller",
            "bytes",
            "drift added",
        ),
        *(
            "drift predicted",
            "drift measured",
            "degradation %",
            "seconds: allocate",
            "calibrate",
            "emit",
            "evaluate",
        ),
    )
    return Table(
        "points", "Every point of the frontier", columns, tuple(rows), "Figure 1, Tables 1, 3 and 11"
    )


def gap_table(runs: Mapping[str, Pareto]) -> Table:
    """Return how far every two frontiers of one model are apart, over the points of equal target and settings.

    A sweep from several scores (probes, or other contexts) holds one frontier for each of them. The MAE of the worst
    variable is compared by its degradation, the drift as it is.
    """
    frontiers = [
        (f"{run}: {name}" if name else run, pareto.source_sha256, _targets(pareto, name))
        for run, pareto in runs.items()
        for name in dict.fromkeys(p.scores for p in pareto.points if p.objective != UNIFORM)
    ]
    rows: list[tuple[Cell, ...]] = []
    for (one, source, ours), (other, of, theirs) in combinations(frontiers, 2):
        pairs = [(p, theirs[key]) for key, p in ours.items() if key in theirs]
        if source != of or not pairs:
            continue
        mae = [
            100.0 * abs((100.0 + p.degradation) / (100.0 + q.degradation) - 1.0)
            for p, q in pairs
            if p.degradation is not None and q.degradation is not None and q.degradation > -100.0
        ]
        drift = [
            math.log(q.drift_measured / p.drift_measured)
            for p, q in pairs
            if p.drift_measured and q.drift_measured
        ]
        largest = math.exp(max(map(abs, drift))) if drift else None
        mean = math.exp(sum(drift) / len(drift)) if drift else None
        rows.append((one, other, len(pairs), max(mae, default=None), largest, mean))
    columns = (
        *("run", "other run", "points", "largest gap of MAE (%)", "largest ratio of drift"),
        "mean drift of the other over the first",
    )
    return Table(
        "gap", "How far two frontiers of one model are apart", columns, tuple(rows), "Tables 6 and 9"
    )


def _targets(pareto: Pareto, scores: str) -> dict[tuple[object, ...], Point]:
    """Return the points that one set of scores allocated, by target and settings."""
    return {
        (p.compression_asked, *p.settings): p
        for p in pareto.points
        if p.scores == scores and p.objective != UNIFORM
    }


def matched_table(runs: Mapping[str, Pareto]) -> Table:
    """Return how many variables every series wins over the best uniform baseline whose bytes it stays within."""
    rows: list[tuple[Cell, ...]] = []
    for run, pareto in runs.items():
        uniform = [p for p in pareto.points if p.objective == UNIFORM]
        for bits in dict.fromkeys(p.tiers for p in uniform):
            base = [p for p in uniform if p.tiers == bits and p.n_bytes]
            least = min((p.n_bytes or 0 for p in base), default=0)
            target = max((p.compression or 0.0 for p in base), default=0.0)
            for p in pareto.points:
                if p.objective == UNIFORM or p.compression_asked != target or not p.variables:
                    continue
                rows.append((run, bits, p.name, least, p.n_bytes, *_wins(p, base), _ratio(p, base)))
    columns = (
        *(
            "run",
            "baselines",
            "file",
            "their bytes",
            "its bytes",
            "wins by drift",
            "wins by MAE",
            "of variables",
        ),
        "drift over the best baseline",
    )
    return Table("matched", "Variables won over the best uniform baseline at its bytes", columns, tuple(rows),
                 "Figure 1, Table 13")  # fmt: skip


def _wins(p: Point, base: Sequence[Point]) -> tuple[int, int | None, int]:
    by_drift = by_mae = 0
    has_truth = False
    for name, mine in p.variables.items():
        theirs = [q.variables[name] for q in base if name in q.variables]
        by_drift += all(mine.drift < e.drift for e in theirs)
        if mine.mae is not None:
            has_truth = True
            by_mae += all(e.mae is None or mine.mae < e.mae for e in theirs)
    return by_drift, by_mae if has_truth else None, len(p.variables)


def _ratio(p: Point, base: Sequence[Point]) -> float | None:
    best = min((q.drift_measured for q in base if q.drift_measured), default=None)
    return p.drift_measured / best if best and p.drift_measured else None
