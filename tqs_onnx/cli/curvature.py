"""`tqs curvature`: Hessian and Fisher of every weight and the growth of the state's error, to hold against γ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from tqs_onnx.analysis.curvature import curvature_table, state_table
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
from tqs_onnx.cli.show import print_json, print_table, progress
from tqs_onnx.jobs.curvature import CURVATURE_NAME, CurvatureJob, curvature
from tqs_onnx.jobs.run_directory import refuse_overwriting
from tqs_onnx.scoring.scores import read_scores
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text

FLAGS = (*table.DATA, *table.EVALUATION, *table.RUN)


@cloup.command("curvature")
@cloup.argument("model", type=FILE)
@flag_options(
    FLAGS,
    everyday=(table.ROLLOUT, table.CONTEXTS, table.EVAL_CONTEXTS),
    required=(table.ROLLOUT, table.CONTEXTS),
    more=(
        cloup.option("--scores", type=FILE, required=True, help="scores.json of this model."),
        cloup.option("--plan", type=FILE, help="plan.json whose rounding the error of the inputs takes."),
        out_option(f"Folder for {CURVATURE_NAME}, e.g. that of the scores."),
        force_option,
        json_option,
    ),
)
def command(
    model: Path, scores: Path, plan: Path | None, out: Path, force: bool, as_json: bool, **options: Any
) -> None:
    r"""Measure the Hessian trace, the error of the inputs and the Fisher trace of every weight of MODEL.

    The Fisher takes two rollouts a weight and needs a truth; the error of the inputs needs --plan. `tqs analyse` holds
    all of them against γ (paper, Figures 4 and 5). The growth of a small error of the state, the model's own Lyapunov
    exponent over the rollout, is measured too.

    \b
    Example:
      tqs curvature model.onnx --scores run/scores.json --plan run/plan.json --rollout rollout.toml \
        --contexts contexts.npz --eval-contexts eval.npz --out run
    """
    target = out / CURVATURE_NAME
    given = data_files(options)
    refuse_overwriting([target], [model, scores, *([plan] if plan else []), *given.read_files.values()])
    if target.exists() and not force:
        raise InputError("already exists", where=str(target), todo="Choose another `out`, or give `force`")
    job = CurvatureJob(model, scores, given, plan, quantize_options(options, FLAGS).run)
    with progress("curvature") as tick:
        found = curvature(job, tick)
    out.mkdir(parents=True, exist_ok=True)
    write_text(target, found.model_dump_json(indent=2) + "\n")
    known = {"run": read_scores(scores)}
    tables = (curvature_table(known, {"run": found}), state_table(known, {"run": found}))
    if as_json:
        print_json({"out": str(target), **{t.key: t.to_dict() for t in tables}})
        return
    for shown in tables:
        print_table(shown.columns, shown.rows, left=2, title=shown.title)
    click.echo(f"written: {target}")
