"""`tqs emit`: write the file of a plan."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from tqs_onnx.cli.options import FILE, force_option, json_option, out_option
from tqs_onnx.cli.show import print_json
from tqs_onnx.jobs.single import emit_files
from tqs_passes.plan.plan import ServingTarget


@cloup.command("emit")
@cloup.argument("model", type=FILE)
@cloup.option("--plan", "plan_file", type=FILE, required=True, help="plan.json of this model.")
@out_option("The .onnx file to write.")
@cloup.option(
    "--target",
    type=click.Choice([t.value for t in ServingTarget]),
    help="Refuse the plan if this target cannot serve it [default: the plan's own target].",
)
@force_option
@json_option
def command(model: Path, plan_file: Path, out: Path, target: str | None, force: bool, as_json: bool) -> None:
    r"""Write MODEL at the precisions of a plan. The same model and plan give the same bytes.

    \b
    Example:
      tqs emit model.onnx --plan run/plan.json --out run/model.tqs.onnx
    """
    made = emit_files(model, plan_file, out, target=ServingTarget(target) if target else None, force=force)
    if as_json:
        print_json(made.to_dict())
        return
    click.echo(
        f"{out}: {made.bytes_out:,} bytes (planned {made.bytes_planned:,}), "
        f"{made.bytes_in / made.bytes_out:.3f} times smaller"
    )
