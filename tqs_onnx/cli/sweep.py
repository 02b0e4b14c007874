"""`tqs sweep`: many targets from one set of scores."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import cloup

from tqs_onnx.allocation.objective import Objective, RankBy
from tqs_onnx.allocation.solver.algorithm2 import Solver
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
from tqs_onnx.jobs.axis import Axis
from tqs_onnx.jobs.frontier import SweepJob, sweep
from tqs_onnx.jobs.pareto import Pareto
from tqs_onnx.report.words import picks_of
from tqs_onnx.rounding.assign import Method
from tqs_passes.errors import InfeasibleError, InputError

T = TypeVar("T", bound=str)
FLAGS = (
    *(*table.DATA, *table.EVALUATION, *table.CALIBRATION, *table.PLANNING, *table.SERVING, *table.REFINING),
    *(table.ROLE, *table.RUN),
)


@cloup.command("sweep")
@cloup.argument("model", type=FILE)
@flag_options(
    FLAGS,
    everyday=(table.ROLLOUT, table.CONTEXTS, table.EVAL_CONTEXTS, table.ROUNDING, table.PROFILE),
    more=(
        cloup.option(
            "--scores",
            type=FILE,
            required=True,
            multiple=True,
            help="scores.json of this model, on these contexts. Repeated: further scores, by another probe or on other "
            "contexts; each allocates files of its own.",
        ),
        cloup.option(
            "--compressions",
            help="Target compressions (input file over output file), comma-separated [default: 2,4,8,10.67,16, unless "
            "--weight-compressions are given].",
        ),
        cloup.option(
            "--weight-compressions",
            help="Targets as bytes of the weights over their stored bytes (the paper's C), e.g. 8,16.",
        ),
        cloup.option(
            "--speedups",
            help="Budgets of time beside those of bytes, e.g. 1,1.5,2,3: how many times faster than FP32.",
        ),
        out_option(),
        force_option,
        json_option,
    ),
)
@cloup.option_group(
    "Ablations: every combination is a separate series",
    cloup.option(
        "--tier-sets",
        help="Several tier sets, separated by ';', e.g. 'FP32,BF16,INT8,INT4,INT2;FP32,BF16,INT8,INT4' (A.15).",
    ),
    cloup.option("--p-fp32-values", help="Several FP32 fractions, e.g. 0.02,0.10 (Table 3)."),
    cloup.option("--gamma-min-values", help="Several thresholds of γ_task, e.g. none,-0.5,0."),
    cloup.option("--solvers", help="Several allocators, e.g. mckp,greedy,greedy-top (Table 3)."),
    cloup.option("--objectives", help="Several objectives, e.g. energy,paper,local."),
    cloup.option("--rankings", help="Several γ to go by, e.g. gamma-task,gamma,gamma-task-mean (A.13)."),
)
@cloup.option_group(
    "Baselines: uniform files, and every series within their bytes",
    cloup.option("--baselines", help="Methods, e.g. rtn,gptq,gptaq,qep (Figure 1)."),
    cloup.option("--baseline-bits", default="2,3,4", show_default=True, help="Widths of the baselines."),
)
def command(
    model: Path,
    scores: tuple[Path, ...],
    compressions: str | None,
    weight_compressions: str | None,
    speedups: str | None,
    tier_sets: str | None,
    p_fp32_values: str | None,
    gamma_min_values: str | None,
    solvers: str | None,
    objectives: str | None,
    rankings: str | None,
    baselines: str | None,
    baseline_bits: str,
    out: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> int:
    r"""Write and measure MODEL at many compressions, from one set of scores.

    Every file goes through the same stages as in `tqs quantize`. Lists of tier sets, FP32 fractions, thresholds,
    allocators, objectives or scores are combined: every combination is written and measured at every compression, in
    one table. Scores from other contexts allocate on those and are measured on these: `tqs analyse --table gap` says
    what that costs. With the objective `measured`, responses are stored beside the scores, and measured once.

    \b
    Example:
      tqs sweep model.onnx --scores run/scores.json --rollout rollout.toml --contexts ETTh1.csv.gz \
        --compressions 2,4,8,16 --out frontier
    """
    sets = [part for part in (tier_sets or "").split(";") if part.strip()]
    axis = Axis(
        compressions=_numbers(
            compressions or ("" if weight_compressions else _COMPRESSIONS), "--compressions", 0.0
        ),
        weight_compressions=_numbers(weight_compressions, "--weight-compressions", 0.0)
        if weight_compressions
        else (),
        tier_sets=tuple(quantize_options(options | {"tiers": part}, FLAGS).tiers for part in sets),
        p_fp32=_numbers(p_fp32_values, "--p-fp32-values", -1.0) if p_fp32_values else (),
        gamma_min=_thresholds(gamma_min_values) if gamma_min_values else (),
        solvers=_named(solvers, get_args(Solver), "--solvers") if solvers else (),
        objectives=_named(objectives, tuple(Objective), "--objectives") if objectives else (),
        speedups=_numbers(speedups, "--speedups", 0.0) if speedups else (),
        rankings=_named(rankings, tuple(RankBy), "--rankings") if rankings else (),
        scores=scores[1:],
        baselines=_named(baselines, get_args(Method), "--baselines") if baselines else (),
        baseline_bits=_widths(baseline_bits),
    )
    job = SweepJob(model, scores[0], data_files(options), out, axis, quantize_options(options, FLAGS), force)
    with progress("sweep", "files") as tick:
        pareto = sweep(job, tick)
    if as_json:
        print_json({"out": str(out), **pareto.model_dump()})
        return _code(pareto)
    show_pareto(pareto)
    return _code(pareto)


def show_pareto(pareto: Pareto) -> None:
    """Print the points of a frontier, and how well they were predicted."""
    timed = any(p.latency is not None for p in pareto.points)
    print_table(
        [
            *("file", "asked", "compression", "bytes", "unspent", *_DRIFTS, "degradation %"),
            *(("latency asked", "predicted", "measured") if timed else ()),
        ],
        [
            [
                p.name,
                p.compression_asked,
                p.compression,
                p.n_bytes,
                "saturated" if p.saturated else p.unspent_bytes,
                p.drift_added,
                p.drift_calibrated,
                p.drift_predicted,
                p.drift_measured,
                p.degradation,
                *((p.speedup and 1 / p.speedup, p.latency_predicted, p.latency) if timed else ()),
            ]
            for p in pareto.points
        ],
        title="drift: added (sum of single weights), calibrated (by one joint rollout), "
        "predicted (all weights together), measured (the file)"
        + (", all on made contexts" if pareto.on_made_contexts else ""),
    )
    for pick in picks_of(pareto):
        click.echo(f"{pick.name}: {pick.point.name}, {pick.cost}")
    if pareto.spearman is not None:
        click.echo(f"Spearman of added and measured drift {pareto.spearman:.3f}")
    for what, ratio in (
        ("added", pareto.worst_added_ratio),
        ("calibrated", pareto.worst_calibrated_ratio),
        ("predicted", pareto.worst_predicted_ratio),
    ):
        if ratio is not None:
            click.echo(f"worst ratio of {what} and measured drift {ratio:.2f}")


def _code(pareto: Pareto) -> int:
    """Return the exit code: that of an infeasible budget if no budget can be met, else 0."""
    return 0 if any(p.n_bytes is not None for p in pareto.points) else InfeasibleError.exit_code


_COMPRESSIONS = "2,4,8,10.67,16"
_DRIFTS = ("added", "calibrated", "predicted", "measured")


def _numbers(text: str, option: str, above: float) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InputError(f"{option} {text!r} is not a list of numbers", todo="Write e.g. 2,4,8") from error
    if any(not above < v < inf for v in values):
        what = "finite" if above == -inf else f"above {above:g}"
        raise InputError(f"{option} {text!r} contains a number that is not {what}", todo="Correct it")
    return values


def _widths(text: str) -> tuple[int, ...]:
    values = _numbers(text, "--baseline-bits", 0.0)
    if any(v != int(v) or v > 8 for v in values):
        raise InputError(f"--baseline-bits {text!r} contains a width that is not 1 to 8", todo="Correct it")
    return tuple(int(v) for v in values)


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
