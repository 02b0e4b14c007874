"""A run as the report sees it: whatever of its files lie in a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqs_onnx.analysis.every_table import every_table
from tqs_onnx.analysis.table import Table
from tqs_onnx.jobs.curvature import CURVATURE_NAME, Curvature, read_curvature
from tqs_onnx.jobs.pareto import Pareto, read_pareto
from tqs_onnx.jobs.run_directory import resolved
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_onnx.verification.manifest import Manifest, read_manifest
from tqs_onnx.verification.traces import TRACES_NAME, Trace, read_traces
from tqs_passes.errors import InputError
from tqs_passes.plan.plan import Plan, read_plan

#: Written by `tqs score` for both probes.
GAUSS_NAME = "scores.gauss.json"


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a run directory holds; at least one of its files.

    Parameters
    ----------
    name : str
        Tells it from the other runs of a report.
    folder : Path
    scores : Scores or None
    gauss : Scores or None
        Scores of the gauss probe, beside those of the quant probe.
    plan : Plan or None
    manifest : Manifest or None
    pareto : Pareto or None
    curvature : Curvature or None
    traces : dict of str to Trace
        Empty if none were kept.
    time_after : tuple of int
        Number of time values of the traces after 0, 1, … steps.
    """

    name: str
    folder: Path
    scores: Scores | None
    gauss: Scores | None
    plan: Plan | None
    manifest: Manifest | None
    pareto: Pareto | None
    curvature: Curvature | None
    traces: dict[str, Trace]
    time_after: tuple[int, ...]


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run directory.

    Raises
    ------
    InputError
        It holds none of the files that a report shows, or one that cannot be read.
    """
    if not folder.is_dir():
        raise InputError("is not a run directory", where=str(folder), todo="Give a folder that a job wrote")
    held = {n: folder / n for n in ("scores.json", "plan.json", "manifest.json", "pareto.json")}
    here = {n: path for n, path in held.items() if path.is_file()}
    if not here:
        raise InputError(
            "holds no scores.json, plan.json, manifest.json or pareto.json",
            where=str(folder),
            todo="Give a folder that tqs quantize, build, baseline or sweep wrote",
        )
    traces: dict[str, Trace] = {}
    after: tuple[int, ...] = ()
    if (folder / TRACES_NAME).is_file():
        traces, after = read_traces(folder / TRACES_NAME)
    return Run(
        name or folder.resolve().name,
        folder,
        read_scores(here["scores.json"]) if "scores.json" in here else None,
        read_scores(folder / GAUSS_NAME) if (folder / GAUSS_NAME).is_file() else None,
        read_plan(here["plan.json"]) if "plan.json" in here else None,
        read_manifest(here["manifest.json"]) if "manifest.json" in here else None,
        read_pareto(here["pareto.json"]) if "pareto.json" in here else None,
        read_curvature(folder / CURVATURE_NAME) if (folder / CURVATURE_NAME).is_file() else None,
        traces,
        after,
    )


def read_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Read run directories, each under the shortest end of its path that tells it from the others.

    Raises
    ------
    InputError
        See `read_run`; or a directory is given twice.
    """
    whole = [resolved(folder) for folder in folders]
    if len(set(whole)) < len(whole):
        twice = next(p for i, p in enumerate(whole) if p in whole[:i])
        raise InputError("is given twice", where=str(twice), todo="Give every run once")
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(whole):
        depth += 1
    names = ["/".join(path.parts[-depth:]) for path in whole]
    return tuple(read_run(folder, name) for folder, name in zip(folders, names, strict=True))


def tables_of(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return every table of the paper that the files of these runs allow; those without rows are left out."""
    return every_table(
        all_scores(runs),
        {r.name: r.plan for r in runs if r.plan is not None},
        {r.name: r.manifest.verification for r in runs if r.manifest is not None},
        {r.name: r.pareto for r in runs if r.pareto is not None},
        {r.name: r.curvature for r in runs if r.curvature is not None},
    )


def all_scores(runs: Sequence[Run]) -> dict[str, Scores]:
    """Return the scores of every run by its name, those of the gauss probe under ``NAME (gauss)``."""
    found: dict[str, Scores] = {}
    for run in runs:
        if run.scores is not None:
            found[run.name] = run.scores
        if run.gauss is not None:
            found[f"{run.name} (gauss)"] = run.gauss
    return found
