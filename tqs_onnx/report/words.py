"""What a report says in words: the sentence and four figures at its top, why a weight has its tier, three picks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tqs_onnx.analysis.sensitivity import percentiles
from tqs_onnx.jobs.matched import UNIFORM
from tqs_onnx.jobs.pareto import Pareto, Point
from tqs_onnx.scoring.scores import Scores, Status, WeightScore
from tqs_onnx.verification.errors import VariableErrors
from tqs_onnx.verification.timing import Timing
from tqs_onnx.verification.verdict import change, verdict
from tqs_onnx.verification.verify import Verification
from tqs_passes.plan.plan import Assignment, Plan
from tqs_passes.tier import Tier

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
#: A weight of fewer values gains too little from integers to pay for their scales.
_FEW_VALUES = 512


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the figures at the top: what it is, its value, and what qualifies it."""

    label: str
    value: str
    note: str


def size_text(n_bytes: float) -> str:
    """Return a size with its unit.

    >>> size_text(278519), size_text(12), size_text(1114123)
    ('279 kB', '12 bytes', '1.11 MB')
    """
    power = 0
    while n_bytes >= 1000 and power < len(_UNITS) - 1:
        n_bytes, power = n_bytes / 1000, power + 1
    return f"{n_bytes:.3g} {_UNITS[power]}" if power else f"{n_bytes:.0f} bytes"


def worst_variable(v: Verification) -> tuple[str, VariableErrors] | None:
    """Return the variable that degrades most, with its errors; None without truth."""
    known = [(name, e) for name, e in v.errors.items() if e.degradation is not None]
    return max(known, key=lambda item: item[1].degradation or 0.0, default=None)


def tiles_of(v: Verification) -> tuple[Tile, ...]:
    """Return the four figures of a file: size, drift, worst degradation, latency and memory."""
    size = Tile(
        "Size", f"{v.compression:.3g}× smaller", f"{size_text(v.bytes_in)} → {size_text(v.bytes_out)}"
    )
    kind = "made" if v.on_made_contexts else "evaluation"
    contexts = f"{v.n_contexts} {kind} context{'s' if v.n_contexts != 1 else ''}"
    drift = Tile(
        "Drift from FP32", f"{v.drift.total:.3g} σ", f"95th percentile {v.drift.p95:.3g} σ, {contexts}"
    )
    return size, drift, _degradation_tile(v), _timing_tile(v.timing)


def _timing_tile(timing: Timing | None) -> Tile:
    label = "Latency and peak memory"
    if timing is None:
        return Tile(label, "not measured", "tqs verify can time the file against FP32")
    batch = min(timing.latency)
    peak = "unknown" if timing.peak is None else f"{timing.peak:.2f}×"
    note = f"of FP32's, which takes {timing.fp32.latency_ms[batch]:.3g} ms at batch {batch}"
    return Tile(label, f"{timing.latency[batch]:.2f}× time, {peak} memory", note)


def _degradation_tile(v: Verification) -> Tile:
    label = "Worst degradation"
    worst = worst_variable(v)
    if worst is None:
        made = "made contexts have no truth"
        return Tile(label, "unknown", made if v.on_made_contexts else "the evaluation contexts hold no truth")
    name, e = worst
    percent = e.degradation or 0.0
    value = "∞" if math.isinf(percent) else f"{percent_text(percent)}\u00a0%"
    note = f"MAE of {name}"
    if e.degradation_low is not None and e.degradation_high is not None:
        low, high = percent_text(e.degradation_low), percent_text(e.degradation_high)
        note += f", 95\u00a0% interval {low} to {high}\u00a0%"
    else:
        note += "; too few independent contexts for an interval"
    return Tile(label, value, note)


def percent_text(percent: float) -> str:
    """Return a change in percent with its sign, two digits or whole.

    >>> percent_text(0.642), percent_text(-0.04), percent_text(1394.2)
    ('+0.64', '-0.04', '+1,394')
    """
    return f"{percent:+,.0f}" if abs(percent) >= 10 else f"{percent:+.2g}"


def sentence_of(emitted: str, v: Verification) -> str:
    """Return one sentence: what shipping the file would cost."""
    return f"{emitted} is {verdict(v)}."


