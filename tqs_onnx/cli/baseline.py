"""`tqs baseline`: one width for every matrix, rounded by a published method, as a real file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

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
from tqs_onnx.cli.planning import calibration_option, opset_option
from tqs_onnx.cli.show import print_json, say
from tqs_onnx.jobs.baseline import BaselineJob, baseline
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rounding.assign import Method, RoundingOptions
from tqs_onnx.verify.gates import parse_gate
from tqs_passes.grids.scales import FREE_ROUNDINGS
from tqs_passes.plan.forms import PROFILES
from tqs_passes.plan.targets import Serving


@click.command("baseline")
@click.argument("model", type=FILE)
@click.option("--method", type=click.Choice(get_args(Method)), required=True, help="How integers are chosen.")
@click.option("--bits", type=click.IntRange(1, 8), required=True, help="Width of every matrix.")
@click.option(
    "--group",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Values of a channel that share a scale; 0: all. Channels that it does not divide keep one.",
)
@data_options
@evaluation_options
@calibration_option
@gate_options
@run_options
@click.option(
    "--damp", type=click.FloatRange(min=0), default=0.01, show_default=True, help="Damping of GPTQ and GPTAQ."
)
@click.option(
    "--scales",
    type=click.Choice(FREE_ROUNDINGS),
    default="mse",
    show_default=True,
    help="Scales that GPTQ, GPTAQ and QEP round on.",
)
@click.option("--alpha", type=float, default=0.25, show_default=True, help="Strength of GPTAQ's correction.")
@click.option("--qep-damp", type=click.FloatRange(min=0), help="Damping of QEP [default: tuned].")
@click.option("--qep-strength", type=float, help="Strength of QEP [default: tuned].")
@click.option("--act-order/--no-act-order", default=True, show_default=True, help="Most active inputs first.")
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    default="fast",
    show_default=True,
    help="Serving profile written into the file.",
)
@opset_option
@click.option("--out", type=FILE, required=True, help="Run directory.")
@force_option
@json_option
def command(
    model: Path,
    method: Method,
    bits: int,
    group: int,
    out: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> int:
    r"""Round MODEL uniformly, as a file to compare with.

    Data-aware methods (gptq, gptaq, qep) are calibrated on the scoring contexts, or on --calibration. Without
    --qep-damp and --qep-strength, qep gets the best of six settings, chosen on contexts held out of these.

    \b
    Example:
      tqs baseline model.onnx --method gptq --bits 3 --rollout rollout.toml --contexts ETTh1.csv.gz --out run
    """
    given = options["qep_damp"], options["qep_strength"]
    job = BaselineJob(
        model=model,
        data=data_files(options),
        out=out,
        bits=bits,
        group=group,
        serving=Serving(groups=(group,) if group else (), opset=options["opset"]),
        rounding=RoundingOptions(
            method=method,
            scales=options["scales"],
            damp=options["damp"],
            act_order=options["act_order"],
            alpha=options["alpha"],
            qep_damp=1.0 if given[0] is None else given[0],
            qep_strength=0.5 if given[1] is None else given[1],
        ),
        tune=given == (None, None),
        profile=options["profile"],
        gates=tuple(parse_gate(text) for text in gate_texts(options)),
        provider=resolve_provider(options["providers"]),
        batch=options["batch"],
        threads=options["threads"],
        force=force,
    )
    require_loadable(model, job.provider)
    outcome = baseline(job, say)
    if as_json:
        print_json(outcome.summary())
    else:
        show_verification(outcome.verification)
        click.echo(f"written: {outcome.emitted} ({outcome.wall_s:.1f} s)")
    return finish(outcome.gates)
