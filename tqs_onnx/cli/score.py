"""`tqs score`: measure the sensitivity of every weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tqs_onnx.cli.options import (
    FILE,
    data_files,
    data_options,
    force_option,
    json_option,
    probe_options,
    run_options,
    sweep_options,
)
from tqs_onnx.cli.show import print_json, print_table, progress, say
from tqs_onnx.pipeline import read_spec, run_directory
from tqs_onnx.rollout.contexts import load_contexts
from tqs_onnx.score.store import Scores, Status
from tqs_onnx.score.sweep import sweep
from tqs_onnx.source import open_source, require_scorable
from tqs_passes.model_io import write_text


@click.command("score")
@click.argument("model", type=FILE)
@data_options
@probe_options
@run_options
@click.option("--out", type=FILE, required=True, help="Run directory: scores.json and scores.csv go there.")
@click.option("--top", type=click.IntRange(min=0), default=20, show_default=True, help="Weights shown.")
@force_option
@json_option
def command(model: Path, out: Path, top: int, force: bool, as_json: bool, **options: Any) -> None:
    r"""Perturb one weight of MODEL at a time, roll out, and measure how its error grows.

    \b
    Example:
      tqs score model.onnx --rollout rollout.toml --contexts contexts.npz --out run
    """
    source = open_source(model)
    require_scorable(source)
    files = data_files(options)
    spec = read_spec(files, source)
    chosen = sweep_options(options)
    contexts = load_contexts(
        files.contexts, spec, source.signature, split="validation", limit=files.max_contexts
    )
    with run_directory(out, ["scores.json", "scores.csv"], force=force):
        with progress("score") as tick:
            scores = sweep(source.lifted, source.survey, spec, contexts, source.sha256, chosen, tick)
        write_text(out / "scores.json", scores.to_json())
        write_text(out / "scores.csv", scores.to_csv())
    counts = {s.value: sum(w.status is s for w in scores.weights) for s in Status}
    say(
        ", ".join(f"{n} {name}" for name, n in counts.items() if n)
        + f"; noise floor {scores.noise_floor:.3g}"
    )
    if as_json:
        print_json({"scores": str(out / "scores.json"), "csv": str(out / "scores.csv"), **counts})
        return
    _show(scores, top)


def _show(scores: Scores, top: int) -> None:
    alive = sorted(
        (w for w in scores.weights if w.gamma_task is not None),
        key=lambda w: (-(w.gamma_task or 0.0), w.weight),
    )
    print_table(
        ["weight", "γ_task", f"γ(T={scores.horizons[-1]})", "± s.e.", "growth", "A_max", "‖δθ‖"],
        [
            [
                w.label,
                w.gamma_task,
                w.gamma[-1] if w.gamma else None,
                w.gamma_stderr,
                w.growth,
                w.a_max,
                w.delta_norm,
            ]
            for w in alive[:top]
        ],
        title=f"most sensitive of {len(alive)} weights, horizons {', '.join(map(str, scores.horizons))} steps",
    )
