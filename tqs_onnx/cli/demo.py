"""`tqs demo`: the main job on the bundled Lorenz-96 surrogate."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from tqs_onnx.allocate.budget import Budget
from tqs_onnx.cli.options import FILE, force_option, json_option
from tqs_onnx.cli.quantize import report
from tqs_onnx.cli.show import progress
from tqs_onnx.inputs.bundled import demo_files
from tqs_onnx.inputs.data import DataFiles
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.quantize import Job, quantize

#: Half of those bundled: enough to rank 31 weights, and the demo stays well under a minute on two cores.
_SCORING_CONTEXTS = 16


@click.command("demo")
@click.option(
    "--compression", type=float, default=4.0, show_default=True, help="Input file over output file."
)
@click.option(
    "--compare", "comparing", is_flag=True, help="Also measure uniform W2, W3, W4 and every objective."
)
@click.option("--out", type=FILE, help="Run directory [default: a new temporary folder].")
@force_option
@json_option
def command(compression: float, comparing: bool, out: Path | None, force: bool, as_json: bool) -> int:
    r"""Quantize the bundled model: a small neural surrogate of the chaotic Lorenz-96 system.

    \b
    Example:
      tqs demo
    """
    files = demo_files()
    job = Job(
        model=files.model,
        data=DataFiles(
            rollout=files.rollout,
            contexts=files.contexts,
            evaluation=files.evaluation,
            max_contexts=_SCORING_CONTEXTS,
        ),
        out=out or Path(tempfile.mkdtemp(prefix="tqs-demo-")),
        options=QuantizeOptions(Budget(compression)),
        force=force,
    )
    with progress("score") as tick:
        outcome = quantize(job, tick)
    return report(outcome, comparing=comparing, as_json=as_json)
