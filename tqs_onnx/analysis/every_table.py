"""Every table that the files of some runs allow, in the order of the paper."""

from __future__ import annotations

from collections.abc import Mapping

from tqs_onnx.analysis.accuracy import error_table, grid_table, win_table
from tqs_onnx.analysis.allocation import protected_table, size_table, tier_table
from tqs_onnx.analysis.curvature import curvature_table, state_table, weight_curvature_table
from tqs_onnx.analysis.frontiers import gap_table, matched_table, points_table
from tqs_onnx.analysis.growth import growth_table
from tqs_onnx.analysis.sensitivity import (
    agreement_table,
    concentration_table,
    dead_table,
    horizon_table,
    role_table,
    spread_table,
    structure_table,
)
from tqs_onnx.analysis.table import Table
from tqs_onnx.jobs.curvature import Curvature
from tqs_onnx.jobs.pareto import Pareto
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.verify import Verification
from tqs_passes.plan.plan import Plan


def every_table(
    scores: Mapping[str, Scores],
    plans: Mapping[str, Plan],
    verified: Mapping[str, Verification],
    frontiers: Mapping[str, Pareto] | None = None,
    curvatures: Mapping[str, Curvature] | None = None,
) -> tuple[Table, ...]:
    """Return the tables of some runs; those without rows are left out.

    Parameters
    ----------
    scores, plans, verified, frontiers, curvatures : mapping of str
        By run; a run may be in any of them.
    """
    tables = [
        dead_table(scores),
        spread_table(scores),
        concentration_table(scores),
        agreement_table(scores),
        gap_table(frontiers or {}),
        curvature_table(scores, curvatures or {}),
        weight_curvature_table(scores, curvatures or {}),
        state_table(scores, curvatures or {}),
        protected_table(plans, scores),
        growth_table(verified),
        size_table(plans, verified),
        error_table(verified),
        points_table(frontiers or {}),
        matched_table(frontiers or {}),
        *((grid_table(verified), win_table(verified)) if len(verified) > 1 else ()),
        role_table(scores),
        tier_table(plans, scores),
        structure_table(scores),
        horizon_table(scores),
    ]
    return tuple(t for t in tables if t.rows and not (t.key == "concentration" and not scores))
