"""`tqs sweep`: many targets from one set of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tqs_onnx.cli.options import (
    FILE,
    data_files,
    data_options,
    evaluation_options,
    force_option,
    json_option,
    plan_options,
    planning,
    run_options,
    serving,
)
from tqs_onnx.cli.options import tiers as tiers_of
from tqs_onnx.cli.show import print_json, print_table, say
from tqs_onnx.data import read_data
from tqs_onnx.frontier import Axis, trace
from tqs_onnx.joint import Place
from tqs_onnx.request import request_for
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.run_directory import run_directory
from tqs_onnx.score.store import read_scores
from tqs_onnx.source import open_source
from tqs_onnx.verify.verify import Bench
from tqs_passes.errors import InputError
from tqs_passes.tier import Tier, parse_tiers


@click.command("sweep")
@click.argument("model", type=FILE)
@click.option("--scores", type=FILE, required=True, help="scores.json of this model.")
@click.option(
    "--compressions",
    default="2,4,8,10.67,16",
    show_default=True,
    help="Targets, input file over output file, comma-separated.",
)
@click.option(
    "--tier-sets",
    help="Several tier sets, separated by ';', e.g. 'FP32,BF16,INT8,INT4,INT2;FP32,BF16,INT8,INT4' (A.15).",
)
@click.option("--p-fp32-values", help="Several FP32 fractions, e.g. 0.02,0.10 (Table 3).")
@data_options
@evaluation_options
@plan_options
@run_options
@click.option("--out", type=FILE, required=True, help="Run directory.")
@force_option
@json_option
def command(
    model: Path,
    scores: Path,
    compressions: str,
    tier_sets: str | None,
    p_fp32_values: str | None,
    out: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    r"""Write and measure MODEL at many compressions, reusing one sweep of scores.

    \b
    Example:
      tqs sweep model.onnx --scores run/scores.json --rollout rollout.toml --contexts ETTh1.csv.gz \
        --compressions 2,4,8,16 --out frontier
    """
    chosen = planning(options)
    axis = Axis(
        compressions=_numbers(compressions, "--compressions", 0.0),
        tier_sets=_tier_sets(tier_sets, options),
        p_fp32=_numbers(p_fp32_values, "--p-fp32-values", -1.0)
        if p_fp32_values
        else (chosen.protected_share,),
    )
    source = open_source(model)
    known = read_scores(scores)
    data = read_data(data_files(options), source)
    provider, batch, threads = resolve_provider(options["providers"]), options["batch"], options["threads"]
    bench = Bench(data.spec, data.evaluation, known.sigma, provider, batch, threads)
    place = Place(
        source.lifted, source.survey, data.spec, data.scoring, known.sigma, provider, batch, threads
    )
    with run_directory(out, ["pareto.json", "pareto.csv"], force=force):
        pareto = trace(
            source,
            lambda tiers: request_for(source, known, options["profile"], tiers, serving(options)),
            axis,
            chosen,
            place,
            bench,
            out,
            say,
        )
    if as_json:
        print_json({"out": str(out), **pareto.model_dump()})
        return
    print_table(
        ["file", "asked", "compression", "bytes", "predicted", "joint", "measured", "degradation %"],
        [
            [
                p.name,
                p.compression_asked,
                p.compression,
                p.n_bytes,
                p.drift_predicted,
                p.drift_joint,
                p.drift_measured,
                p.degradation,
            ]
            for p in pareto.points
        ],
        title="drift: predicted (single weights added), joint (scoring contexts), measured (the file)",
    )
    if pareto.spearman is not None:
        click.echo(f"Spearman of predicted and measured drift {pareto.spearman:.3f}")
    if pareto.worst_ratio is not None:
        click.echo(f"worst ratio of predicted and measured drift {pareto.worst_ratio:.2f}")


def _numbers(text: str, option: str, above: float) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text!r} is not a list of numbers", todo="Write e.g. 2,4,8") from error
    if any(not v > above for v in values):
        raise InputError(f"{option} {text!r} holds a number that is too small")
    return values


def _tier_sets(text: str | None, options: dict[str, Any]) -> tuple[tuple[Tier, ...], ...]:
    if not text:
        return (tiers_of(options),)
    return tuple(parse_tiers(part) for part in text.split(";") if part.strip())
