"""The points of a frontier, and how well the predictions rank and size the measured drift.

The sum of the errors of single weights underestimates their joint effect. One joint rollout measures by how much: take
the ratio joint / added at the point of median added drift of a series (same tiers, solver, objective …), and multiply
the added drift of all its points by it. This calibrated prediction needs no further rollout for another target.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.stats import spearmanr

from tqs_onnx.allocation.objective import RankBy
from tqs_onnx.shown import Shown
from tqs_passes.errors import InputError
from tqs_passes.files.text import LARGE, read_text

_FEWEST_RANKED = 3


class PointErrors(BaseModel):
    """The errors of one variable at one point, in its native unit.

    Attributes
    ----------
    unit : str
    drift : float
        In σ.
    mae_from_fp32 : float
    mae_fp32, mae, rmse_fp32, rmse, degradation : float or None
        Against the truth; None without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    unit: str
    drift: float
    mae_from_fp32: float
    mae_fp32: float | None
    mae: float | None
    rmse_fp32: float | None
    rmse: float | None
    degradation: float | None


class Point(BaseModel):
    """One target of the frontier.

    Attributes
    ----------
    name : str
        Stem of its files.
    compression_asked : float
    compression : float or None
        Of the written file; None if no file that small can be written.
    n_bytes : int or None
    unspent_bytes : int or None
        Bytes of the budget that the file does not use.
    tiers : str
        Tier set, e.g. ``FP32,FP16,INT8,INT4,INT2``.
    p_fp32 : float
    gamma_min : float or None
    objective, solver : str
    rank_by : str
        Which γ counted.
    scores : str
        Name of the scores that allocated it; empty if the sweep had only one set of scores.
    found_by : str or None
        The solver's own report, including failures.
    chosen : str or None
        The plan that was chosen of those compared on held-out contexts; None if no others were compared.
    drift_added, drift_calibrated, drift_predicted, drift_measured : float or None
        In order: the sum of the errors of single weights; that sum calibrated by one joint rollout of the series; all
        weights together on contexts that chose no integers (see `Prediction`); the file on the evaluation contexts.
    predicted_low, predicted_high : float or None
        Bounds of a 90 % bootstrap interval of the predicted drift over contexts.
    degradation : float or None
        Of the worst variable, percent; None without truth.
    speedup : float or None
        The budget of time: how many times faster than FP32; None without.
    latency, latency_predicted : float or None
        Time of one call over FP32's, measured and predicted; None without a budget of time.
    allocate_s : float
        Seconds the allocation took, including its measurements.
    calibrate_s, emit_s, evaluate_s : float
        Seconds that joint repair and rounding, writing the file, and its rollout took.
    variables : dict of str to PointErrors
        By variable; empty if the rollout is not finite or there is no file.
    saturated : bool
        More bytes would not help: every weight already has the tier of least cost.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    compression_asked: float
    compression: float | None = None
    n_bytes: int | None = None
    unspent_bytes: int | None = None
    tiers: str
    p_fp32: float
    gamma_min: float | None
    objective: str
    solver: str
    rank_by: str = RankBy.TASK.value
    scores: str = ""
    found_by: str | None = None
    chosen: str | None = None
    drift_added: float | None = None
    drift_calibrated: float | None = None
    drift_predicted: float | None = None
    predicted_low: float | None = None
    predicted_high: float | None = None
    drift_measured: float | None = None
    degradation: float | None = None
    speedup: float | None = None
    latency: float | None = None
    latency_predicted: float | None = None
    allocate_s: float
    calibrate_s: float = 0.0
    emit_s: float = 0.0
    evaluate_s: float = 0.0
    variables: dict[str, PointErrors] = {}
    saturated: bool = False

    @property
    def settings(self) -> tuple[object, ...]:
        """What its series was allocated by, besides the scores."""
        return (
            self.tiers,
            self.p_fp32,
            self.gamma_min,
            self.objective,
            self.solver,
            self.rank_by,
            self.speedup,
        )

    @property
    def series(self) -> tuple[object, ...]:
        """The settings that all points of one series share."""
        return (*self.settings, self.scores)


class Pareto(BaseModel, Shown):
    """The file `pareto.json`: the points, and how well the predictions rank and size them.

    Attributes
    ----------
    version : int
    source_sha256 : str
    points : tuple of Point
    spearman : float or None
        Rank correlation of the added and the measured drift; None with fewer than three points.
    worst_added_ratio, worst_calibrated_ratio, worst_predicted_ratio : float or None
        Largest of measured/predicted and its inverse over the points, for the added, the calibrated and the predicted
        drift.
    on_made_contexts : bool
        Whether the drift was measured on contexts that were made from the model itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[2] = 2
    source_sha256: str
    points: tuple[Point, ...]
    spearman: float | None
    worst_added_ratio: float | None
    worst_calibrated_ratio: float | None
    worst_predicted_ratio: float | None
    on_made_contexts: bool = False

    def facts(self) -> dict[str, str]:
        """Return the compression and drift of every point."""
        return {
            p.name: "cannot be met"
            if p.n_bytes is None
            else f"{p.compression:.3g}x, {p.n_bytes:,} bytes, drift "
            + ("not finite" if p.drift_measured is None else f"{p.drift_measured:.4g}")
            + (" on made contexts" if self.on_made_contexts else "")
            for p in self.points
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the content of pareto.json."""
        return self.model_dump(mode="json")

    def to_csv(self) -> str:
        """Return one row per point."""
        stream = io.StringIO()
        columns = [name for name in Point.model_fields if name != "variables"]
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(p.model_dump(exclude={"variables"}) for p in self.points)
        return stream.getvalue()


def read_pareto(path: Path) -> Pareto:
    """Read `pareto.json`.

    Raises
    ------
    InputError
        The file cannot be read, or is not a frontier of this version.
    """
    try:
        return Pareto.model_validate_json(read_text(path, LARGE))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(
            "is not a frontier of this version", where=str(path), todo="Run tqs sweep again"
        ) from error


def pareto_of(source_sha256: str, points: Sequence[Point], *, on_made_contexts: bool = False) -> Pareto:
    """Return the points with their calibrated predictions, and how well they were predicted."""
    factors = {
        series: _factor([p for p in points if p.series == series]) for series in {p.series for p in points}
    }
    calibrated = tuple(
        p if p.drift_added is None
        else p.model_copy(update={"drift_calibrated": p.drift_added * factors[p.series]})
        for p in points
    )  # fmt: skip
    added = [(p.drift_added, p.drift_measured) for p in calibrated if p.drift_added and p.drift_measured]
    rank = None
    if len(added) >= _FEWEST_RANKED:
        rank = float(spearmanr([a for a, _ in added], [b for _, b in added]).statistic)
    return Pareto(
        source_sha256=source_sha256,
        points=calibrated,
        spearman=rank,
        worst_added_ratio=_worst((p.drift_added, p.drift_measured) for p in calibrated),
        worst_calibrated_ratio=_worst((p.drift_calibrated, p.drift_measured) for p in calibrated),
        worst_predicted_ratio=_worst((p.drift_predicted, p.drift_measured) for p in calibrated),
        on_made_contexts=on_made_contexts,
    )


def _factor(series: Sequence[Point]) -> float:
    """Return joint / added drift at the point of median added drift; 1 if no point has both."""
    ratios = sorted(
        (p.drift_added, p.drift_predicted / p.drift_added)
        for p in series
        if p.drift_added and p.drift_predicted and p.drift_predicted < float("inf")
    )
    return ratios[len(ratios) // 2][1] if ratios else 1.0


def _worst(pairs: Iterable[tuple[float | None, float | None]]) -> float | None:
    return max((max(a / b, b / a) for a, b in pairs if a and b), default=None)
