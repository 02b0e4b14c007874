"""Where plans spend their bytes: by role and tier, by block of the graph, and planned against what lies on the disk."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.verify import Verification
from tqs_passes.plan.plan import Assignment, Plan
from tqs_passes.tier import Tier

_FP32_BITS = 32
#: Tiers that keep a float type: a weight in one of them is protected.
_FLOATS = (Tier.FP64, Tier.FP32, Tier.BF16, Tier.FP16)
_SHOWN = 12


def block_of(label: str) -> str:
    """Return the block of the graph that a weight lies in: its label up to the first number, that number included.

    >>> block_of("layers.3.attn.qkv.weight"), block_of("head.weight"), block_of("W1")
    ('layers.3', 'head', 'W1')
    """
    parts = re.split(r"[./]", label.strip("./"))
    for i, part in enumerate(parts[:-1]):
        if any(c.isdigit() for c in part):
            return ".".join(parts[: i + 1])
    return ".".join(parts[:-1]) or label


def roles_of(scores: Scores | None) -> dict[str, str]:
    """Return the role of every scored weight."""
    return {w.weight: w.role.value for w in scores.weights if w.role} if scores else {}


def tier_table(runs: Mapping[str, Plan], scores: Mapping[str, Scores]) -> Table:
    """Return weights, values and bytes by role and tier, for every run."""
    rows: list[tuple[Cell, ...]] = []
    for run, plan in runs.items():
        roles = roles_of(scores.get(run))
        cells: dict[tuple[str, Tier], list[int]] = {}
        for a in plan.assignments:
            cell = cells.setdefault((roles.get(a.weight, "unknown"), a.tier), [0, 0, 0])
            for i, value in enumerate((1, math.prod(a.shape), a.n_bytes)):
                cell[i] += value
        order = list(Tier)
        for (role, tier), (n, values, stored) in sorted(
            cells.items(), key=lambda item: (item[0][0], order.index(item[0][1]))
        ):
            rows.append((run, role, tier.value, n, values, stored))
    columns = ("run", "role", "tier", "weights", "values", "bytes")
    return Table("tiers", "Tiers by role", columns, tuple(rows), "Table 7, Figure 6")


def protected_table(runs: Mapping[str, Plan], scores: Mapping[str, Scores]) -> Table:
    """Return which matrices every run keeps in a float type, by role."""
    rows: list[tuple[Cell, ...]] = []
    for run, plan in runs.items():
        roles = roles_of(scores.get(run))
        kept = [a for a in plan.assignments if a.tier in _FLOATS and sum(n > 1 for n in a.shape) >= 2]
        for role in sorted({roles.get(a.weight, "unknown") for a in kept}):
            names = [a.label for a in kept if roles.get(a.weight, "unknown") == role]
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            rows.append((run, role, len(names), ", ".join(names[:_SHOWN]) + more))
        if not kept:
            rows.append((run, "none", 0, "no matrix keeps a float type"))
    columns = ("run", "role", "matrices", "which")
    return Table("protected", "Matrices that keep a float type", columns, tuple(rows), "Table 7")


def size_table(plans: Mapping[str, Plan], verified: Mapping[str, Verification]) -> Table:
    """Return the compression that bits alone promise, that of the stored weights, and that of the file on the disk."""
    rows: list[tuple[Cell, ...]] = []
    for run, plan in plans.items():
        values = sum(math.prod(a.shape) for a in plan.assignments)
        bits = sum(math.prod(a.shape) * _bits(a) for a in plan.assignments)
        v = verified.get(run)
        rows.append(
            (
                *(run, values, _FP32_BITS * values / bits if bits else None),
                *((v.weight_compression, v.compression) if v else _planned(plan, values)),
                *(plan.source_bytes, v.bytes_out if v else plan.n_bytes),
            )
        )
    columns = (
        *("run", "values", "allocated C", "weights with scales and tables C", "file C"),
        *("bytes of the source", "bytes of the file"),
    )
    return Table("sizes", "Compression allocated against compression on disk", columns, tuple(rows),
                 "Tables 10 and 26")  # fmt: skip


def _planned(plan: Plan, values: int) -> tuple[float, float]:
    """Return the compression of the weights and of the file as the plan has them."""
    return values * _FP32_BITS / (8 * max(plan.weight_bytes, 1)), plan.source_bytes / plan.n_bytes


def _bits(a: Assignment) -> float:
    if a.rows:
        return sum(int(bits) for bits in a.rows) / len(a.rows)
    return float(a.tier.bits)


def block_shares(plan: Plan) -> dict[str, Counter[Tier]]:
    """Return the number of values of every tier in every block of the graph, in graph order."""
    found: dict[str, Counter[Tier]] = {}
    for a in plan.assignments:
        found.setdefault(block_of(a.label), Counter())[a.tier] += math.prod(a.shape)
    return found
