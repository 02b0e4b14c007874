"""How the result of a job is shown, and what exit code its gates give."""

from __future__ import annotations

import click

from tqs_onnx.cli.show import print_table, say
from tqs_onnx.verify.manifest import GateResult
from tqs_onnx.verify.verify import Verification
from tqs_passes.errors import GateError


def show_verification(v: Verification) -> None:
    """Print what verification found."""
    click.echo(
        f"{v.bytes_in:,} → {v.bytes_out:,} bytes: {v.compression:.3f} times smaller "
        f"(weights alone {v.weight_compression:.3f})"
    )
    line = f"drift {v.drift.total:.4g} over {v.n_contexts} contexts (95th percentile {v.drift.p95:.4g})"
    if v.predicted_drift is not None:
        line += f"; predicted {v.predicted_drift:.4g}"
    click.echo(line)
    click.echo("drift by step: " + ", ".join(f"{d:.3g}" for d in v.drift.per_step))
    rows: list[list[object]] = []
    for name, drift in v.drift.per_variable.items():
        e = v.truth.get(name)
        rows.append(
            [name, drift, *((e.mae_fp32, e.mae, e.rmse_fp32, e.rmse, e.degradation) if e else (None,) * 5)]
        )
    if len(rows) > 1 or v.truth:
        print_table(["variable", "drift", "MAE FP32", "MAE", "RMSE FP32", "RMSE", "degradation %"], rows)
    for name, change in v.outputs.items():
        click.echo(f"output {name} outside the trajectory: relative change {change:.3g}")
    extra = f"; dead weights together {v.dead_drift:.3g}" if v.dead_drift is not None else ""
    click.echo(
        f"{v.n_decoded} weights decode bit for bit as planned; the runtime adds drift {v.runtime_gap:.3g}{extra}"
    )
    for note in v.notes:
        say(f"note: {note}")


def finish(results: tuple[GateResult, ...]) -> int:
    """Report failed gates on stderr and return the exit code."""
    for result in results:
        state = "holds" if result.passed else "FAILED"
        say(f"gate {result.gate}: {result.value:.4g} {state}")
    return 0 if all(r.passed for r in results) else GateError.exit_code
