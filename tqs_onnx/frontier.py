"""The frontier: one sweep of scores, many targets; a new target costs an allocation, not a sweep.

Every point is emitted and its file rolled out. Beside the additive prediction stands the joint drift on the scoring
contexts (all weights of the plan at once, before a file exists).
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from scipy.stats import spearmanr

from tqs_onnx.allocate.costing import PlanOptions, Request
from tqs_onnx.allocate.planning import plan_within
from tqs_onnx.emit import emit
from tqs_onnx.joint import Joint, Place
from tqs_onnx.source import Source
from tqs_onnx.verify.evaluate import measure_drift, measure_truth
from tqs_onnx.verify.verify import Bench, roll_file
from tqs_passes.errors import InfeasibleError
from tqs_passes.model_io import file_facts, write_text
from tqs_passes.tier import Tier


class Point(BaseModel):
    """One target of the frontier.

    Attributes
    ----------
    name : str
        Stem of its files.
    compression_asked : float
    compression : float or None
        Of the file written; None where no file that small can be written.
    n_bytes : int or None
    tiers : str
        Tier set, e.g. ``FP32,FP16,INT8,INT4,INT2``.
    p_fp32 : float
    drift_predicted, drift_joint, drift_measured : float or None
        Additive prediction; all weights together on the scoring contexts; the file on the evaluation contexts.
    degradation : float or None
        Of the worst variable, percent; None without truth.
    allocate_s : float
        Seconds the allocation took.
    saturated : bool
        The plan leaves budget unspent: every weight is as fine as the tiers allow.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    compression_asked: float
    compression: float | None
    n_bytes: int | None
    tiers: str
    p_fp32: float
    drift_predicted: float | None
    drift_joint: float | None
    drift_measured: float | None
    degradation: float | None
    allocate_s: float
    saturated: bool


class Pareto(BaseModel):
    """The file `pareto.json`: the points, and how well prediction ranks and sizes them.

    Attributes
    ----------
    version : int
    source_sha256 : str
    points : tuple of Point
    spearman : float or None
        Between additive prediction and measured drift; None with fewer than three points.
    worst_ratio : float or None
        Largest of measured/predicted and its inverse over the points, additive prediction.
    worst_joint_ratio : float or None
        The same for the joint drift.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    source_sha256: str
    points: tuple[Point, ...]
    spearman: float | None
    worst_ratio: float | None
    worst_joint_ratio: float | None


@dataclass(frozen=True, slots=True)
class Axis:
    """What is varied.

    Parameters
    ----------
    compressions : tuple of float
    tier_sets : tuple of tuple of Tier
        Bottom-tier ablation (A.15).
    p_fp32 : tuple of float
        FP32 fraction ablation.
    """

    compressions: tuple[float, ...]
    tier_sets: tuple[tuple[Tier, ...], ...]
    p_fp32: tuple[float, ...]


def trace(
    source: Source,
    request_of: Callable[[tuple[Tier, ...]], Request],
    axis: Axis,
    options: PlanOptions,
    scoring: Place,
    bench: Bench,
    out: Path,
    say: Callable[[str], None],
) -> Pareto:
    """Plan, write and measure every target; write plans, files, `pareto.json` and `pareto.csv` into `out`.

    Parameters
    ----------
    source : Source
    request_of : callable
        Returns the candidates for a tier set.
    axis : Axis
    options : PlanOptions
    scoring : Place
        The scoring contexts.
    bench : Bench
        The evaluation contexts.
    out : Path
        Existing folder.
    say : callable
        Called with one line a point.
    """
    nominal = roll_file(source.path, bench, keep_other=False)
    joint = Joint(scoring)
    points: list[Point] = []
    for tiers in axis.tier_sets:
        request = request_of(tiers)
        for share in axis.p_fp32:
            for compression in axis.compressions:
                name = _name(source.path.stem, compression, tiers, share, axis)
                chosen = replace(options, p_fp32=share)
                start = time.perf_counter()
                try:
                    plan = plan_within(request, int(request.size.source_bytes / compression), chosen)
                except InfeasibleError as error:
                    say(f"{name}: {error}")
                    points.append(_missing(name, compression, tiers, share, time.perf_counter() - start))
                    continue
                spent_s = time.perf_counter() - start
                file = out / f"{name}.onnx"
                emit(source.lifted, plan, file)
                write_text(out / f"{name}.plan.json", plan.to_json())
                ours = roll_file(file, bench, keep_other=False)
                drift = measure_drift(
                    nominal.outputs, ours.outputs, bench.spec, bench.contexts, bench.sigma, nominal.time_after
                ).total
                truth = measure_truth(
                    nominal.outputs, ours.outputs, bench.spec, bench.contexts, nominal.time_after
                )
                n_bytes = file_facts(file).n_bytes
                points.append(
                    Point(
                        name=name,
                        compression_asked=compression,
                        compression=source.facts.n_bytes / n_bytes,
                        n_bytes=n_bytes,
                        tiers=",".join(tiers),
                        p_fp32=share,
                        drift_predicted=plan.predicted_drift,
                        drift_joint=joint.drift(plan.assignments),
                        drift_measured=drift,
                        degradation=max((e.degradation for e in truth.values()), default=None),
                        allocate_s=spent_s,
                        saturated=all(
                            a.tier is m.candidates[0].assignment.tier
                            for a, m in zip(plan.assignments, request.menus, strict=True)
                        ),
                    )
                )
                say(f"{name}: {n_bytes} bytes, drift {drift:.4g}, allocated in {spent_s:.2f} s")
    pareto = _summary(source.sha256, points)
    write_text(out / "pareto.json", pareto.model_dump_json(indent=2) + "\n")
    write_text(out / "pareto.csv", _csv(points))
    return pareto


def _name(stem: str, compression: float, tiers: tuple[Tier, ...], share: float, axis: Axis) -> str:
    parts = [stem, f"C{compression:g}"]
    if len(axis.tier_sets) > 1:
        parts.append(f"{tiers[-1].value.lower()}")
    if len(axis.p_fp32) > 1:
        parts.append(f"p{share:g}")
    return ".".join(parts)


def _missing(name: str, compression: float, tiers: tuple[Tier, ...], share: float, spent_s: float) -> Point:
    return Point(
        name=name,
        compression_asked=compression,
        compression=None,
        n_bytes=None,
        tiers=",".join(tiers),
        p_fp32=share,
        drift_predicted=None,
        drift_joint=None,
        drift_measured=None,
        degradation=None,
        allocate_s=spent_s,
        saturated=False,
    )


def _summary(sha256: str, points: Sequence[Point]) -> Pareto:
    added = [(p.drift_predicted, p.drift_measured) for p in points if p.drift_predicted and p.drift_measured]
    jointly = [(p.drift_joint, p.drift_measured) for p in points if p.drift_joint and p.drift_measured]
    rank = None
    if len(added) >= 3:
        rank = float(spearmanr([a for a, _ in added], [b for _, b in added]).statistic)
    return Pareto(
        source_sha256=sha256,
        points=tuple(points),
        spearman=rank,
        worst_ratio=max((max(a / b, b / a) for a, b in added), default=None),
        worst_joint_ratio=max((max(a / b, b / a) for a, b in jointly), default=None),
    )


def _csv(points: Sequence[Point]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(Point.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(p.model_dump() for p in points)
    return stream.getvalue()
