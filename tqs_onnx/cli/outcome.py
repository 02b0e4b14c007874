"""Prints the result of a job and derives the exit code from its gates."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from pathlib import Path

import click

from tqs_onnx.cli.chart import error_chart, figures, sensitivity_chart
from tqs_onnx.cli.show import kinds_line, print_table, say
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.errors import VariableErrors
from tqs_onnx.verification.gates import value_text
from tqs_onnx.verification.manifest import GateResult
from tqs_onnx.verification.verdict import verdict
from tqs_onnx.verification.verify import Verification
from tqs_passes.errors import GateError
from tqs_passes.plan.plan import Basis, Plan
from tqs_passes.tier import Tier

_COLUMNS = (
    *("variable", "drift", "MAE from FP32", "MAE FP32", "MAE", "RMSE FP32", "RMSE", "degradation %"),
    "95 % interval",
)


def show_verification(v: Verification) -> None:
    """Print the results of a verification."""
    click.echo(
        f"{v.bytes_in:,} → {v.bytes_out:,} bytes: {v.compression:.3f} times smaller "
        f"(weights alone {v.weight_compression:.3f})"
    )
    click.echo(f"bytes: {kinds_line(v.bytes_by_kind)}")
    made = "made " if v.on_made_contexts else ""
    line = f"drift {v.drift.total:.4g} over {v.n_contexts} {made}contexts (95th percentile {v.drift.p95:.4g})"
    if v.predicted_drift is not None:
        line += f"; predicted {v.prediction or format(v.predicted_drift, '.4g')}"
    click.echo(line)
    rows: list[list[object]] = []
    for name, drift in v.drift.per_variable.items():
        e = v.errors[name]
        row: list[object] = [
            f"{name} [{e.unit}]" if e.unit not in ("", "1") else name,
            drift,
            e.against_fp32.mae,
        ]
        if e.fp32 is not None and e.file is not None:
            row += [e.fp32.mae, e.file.mae, e.fp32.rmse, e.file.rmse, e.degradation, _interval(e)]
        rows.append(row + [None] * (len(_COLUMNS) - len(row)))
    if len(rows) > 1 or v.truth:
        print_table(_COLUMNS, rows)
    for name, change in v.outputs.items():
        click.echo(f"output {name} outside the trajectory: relative change {change:.3g}")
    extra = f"; dead weights together {v.dead_drift:.3g}" if v.dead_drift is not None else ""
    if v.tf32_gap is not None:
        extra += f"; the provider's own settings (TF32) add {v.tf32_gap:.3g}"
    click.echo(
        f"{v.n_decoded} weights decode bit for bit as planned; the runtime adds drift {v.runtime_gap:.3g}{extra}"
    )
    show_timing(v)
    for note in v.notes:
        say(f"note: {note}")


def show_timing(v: Verification) -> None:
    """Print load time, memory and latency of both files, if they were timed."""
    if v.timing is None:
        return
    t, rows = v.timing, list[list[object]]()
    rows.append(["load ms", t.fp32.load_ms, t.file.load_ms, t.load])
    rows.append(["memory MB", t.fp32.memory_mb, t.file.memory_mb, t.memory])
    rows.append(["peak memory MB", t.fp32.peak_mb, t.file.peak_mb, t.peak])
    for batch, ratio in t.latency.items():
        rows.append([f"ms at batch {batch}", t.fp32.latency_ms[batch], t.file.latency_ms[batch], ratio])
    print_table(["timing", "FP32", "this file", "of FP32's"], rows)


def _interval(errors: VariableErrors) -> str | None:
    if errors.degradation_low is None or errors.degradation_high is None:
        return None
    return f"{errors.degradation_low:.3g} to {errors.degradation_high:.3g}"


def show_outcome(v: Verification, emitted: Path, wall_s: float, scores: Scores | None = None) -> None:
    """Print the end of a job: the charts, four figures, the path of the file, what to do next, and the verdict."""
    for line in (*(sensitivity_chart(scores) if scores is not None else ()), *error_chart(v)):
        click.echo(line)
    for line in figures(v):
        click.echo(line)
    click.echo(f"written: {emitted} ({wall_s:.1f} s)")
    click.echo(f"look at it: tqs report {shlex.quote(str(emitted.parent))}")
    click.echo(verdict(v))


def finish(results: tuple[GateResult, ...]) -> int:
    """Report failed gates on stderr and return the exit code."""
    for result in results:
        state = "holds" if result.passed else "FAILED"
        say(f"gate {result.title}: {value_text(result.gate, result.value)} {state}")
    return 0 if all(r.passed for r in results) else GateError.exit_code


_BASIS: dict[Basis, str] = {
    "scoring": "all weights together on the scoring contexts",
    "held-out": "all weights together on contexts held out of the rounding",
    "cross-fit": "all weights together, rounded on each half of the contexts and judged on the other",
}
_ADDED = "sum of the errors of single weights as if uncorrelated, which underestimates their joint effect"


def show_plan(plan: Plan) -> None:
    """Print a plan's tiers and totals."""
    counts, values, stored = Counter[str](), Counter[str](), Counter[str]()
    order = list(Tier)
    for a in sorted(plan.assignments, key=lambda a: (order.index(a.tier), bool(a.rows))):
        name = f"{a.tier.value} by rows" if a.rows else a.tier.value
        counts[name] += 1
        values[name] += math.prod(a.shape)
        stored[name] += a.n_bytes
    rows = [[name, counts[name], values[name], stored[name]] for name in counts]
    print_table(["tier", "weights", "values", "bytes"], rows)
    groups = {a.block for a in plan.assignments if a.block}
    if groups:
        click.echo(
            f"{len(groups)} blocks of {sum(bool(a.block) for a in plan.assignments)} weights share their tiers"
        )
    line = f"file {plan.n_bytes:,} bytes, {plan.source_bytes / plan.n_bytes:.3f} times smaller"
    if plan.prediction is not None:
        line += f"; predicted drift {plan.prediction}, {_BASIS[plan.prediction.basis]}"
    elif plan.predicted_drift is not None:
        line += f"; predicted drift {plan.predicted_drift:.4g}, {_ADDED}"
    click.echo(line)
    if plan.solver is not None:
        proven = "proven optimal" if plan.solver.optimal else f"within {plan.solver.gap:.2%} of the bound"
        click.echo(f"{plan.solver.objective} by {plan.solver.solver}: {proven}")
        unspent = plan.solver.budget_bytes - plan.n_bytes
        why = ": more bytes would not help" if plan.solver.saturated else ""
        click.echo(f"{unspent:,} of {plan.solver.budget_bytes:,} bytes are left unspent{why}")
