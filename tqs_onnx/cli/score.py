"""`tqs score`: measure the sensitivity of every weight."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from tqs_onnx.cli.options import FILE, data_files, data_options, force_option, json_option, run_options
from tqs_onnx.cli.roles import role_option, with_given_roles
from tqs_onnx.cli.scoring import engine_options, probe_option, probe_settings, sweep_options
from tqs_onnx.cli.show import print_json, print_table, progress, say
from tqs_onnx.inputs.data import read_spec
from tqs_onnx.inputs.source import open_source, require_scorable
from tqs_onnx.jobs.run_directory import run_directory
from tqs_onnx.rollout.contexts.load import load_contexts
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.rollout.spec.check import unjudged
from tqs_onnx.score.estimate import Estimate, estimate
from tqs_onnx.score.measure.store import RESULTS_NAME
from tqs_onnx.score.plan.options import Blocks, EarlyStop, SweepOptions
from tqs_onnx.score.plan.probe import ProbeKind
from tqs_onnx.score.plan.sweep_plan import plan_sweep
from tqs_onnx.score.score import sweep
from tqs_onnx.score.scores import Scores, Status, spearman
from tqs_passes.files.atomic import write_text


@click.command("score")
@click.argument("model", type=FILE)
@data_options
@probe_option("both")
@probe_settings
@run_options
@click.option("--per-channel", is_flag=True, help="Probes round with one scale per channel, not per tensor.")
@click.option(
    "--blocks",
    "rule",
    help="Score sets of weights: pattern:REGEX, nodes:N, nodes:A-B,C-D, stored:N, prefix:DEPTH, or auto "
    "(residual chains).",
)
@click.option(
    "--block-score",
    type=click.Choice(["joint", "mean"]),
    default="joint",
    show_default=True,
    help="Perturb a block's members at once, or take the mean of their own scores.",
)
@click.option(
    "--early-stop",
    type=click.FloatRange(min=0, min_open=True),
    help="End a rollout when γ_task moves by no more than that over --early-window steps.",
)
@click.option(
    "--early-window", type=click.IntRange(min=1), default=3, show_default=True, help="Steps of --early-stop."
)
@click.option("--group-test", is_flag=True, help="Settle families of weights that look dead by one rollout.")
@click.option("--dead-below", type=float, help="Weights with γ_task at or below it are dead [paper: -50].")
@click.option(
    "--dead-at-minimum", is_flag=True, help="Weights below the floor that tie at the lowest γ_task are dead."
)
@click.option("--max-memory", type=click.FloatRange(min=1), help="Megabytes; contexts are chunked to fit.")
@click.option("--dry-run", is_flag=True, help="Only say what the sweep would take, by one timed rollout.")
@role_option
@engine_options
@click.option("--out", type=FILE, required=True, help="Run directory: scores.json and scores.csv go there.")
@click.option("--top", type=click.IntRange(min=0), default=20, show_default=True, help="Weights shown.")
@force_option
@json_option
def command(
    model: Path, out: Path, top: int, dry_run: bool, force: bool, as_json: bool, **options: Any
) -> None:
    r"""Perturb one weight of MODEL at a time, roll out, and measure how its error grows.

    What is measured is kept in the run directory as it arrives: run the same command again to go on after a stop.

    \b
    Example:
      tqs score model.onnx --rollout rollout.toml --contexts contexts.npz --out run
    """
    kinds = [k.value for k in ProbeKind] if options["probe"] == "both" else [options["probe"]]
    runs = [_chosen(options, kind) for kind in kinds]
    source = with_given_roles(open_source(model), options["roles"])
    require_scorable(source)
    require_loadable(model, runs[0].provider)
    files = data_files(options)
    spec = read_spec(files, source)
    contexts = load_contexts(
        files.contexts, spec, source.signature, split="validation", limit=files.max_contexts
    )
    for note in (*unjudged(spec, source.signature), *contexts.notes):
        say(f"note: {note}")
    if dry_run:
        plans = [plan_sweep(source.lifted, source.survey, spec, contexts, source.sha256, run) for run in runs]
        _show_estimates([estimate(plan) for plan in plans], as_json=as_json)
        return
    names = [_stem(run, first=run is runs[0]) for run in runs]
    found: list[Scores] = []
    with run_directory(out, [f"{n}.{kind}" for n in names for kind in ("json", "csv")], force=force) as begin:
        for run in runs:
            with progress("score") as tick:
                scores = sweep(
                    source.lifted,
                    source.survey,
                    spec,
                    contexts,
                    source.sha256,
                    run,
                    tick,
                    store=out / RESULTS_NAME,
                    say=say,
                )
            found.append(scores)
        begin()
        for name, scores in zip(names, found, strict=True):
            write_text(out / f"{name}.json", scores.to_json())
            write_text(out / f"{name}.csv", scores.to_csv())
    for scores in found:
        say(_summary(scores))
    agreement = spearman(*found) if len(found) == 2 else None
    if as_json:
        counts = {s.value: sum(w.status is s for w in found[0].weights) for s in Status}
        document = {"scores": str(out / "scores.json"), "csv": str(out / "scores.csv"), **counts}
        print_json(document if len(found) == 1 else {**document, "spearman": agreement})
        return
    for scores in found:
        _show(scores, top)
    if len(found) == 2:
        click.echo(
            "Spearman of the quant and the gauss ranking: "
            + ("not defined, fewer than three scores in common" if agreement is None else f"{agreement:.3f}")
        )


def _chosen(options: dict[str, Any], kind: str) -> SweepOptions:
    base = sweep_options({**options, "probe": kind})
    return replace(
        base,
        probe=replace(base.probe, per_channel=options["per_channel"]),
        blocks=None if options["rule"] is None else Blocks(options["rule"], options["block_score"]),
        early_stop=None
        if options["early_stop"] is None
        else EarlyStop(options["early_stop"], options["early_window"]),
        group_test=options["group_test"],
        dead_below=options["dead_below"],
        dead_at_minimum=options["dead_at_minimum"],
        max_memory=None if options["max_memory"] is None else int(1e6 * options["max_memory"]),
    )


def _show_estimates(found: list[Estimate], *, as_json: bool) -> None:
    total = sum(e.time_s for e in found)
    if as_json:
        print_json({"time_s": total, "probes": [asdict(e) for e in found]})
        return
    for e in found:
        click.echo(
            f"{e.rollouts} rollouts of {e.rollout_s:.3g} s, {e.chunk} contexts a call, in {e.sessions} sessions "
            f"({e.how}, {e.build_s:.2g} s each to build): about {e.time_s:.3g} s and {e.memory_bytes / 1e6:.0f} MB"
        )


def _stem(run: SweepOptions, *, first: bool) -> str:
    return "scores" if first else f"scores.{run.probe.kind.value}"


def _summary(scores: Scores) -> str:
    counts = {s.value: sum(w.status is s for w in scores.weights) for s in Status}
    parts = [", ".join(f"{n} {name}" for name, n in counts.items() if n)]
    parts.append(f"noise floor {scores.noise_floor:.3g}, of rounding {scores.rounding_floor:.3g}")
    bent = sum(w.is_linear is False for w in scores.weights)
    if bent:
        parts.append(f"{bent} respond not linearly: predictions from their scores will be off")
    if scores.rollouts_saved > 0:
        parts.append(f"{100 * scores.rollouts_saved:.0f} % of the model calls saved")
    return "; ".join(parts)


def _show(scores: Scores, top: int) -> None:
    alive = sorted(
        (w for w in scores.weights if w.gamma_task is not None),
        key=lambda w: (-(w.gamma_task or 0.0), w.weight),
    )
    joint: dict[str, int] = {}
    for w in alive:
        joint[w.block] = joint.get(w.block, 0) + 1
    shown = [w for i, w in enumerate(alive) if not w.block or w.block not in {v.block for v in alive[:i]}]
    print_table(
        ["weight", "γ_task", "± s.e.", f"γ(T={scores.horizons[-1]})", "growth", "A_max", "‖δθ‖"],
        [
            [
                f"{w.block} ({joint[w.block]} weights)" if w.block else w.label,
                w.gamma_task,
                w.gamma_task_stderr,
                w.gamma[-1] if w.gamma else None,
                w.growth,
                w.a_max,
                w.delta_norm,
            ]
            for w in shown[:top]
        ],
        title=f"most sensitive of {len(alive)} weights, {scores.probe.kind.value} probe, "
        f"horizons {', '.join(map(str, scores.horizons))} steps",
    )
