"""`tqs quantize`: the main job, which runs all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloup

from tqs_onnx.cli import flags as table
from tqs_onnx.cli.options import (
    FILE,
    data_files,
    flag_options,
    force_option,
    json_option,
    out_option,
    quantize_options,
)
from tqs_onnx.cli.outcome import finish, show_outcome, show_plan, show_verification
from tqs_onnx.cli.show import print_json, print_table, progress
from tqs_onnx.jobs.compare import Row, compare
from tqs_onnx.jobs.quantize import Job, Outcome, quantize

compare_option = cloup.option(
    "--compare",
    "comparing",
    is_flag=True,
    help="Also measure uniform W2, W3, W4, and every objective at the same bytes.",
)


@cloup.command("quantize")
@cloup.argument("model", type=FILE)
@flag_options(
    table.QUANTIZE,
    everyday=(
        *(table.ROLLOUT, table.CONTEXTS, table.EVAL_CONTEXTS, table.COMPRESSION, table.ROUNDING),
        *(table.PROFILE, table.MAX_DRIFT),
    ),
    more=(out_option(), force_option, json_option, compare_option),
)
def command(model: Path, comparing: bool, out: Path, force: bool, as_json: bool, **options: Any) -> int:
    r"""Make MODEL smaller: score, allocate, emit and verify in one go.

    \b
    Example:
      tqs quantize model.onnx --rollout rollout.toml --contexts ETTh1.csv.gz --compression 8 --out run
    """
    job = Job(model, data_files(options), out, quantize_options(options), force)
    with progress("score") as tick:
        outcome = quantize(job, tick)
    return report(outcome, comparing=comparing, as_json=as_json)


def report(outcome: Outcome, *, comparing: bool, as_json: bool) -> int:
    """Print the result of a job, compare objectives if requested, and return the exit code."""
    rows = compare(outcome.source, outcome.request, outcome.bed) if comparing else ()
    if as_json:
        extra = {"compare": [_row(r) for r in rows]} if rows else {}
        print_json({**outcome.to_dict(), **extra})
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
            title="\nat the file bytes of uniform rounding, on the evaluation contexts"
            + (" (made)" if outcome.verification.on_made_contexts else ""),
        )
    show_outcome(outcome.verification, outcome.emitted, outcome.wall_s, outcome.scores)
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
