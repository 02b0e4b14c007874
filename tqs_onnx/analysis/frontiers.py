"""Frontiers of several sweeps: every point, and how far two are apart (paper, Figure 1, Tables 1, 3, 6 and 11)."""

from __future__ import annotations

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
    """Return the largest gap between every two frontiers of one model, over the points of equal target and settings.

    The MAE of the worst variable is compared by its degradation, the drift as it is.
    """
    rows: list[tuple[Cell, ...]] = []
    for (one, a), (other, b) in combinations(runs.items(), 2):
        theirs = {_key(p): p for p in b.points}
        pairs = [(p, theirs[_key(p)]) for p in a.points if _key(p) in theirs]
        if a.source_sha256 != b.source_sha256 or not pairs:
            continue
        mae = [
            100.0 * abs((100.0 + p.degradation) / (100.0 + q.degradation) - 1.0)
            for p, q in pairs
            if p.degradation is not None and q.degradation is not None and q.degradation > -100.0
        ]
        drift = [
            max(p.drift_measured / q.drift_measured, q.drift_measured / p.drift_measured)
            for p, q in pairs
            if p.drift_measured and q.drift_measured
        ]
        rows.append((one, other, len(pairs), max(mae, default=None), max(drift, default=None)))
    columns = ("run", "other run", "points", "largest gap of MAE (%)", "largest ratio of drift")
    return Table(
        "gap", "How far two frontiers of one model are apart", columns, tuple(rows), "Table 6, Max MAE gap"
    )


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


def _key(p: Point) -> tuple[object, ...]:
    return (p.compression_asked, *p.series)
