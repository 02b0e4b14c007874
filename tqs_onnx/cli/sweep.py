"""`tqs sweep`: many targets from one set of scores."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from tqs_onnx.allocate.objective import Objective
from tqs_onnx.allocate.request import request_for, require_contexts_of
from tqs_onnx.allocate.solver.algorithm2 import Solver
from tqs_onnx.cli.options import (
    FILE,
    data_files,
    data_options,
    evaluation_options,
    force_option,
    json_option,
    run_options,
)
from tqs_onnx.cli.planning import plan_options, planning, rounding_options, serving
from tqs_onnx.cli.planning import tiers as tiers_of
from tqs_onnx.cli.show import print_json, print_table, say
from tqs_onnx.inputs.data import read_data
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.frontier import Axis, Sweeper, trace
from tqs_onnx.jobs.pareto import Pareto
from tqs_onnx.jobs.run_directory import run_directory
from tqs_onnx.refine.joint_drift import Place
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rounding.assign import RoundingOptions
from tqs_onnx.score.measure.store import RESULTS_NAME, Results
from tqs_onnx.score.scores import read_scores
from tqs_onnx.verify.verify import Bench
from tqs_passes.errors import InfeasibleError, InputError

T = TypeVar("T", bound=str)


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
@click.option("--gamma-min-values", help="Several thresholds of γ_task, e.g. none,-0.5,0.")
@click.option("--solvers", help="Several allocators, e.g. mckp,greedy,greedy-top (Table 3).")
@click.option("--objectives", help="Several objectives, e.g. energy,paper,local.")
@data_options
@evaluation_options
@plan_options
@rounding_options
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
    gamma_min_values: str | None,
    solvers: str | None,
    objectives: str | None,
    out: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> int:
    r"""Write and measure MODEL at many compressions, reusing one sweep of scores.

    Lists of tier sets, FP32 fractions, thresholds, allocators or objectives are combined: every combination is written
    and measured at every compression, in one table. With the objective measured, responses are kept in the store beside
    the scores, and measured once.

    \b
    Example:
      tqs sweep model.onnx --scores run/scores.json --rollout rollout.toml --contexts ETTh1.csv.gz \
        --compressions 2,4,8,16 --out frontier
    """
    chosen = planning(options)
    axis = Axis(
        compressions=_numbers(compressions, "--compressions", 0.0),
        tier_sets=tuple(tiers_of(options, part) for part in tier_sets.split(";") if part.strip())
        if tier_sets
        else (tiers_of(options),),
        p_fp32=_numbers(p_fp32_values, "--p-fp32-values", -1.0) if p_fp32_values else (chosen.p_fp32,),
        gamma_min=_thresholds(gamma_min_values) if gamma_min_values else (chosen.gamma_min,),
        solvers=_named(solvers, get_args(Solver), "--solvers") if solvers else (chosen.solver,),
        objectives=_named(objectives, tuple(Objective), "--objectives")
        if objectives
        else (chosen.objective,),
    )
    rounding = RoundingOptions(method=options["rounding"])
    source = open_source(model)
    known = read_scores(scores)
    data = read_data(data_files(options), source)
    require_contexts_of(known, data.spec, data.scoring)
    provider, batch, threads = resolve_provider(options["providers"]), options["batch"], options["threads"]
    bench = Bench(data.spec, data.evaluation, known.sigma, provider, batch, threads)
    place = Place(
        source.lifted,
        source.survey,
        data.spec,
        data.scoring,
        known.sigma,
        provider,
        batch,
        threads,
        data.calibration,
    )
    store = scores.with_name(RESULTS_NAME)
    with (
        run_directory(out, ["pareto.json", "pareto.csv"], force=force) as begin,
        Results(store if store.exists() else out / RESULTS_NAME) as results,
    ):
        sweeper = Sweeper(
            source,
            lambda tiers: request_for(
                source, known, options["profile"], tiers, serving(options), rounding.free
            ),
            chosen,
            rounding,
            place,
            bench,
            results,
        )
        if results.note:
            say(results.note)
        begin()
        pareto = trace(sweeper, axis, out, say)
    if as_json:
        print_json({"out": str(out), **pareto.model_dump()})
        return _code(pareto)
    print_table(
        ["file", "asked", "compression", "bytes", "unspent", *_DRIFTS, "degradation %"],
        [
            [
                p.name,
                p.compression_asked,
                p.compression,
                p.n_bytes,
                "saturated" if p.saturated else p.unspent_bytes,
                p.drift_predicted,
                p.drift_calibrated,
                p.drift_joint,
                p.drift_measured,
                p.degradation,
            ]
            for p in pareto.points
        ],
        title="drift: predicted (single weights added), calibrated (by one joint rollout), joint (scoring contexts), "
        "measured (the file)",
    )
    if pareto.spearman is not None:
        click.echo(f"Spearman of predicted and measured drift {pareto.spearman:.3f}")
    for what, ratio in (
        ("predicted", pareto.worst_ratio),
        ("calibrated", pareto.worst_calibrated_ratio),
        ("joint", pareto.worst_joint_ratio),
    ):
        if ratio is not None:
            click.echo(f"worst ratio of {what} and measured drift {ratio:.2f}")
    return _code(pareto)


def _code(pareto: Pareto) -> int:
    """Return the exit code: that of a budget that cannot be met where none of them can."""
    return 0 if any(p.n_bytes is not None for p in pareto.points) else InfeasibleError.exit_code


_DRIFTS = ("predicted", "calibrated", "joint", "measured")


def _numbers(text: str, option: str, above: float) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text!r} is not a list of numbers", todo="Write e.g. 2,4,8") from error
    if any(not v > above for v in values):
        raise InputError(f"{option} {text!r} holds a number that is too small")
    return values


def _thresholds(text: str) -> tuple[float | None, ...]:
    parts = [part.strip().lower() for part in text.split(",")]
    return tuple(None if part == "none" else _numbers(part, "--gamma-min-values", -inf)[0] for part in parts)


def _named(text: str, known: tuple[T, ...], option: str) -> tuple[T, ...]:
    by_name = {str(value): value for value in known}
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in by_name:
            raise InputError(f"{option} {name!r} is unknown", todo=f"Choose from {', '.join(by_name)}")
    return tuple(by_name[name] for name in names)