def why_tier(a: Assignment, plan: Plan, scores: Scores | None) -> str:
    """Return why a weight has its tier, as far as the plan and the scores tell."""
    score = next((s for s in scores.weights if s.weight == a.weight), None) if scores else None
    return _why(a, plan, score, ranks_of(scores))


def whys(plan: Plan, scores: Scores | None) -> dict[str, str]:
    """Return `why_tier` of every weight of a plan."""
    known = {s.weight: s for s in scores.weights} if scores else {}
    ranks = ranks_of(scores)
    return {a.weight: _why(a, plan, known.get(a.weight), ranks) for a in plan.assignments}


def ranks_of(scores: Scores | None) -> dict[str, tuple[int, int]]:
    """Return (rank, number of alive weights) of every alive weight; rank 1 is the most sensitive."""
    if scores is None:
        return {}
    found = percentiles(scores)
    ordered = sorted(found, key=lambda name: -found[name])
    return {name: (i, len(ordered)) for i, name in enumerate(ordered, 1)}


def _share_text(share: float) -> str:
    return f"{100 * share:.2g} %" if share >= 1e-4 else "under 0.01 %"


_BY_STATUS = {
    Status.DEAD: "dead: rounding it moves no forecast",
    Status.BELOW_FLOOR: "below the floor: it moves forecasts no more than the last bit of the initial state does",
    Status.UNPROBED: "not probed: it rounds without an error",
    Status.OFF_TRAJECTORY: "feeds only outputs outside the trajectory",
    Status.UNSTABLE: "unstable: its probe made the rollout infinite, so it keeps its precision",
}


def _why(a: Assignment, plan: Plan, score: WeightScore | None, ranks: dict[str, tuple[int, int]]) -> str:
    parts: list[str] = []
    if score is not None and score.status is not Status.ALIVE:
        parts.append(_BY_STATUS[score.status])
    if a.weight in ranks:
        rank, n = ranks[a.weight]
        parts.append(f"γ rank {rank} of {n}")
    total = sum(other.cost for other in plan.assignments)
    if total > 0 and a.cost > 0:
        parts.append(
            f"{_share_text(a.cost / total)} of the predicted error for "
            f"{_share_text(a.n_bytes / max(plan.weight_bytes, 1))} of the bytes"
        )
    if not a.tier.is_integer and math.prod(a.shape) < _FEW_VALUES:
        parts.append("too small to gain from integers")
    elif a.tier is Tier.FP32 and plan.solver is not None and plan.solver.p_fp32 > 0:
        parts.append(f"in the {100 * plan.solver.p_fp32:.2g} % of bytes that are protected")
    if a.block:
        parts.append(f"shares its tier with block {a.block}")
    return "; ".join(parts) or "chosen by the solver within the budget"


@dataclass(frozen=True, slots=True)
class Pick:
    """A point of a frontier, by name, and what it costs."""

    name: str
    point: Point
    cost: str


def picks_of(pareto: Pareto) -> tuple[Pick, ...]:
    """Return three points of a frontier: the closest to FP32, the balanced one, the smallest.

    The balanced point lies furthest below the line from the closest to the smallest, in log bytes and log drift.
    """
    known = [p for p in pareto.points if p.n_bytes and p.drift_measured and p.objective != UNIFORM]
    if not known:
        return ()
    closest = min(known, key=lambda p: p.drift_measured or 0.0)
    smallest = min(known, key=lambda p: p.n_bytes or 0)
    chosen = [("closest", closest), ("balanced", _knee(known, closest, smallest)), ("smallest", smallest)]
    return tuple(Pick(name, point, _cost(point)) for name, point in chosen if point is not None)


def _knee(points: Sequence[Point], one: Point, other: Point) -> Point | None:
    def place(p: Point) -> tuple[float, float]:
        return math.log(p.n_bytes or 1), math.log(p.drift_measured or 1.0)

    (x0, y0), (x1, y1) = place(one), place(other)
    if x0 == x1:
        return None

    def below(p: Point) -> float:
        x, y = place(p)
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0) - y

    best = max(points, key=below)
    return best if below(best) > 0 else None


def _cost(p: Point) -> str:
    text = f"{p.compression:.3g}× smaller ({size_text(p.n_bytes or 0)}), drift {p.drift_measured:.2g} σ"
    if p.degradation is not None:
        text += f", MAE of the worst variable {change(p.degradation)}"
    return text
