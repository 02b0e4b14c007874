"""`tqs verify`: roll out an emitted file and compare it with its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from tqs_onnx.cli import flags as table
from tqs_onnx.cli.chart import error_chart
from tqs_onnx.cli.options import (
    FILE,
    data_files,
    flag_options,
    force_option,
    json_option,
    quantize_options,
)
from tqs_onnx.cli.outcome import finish, show_verification
from tqs_onnx.cli.show import print_json
from tqs_onnx.jobs.options import job_settings
from tqs_onnx.jobs.single import VerifyJob, verify_files
from tqs_onnx.verification.verdict import verdict

FLAGS = (*table.DATA, *table.EVALUATION, *table.GATES, table.SAVE_TRACES, *table.RUN)


@cloup.command("verify")
@cloup.argument("emitted", type=FILE)
@flag_options(
    FLAGS,
    everyday=(table.ROLLOUT, table.CONTEXTS, table.EVAL_CONTEXTS, table.MAX_DRIFT),
    more=(
        cloup.option("--source", type=FILE, required=True, help="The source model of the file."),
        cloup.option("--plan", type=FILE, required=True, help="The plan of the file."),
        cloup.option("--scores", type=FILE, required=True, help="scores.json; its σ per variable is reused."),
        cloup.option("--manifest", type=FILE, help="Path of manifest.json [default: beside the file]."),
        force_option,
        json_option,
    ),
)
def command(
    emitted: Path,
    source: Path,
    plan: Path,
    scores: Path,
    manifest: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> int:
    r"""Roll out EMITTED under stock server options, compare it with its source, and check gates (exit 3).

    \b
    Example:
      tqs verify run/model.tqs.onnx --source model.onnx --plan run/plan.json --scores run/scores.json \
        --rollout rollout.toml --contexts contexts.npz --eval-contexts eval.npz --max-drift 0.1
    """
    target = manifest or emitted.with_name("manifest.json")
    files, chosen = data_files(options), quantize_options(options, FLAGS)
    settings = job_settings("verify", source, files, target.parent, chosen)
    job = VerifyJob(
        *(emitted, source, plan, scores, files, target, chosen.gates, chosen.run, settings, force),
        timing=chosen.timing,
        save_traces=chosen.save_traces,
    )
    found = verify_files(job)
    if as_json:
        print_json({"manifest": str(target), **found.to_dict()})
    else:
        show_verification(found.verification)
        for line in (*error_chart(found.verification), verdict(found.verification)):
            click.echo(line)
    return finish(found.gates)
