"""`tqs demo`: the main job on the bundled Lorenz-96 surrogate."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import click
import cloup

from tqs_onnx.allocation.budget import Budget
from tqs_onnx.cli.options import FILE, force_option, json_option
from tqs_onnx.cli.quantize import compare_option, report
from tqs_onnx.cli.show import progress
from tqs_onnx.inputs.bundled import demo_files
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.quantize import Job, quantize
from tqs_onnx.refinement.refine import RefineOptions
from tqs_onnx.rounding.assign import RoundingOptions
from tqs_onnx.scoring.plan.options import ScoreOptions

#: Half of the bundled contexts: enough to rank 31 weights, and the demo stays well under a minute on two cores.
_SCORING_CONTEXTS = 16
#: Data-aware rounding measures the responses that it needs itself, so none are measured by scoring; one plan is made.
_OPTIONS = QuantizeOptions(
    score=ScoreOptions(response_bits=()),
    refine=RefineOptions(candidates=1, repair_rounds=0, rounding=RoundingOptions("gptq")),
)


@cloup.command("demo")
@cloup.option(
    "--compression",
    type=float,
    default=4.0,
    show_default=True,
    help="Bytes of the input file over bytes of the output file.",
)
@cloup.option("--out", type=FILE, help="Run directory [default: a new temporary folder].")
@compare_option
@force_option
@json_option
def command(compression: float, out: Path | None, comparing: bool, force: bool, as_json: bool) -> int:
    r"""Quantize the bundled model: a small neural surrogate of the chaotic Lorenz-96 system, rolled out for 40 steps.

    Equivalent to `tqs quantize … --rounding gptq --candidates 1 --repair 0 --response-bits none` with 16 scoring
    contexts: quick, where the defaults compare plans.

    \b
    Example:
      tqs demo
    """
    files = demo_files()
    folder = out or Path(tempfile.mkdtemp(prefix="tqs-demo-"))
    data = DataOptions(files.rollout, files.contexts, files.evaluation, max_contexts=_SCORING_CONTEXTS)
    with progress("score") as tick:
        outcome = quantize(
            Job(files.model, data, folder, replace(_OPTIONS, budget=Budget(compression)), force), tick
        )
    code = report(outcome, comparing=comparing, as_json=as_json)
    if not as_json:
        click.echo(
            "next: run tqs inspect model.onnx on your own model; it drafts the rollout.toml that quantize needs"
        )
    return code
