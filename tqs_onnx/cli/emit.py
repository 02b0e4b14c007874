"""`tqs emit`: write the file a plan describes."""

from __future__ import annotations

from pathlib import Path

import click

from tqs_onnx.allocate.servable import require_served
from tqs_onnx.cli.options import FILE, force_option, json_option
from tqs_onnx.cli.show import print_json
from tqs_onnx.emit import emit
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.run_directory import refuse_overwriting, with_data
from tqs_onnx.rounding.codes_file import codes_beside, codes_path
from tqs_passes.errors import InputError
from tqs_passes.files.model import file_facts
from tqs_passes.plan.plan import ServingTarget, read_plan


@click.command("emit")
@click.argument("model", type=FILE)
@click.option("--plan", "plan_file", type=FILE, required=True, help="plan.json of this model.")
@click.option("--out", type=FILE, required=True, help="The .onnx file to write.")
@click.option(
    "--target",
    type=click.Choice([t.value for t in ServingTarget]),
    help="Refuse the plan if this cannot serve it [default: the plan's own target].",
)
@force_option
@json_option
def command(model: Path, plan_file: Path, out: Path, target: str | None, force: bool, as_json: bool) -> None:
    r"""Write MODEL at the precisions of a plan. Same model and plan give the same bytes.

    \b
    Example:
      tqs emit model.onnx --plan run/plan.json --out run/model.tqs.onnx
    """
    source = open_source(model)
    refuse_overwriting(with_data(out), [*source.files, plan_file, codes_path(plan_file)])
    if out.exists() and not force:
        raise InputError("exists", where=str(out), todo="Choose another --out, or give --force")
    plan = read_plan(plan_file)
    if plan.source_sha256 != source.sha256:
        raise InputError(
            "the plan is for another model", where=str(plan_file), todo="Allocate for this model"
        )
    require_served(plan, source, ServingTarget(target) if target else plan.target)
    emit(source.lifted, plan, out, codes_beside(plan_file, plan))
    n_bytes = file_facts(out).n_bytes
    if as_json:
        print_json(
            {
                "out": str(out),
                "bytes_in": source.facts.n_bytes,
                "bytes_out": n_bytes,
                "bytes_planned": plan.n_bytes,
            }
        )
        return
    click.echo(
        f"{out}: {n_bytes:,} bytes (planned {plan.n_bytes:,}), {source.facts.n_bytes / n_bytes:.3f} times smaller"
    )
