"""`tqs score`: measure the sensitivity of every weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import cloup

from tqs_onnx.cli import flags as table
from tqs_onnx.cli.flag import Flag
from tqs_onnx.cli.options import (
    FILE,
    data_files,
    flag_options,
    force_option,
    json_option,
    out_option,
    quantize_options,
)
from tqs_onnx.cli.show import print_json, print_table, progress, say
from tqs_onnx.jobs.single import ScoreJob, estimate_files, score_files
from tqs_onnx.scoring.estimate import Estimate
from tqs_onnx.scoring.plan.probe import ProbeKind
from tqs_onnx.scoring.scores import Scores, Status, spearman

_BOTH = "both"
_PROBE = replace(
    table.PROBE,
    help="Kind of perturbation; both: scores.json for the quant probe, scores.gauss.json for the gauss probe.",
    kind=click.Choice([*(k.value for k in ProbeKind), _BOTH]),
)
FLAGS: tuple[Flag, ...] = (
    *table.DATA,
    *(_PROBE if flag is table.PROBE else flag for flag in table.SCORING),
    *(*table.RUN, *table.ENGINE),
)


@cloup.command("score")
@cloup.argument("model", type=FILE)
@flag_options(
    FLAGS,
    everyday=(table.ROLLOUT, table.CONTEXTS, table.STEPS, table.MAX_CONTEXTS),
    more=(
        out_option("Run directory for scores.json and scores.csv."),
        cloup.option(
            "--dry-run", is_flag=True, help="Only estimate the cost of scoring, from one timed rollout."
        ),
        cloup.option(
            "--top",
            type=click.IntRange(min=0),
            default=20,
            show_default=True,
            help="Number of weights shown.",
        ),
        force_option,
        json_option,
    ),
)
def command(
    model: Path, out: Path, top: int, dry_run: bool, force: bool, as_json: bool, **options: Any
) -> None:
    r"""Perturb one weight of MODEL at a time, roll out, and measure how its error grows.

    Measurements are stored in the run directory as they arrive: run the same command again to resume after a stop.

    \b
    Example:
      tqs score model.onnx --rollout rollout.toml --contexts contexts.npz --out run
    """
    kinds = [k.value for k in ProbeKind] if options["probe"] == _BOTH else [options["probe"]]
    chosen = [quantize_options(options | {"probe": kind}, FLAGS) for kind in kinds]
    runs = tuple(c.score for c in chosen)
    job = ScoreJob(model, data_files(options), out, runs, chosen[0].run, chosen[0].roles, force)
    if dry_run:
        _show_estimates(estimate_files(job), as_json=as_json)
        return
    with progress("score") as tick:
        found = score_files(job, tick)
    for scores in found:
        say(_summary(scores))
        for w in (w for w in scores.weights if w.unseen):
            say(f"unseen: {w.label}: {w.unseen}")
    agreement = spearman(*found) if len(found) == 2 else None
    if as_json:
        counts = {s.value: sum(w.status is s for w in found[0].weights) for s in Status}
        unseen = {w.label: w.unseen for w in found[0].weights if w.unseen}
        files = {"scores": str(out / "scores.json"), "csv": str(out / "scores.csv")}
        document = {**files, **counts, "unseen_parts": unseen}
        print_json(document if len(found) == 1 else {**document, "spearman": agreement})
        return
    for scores in found:
        _show(scores, top)
    if len(found) == 2:
        click.echo(
            "Spearman of the quant and the gauss ranking: "
            + ("not defined, fewer than three scores in common" if agreement is None else f"{agreement:.3f}")
        )


def _show_estimates(found: Sequence[Estimate], *, as_json: bool) -> None:
    total = sum(e.time_s for e in found)
    if as_json:
        print_json({"time_s": total, "probes": [asdict(e) for e in found]})
        return
    for e in found:
        click.echo(
            f"{e.rollouts} rollouts of {e.rollout_s:.3g} s, {e.chunk} contexts per call, in {e.sessions} sessions "
            f"({e.how}, {e.build_s:.2g} s each to build): about {e.time_s:.3g} s and {e.memory_bytes / 1e6:.0f} MB"
        )
        where = {"device": "", "memory": " in host memory", "file": " in a temporary file, not counted"}
        in_files = e.contexts_in_files_bytes
        beside = f" and {in_files / 1e6:.0f} MB in temporary files" if in_files else ""
        click.echo(
            f"memory: weights {e.weights_bytes / 1e6:.0f} MB, contexts {e.contexts_bytes / 1e6:.0f} MB{beside}, a call "
            f"{e.chunk_bytes / 1e6:.0f} MB, nominal rollout {e.nominal_bytes / 1e6:.0f} MB{where[e.nominal_in]}"
        )


def _summary(scores: Scores) -> str:
    counts = {s.value: sum(w.status is s for w in scores.weights) for s in Status}
    parts = [", ".join(f"{n} {name}" for name, n in counts.items() if n)]
    parts.append(f"noise floor {scores.noise_floor:.3g}, rounding floor {scores.rounding_floor:.3g}")
    bent = sum(w.is_linear is False for w in scores.weights)
    if bent:
        parts.append(f"{bent} respond nonlinearly; their predictions will be inaccurate")
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
    if not scores.activations:
        return
    print_table(
        ["input of", "γ_task", f"γ(T={scores.horizons[-1]})", "growth", "‖δx‖", "drift"],
        [
            [
                *(a.label, a.gamma_task, a.gamma[-1] if a.gamma else None, a.growth, a.delta_norm),
                math.sqrt(a.energy / scores.n_values) if a.finite else math.inf,
            ]
            for a in sorted(scores.activations, key=lambda a: (-a.energy, a.weight))[:top]
        ],
        title=f"inputs rounded to 8 bits at every call, the largest drift first of {len(scores.activations)}",
    )
