"""Frontiers of several sweeps: every point, and how far two are apart (paper, Figure 1, Tables 1, 3, 6 and 11)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from tqs_onnx.analysis.table import Cell, Table
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
                p.drift_predicted,
            ),
            *(p.drift_joint, p.drift_measured, p.degradation, p.allocate_s),
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
            "drift predicted",
        ),
        *("drift joint", "drift measured", "degradation %", "seconds to allocate"),
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


def _key(p: Point) -> tuple[object, ...]:
    return (p.compression_asked, *p.series)
