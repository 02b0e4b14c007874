"""`tqs quantize`: the main job, all stages in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tqs_onnx.cli.allocate import show_plan
from tqs_onnx.cli.options import (
    FILE,
    data_files,
    data_options,
    evaluation_options,
    force_option,
    gate_options,
    gate_texts,
    json_option,
    run_options,
)
from tqs_onnx.cli.outcome import finish, show_verification
from tqs_onnx.cli.planning import (
    budget_options,
    plan_options,
    planning,
    refine_options,
    refining,
    serving,
    tiers,
)
from tqs_onnx.cli.scoring import engine_options, probe_options, sweep_options
from tqs_onnx.cli.show import print_json, print_table, progress, say
from tqs_onnx.jobs.compare import Row, compare
from tqs_onnx.jobs.quantize import Job, Outcome, quantize
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.verify.gates import parse_gate
from tqs_onnx.verify.verify import Bench


@click.command("quantize")
@click.argument("model", type=FILE)
@data_options
@evaluation_options
@budget_options
@plan_options
@probe_options
@refine_options
@gate_options
@run_options
@engine_options
@click.option(
    "--compare",
    "comparing",
    is_flag=True,
    help="Also measure uniform W2, W3, W4 and every objective at their bytes.",
)
@click.option("--out", type=FILE, required=True, help="Run directory.")
@force_option
@json_option
def command(
    model: Path,
    compression: float | None,
    weight_compression: float | None,
    max_bytes: int | None,
    comparing: bool,
    out: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> int:
    r"""Make MODEL smaller: score, allocate, emit and verify in one go.

    \b
    Example:
      tqs quantize model.onnx --rollout rollout.toml --contexts ETTh1.csv.gz --compression 8 --out run
    """
    job = Job(
        model=model,
        data=data_files(options),
        out=out,
        compression=compression,
        weight_compression=weight_compression,
        max_bytes=max_bytes,
        sweep=sweep_options(options),
        plan=planning(options),
        profile=options["profile"],
        serving=serving(options),
        tiers=tiers(options),
        gates=tuple(parse_gate(text) for text in gate_texts(options)),
        refine=refining(options),
        force=force,
    )
    require_loadable(model, job.sweep.provider)
    with progress("score") as tick:
        outcome = quantize(job, say, tick)
    return report(outcome, job, comparing=comparing, as_json=as_json)


def report(outcome: Outcome, job: Job, *, comparing: bool, as_json: bool) -> int:
    """Print the result of a job, compare when asked to, and return the exit code."""
    rows: tuple[Row, ...] = ()
    if comparing:
        bench = Bench(
            outcome.data.spec,
            outcome.data.evaluation,
            outcome.scores.sigma,
            job.sweep.provider,
            job.sweep.batch,
            job.sweep.threads,
        )
        rows = compare(outcome.source, outcome.request, bench, say)
    if as_json:
        extra = {"compare": [_row(r) for r in rows]} if rows else {}
        print_json({**outcome.summary(), **extra})
        return finish(outcome.gates)
    show_plan(outcome.plan)
    show_verification(outcome.verification)
    if rows:
        print_table(
            ["budget", "method", "bytes", "compression", "drift predicted", "drift measured"],
            [
                [f"W{r.bits}", r.method, r.n_bytes, r.compression, r.drift_predicted, r.drift_measured]
                for r in rows
            ],
            left=2,
            title="\nat the file bytes of uniform rounding, on the evaluation contexts",
        )
    click.echo(f"written: {outcome.emitted} ({outcome.wall_s:.1f} s)")
    return finish(outcome.gates)


def _row(row: Row) -> dict[str, object]:
    return {
        "method": row.method,
        "bits": row.bits,
        "bytes": row.n_bytes,
        "compression": row.compression,
        "drift_predicted": row.drift_predicted,
        "drift_measured": row.drift_measured,
    }
