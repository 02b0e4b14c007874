"""`tqs allocate`: spend a byte budget."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import click

from tqs_onnx.allocate.objective import Objective
from tqs_onnx.allocate.plan_within import plan_within
from tqs_onnx.allocate.request import (
    budget_of,
    note_of_opset,
    request_for,
    require_contexts_of,
    require_one_budget,
    source_weight_bytes,
)
from tqs_onnx.allocate.servable import require_served
from tqs_onnx.cli.options import FILE, force_option, json_option, optional_data_options, run_options
from tqs_onnx.cli.planning import (
    budget_options,
    later_refine_options,
    plan_options,
    planning,
    refining,
    serving,
    tiers,
)
from tqs_onnx.cli.show import print_json, print_table, say
from tqs_onnx.inputs.data import DataFiles, read_spec
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.jobs.run_directory import refuse_overwriting
from tqs_onnx.refine.joint_drift import Place
from tqs_onnx.refine.measured_objective import planned
from tqs_onnx.refine.refine import refine
from tqs_onnx.rollout.contexts.load import load_contexts
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rounding.assign import DATA_AWARE
from tqs_onnx.rounding.codes_file import codes_path, write_codes
from tqs_onnx.score.measure.store import RESULTS_NAME, Results
from tqs_onnx.score.scores import Scores, read_scores
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan
from tqs_passes.tier import Tier


@click.command("allocate")
@click.argument("model", type=FILE)
@click.option("--scores", type=FILE, required=True, help="scores.json of this model.")
@budget_options
@plan_options
@later_refine_options
@optional_data_options
@run_options
@click.option("--out", type=FILE, required=True, help="Where to write plan.json.")
@force_option
@json_option
def command(
    model: Path,
    scores: Path,
    compression: float | None,
    max_bytes: int | None,
    weight_compression: float | None,
    out: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    r"""Choose a tier for every weight of MODEL within a byte budget for the whole file.

    The objective measured, a rounding by data and --repair roll out: they need --rollout and --contexts. Integers
    chosen by data go to codes.npz beside the plan.

    \b
    Example:
      tqs allocate model.onnx --scores run/scores.json --compression 8 --out run/plan.json
    """
    source = open_source(model)
    read = [options[name] for name in ("rollout", "contexts", "calibration") if options[name] is not None]
    refuse_overwriting([out, codes_path(out)], [*source.files, scores, *read])
    if out.exists() and not force:
        raise InputError("exists", where=str(out), todo="Choose another --out, or give --force")
    known = read_scores(scores)
    refinement = refining(options)
    rounding = refinement.rounding
    request = request_for(source, known, options["profile"], tiers(options), serving(options), rounding.free)
    require_one_budget(compression, weight_compression, max_bytes)
    budget = budget_of(request.menus, request.size, compression, weight_compression, max_bytes)
    if note := note_of_opset(source, request.serving):
        say(f"note: {note}")
    chosen = planning(options)
    codes: dict[str, Codes] = {}
    if chosen.objective is Objective.MEASURED or rounding.method in DATA_AWARE or refinement.repair_rounds:
        place = _place(source, known, options)
        store = scores.with_name(RESULTS_NAME)
        with Results(store if store.exists() else None) as results:
            if results.note:
                say(results.note)
            plan, request = planned(request, budget, chosen, place, rounding, results, say)
        refined = refine(plan, request, place, chosen, refinement, say)
        plan, codes = refined.plan, refined.codes
    else:
        plan = plan_within(request, budget, chosen)
    require_served(plan, source, plan.target)
    for warning in plan.warnings:
        say(f"warning: {warning}")
    if codes:
        write_codes(codes_path(out), codes)
    write_text(out, plan.to_json())
    if as_json:
        print_json(
            {
                "plan": str(out),
                "n_bytes": plan.n_bytes,
                "compression": plan.source_bytes / plan.n_bytes,
                "weight_compression": source_weight_bytes(request.menus) / max(plan.weight_bytes, 1),
                "predicted_drift": plan.predicted_drift,
                "unspent_bytes": plan.solver.budget_bytes - plan.n_bytes if plan.solver else None,
                "solver": plan.solver.model_dump() if plan.solver else None,
            }
        )
        return
    show_plan(plan)


def _place(source: Source, scores: Scores, options: dict[str, Any]) -> Place:
    """Return where rollouts happen, with the scoring contexts.

    Raises
    ------
    InputError
        There are none, or they do not fit the model.
    """
    if options["rollout"] is None or options["contexts"] is None:
        raise InputError(
            "the objective measured, a rounding by data and --repair need rollouts",
            todo="Give --rollout and --contexts",
        )
    files = DataFiles(
        options["rollout"],
        options["contexts"],
        steps=options["steps"],
        max_contexts=options["max_contexts"],
        calibration=options["calibration"],
    )
    spec = read_spec(files, source)
    scoring = load_contexts(
        files.contexts, spec, source.signature, split="validation", limit=files.max_contexts
    )
    require_contexts_of(scores, spec, scoring)
    return Place(
        source.lifted,
        source.survey,
        spec,
        scoring,
        scores.sigma,
        resolve_provider(options["providers"]),
        options["batch"],
        options["threads"],
        None
        if files.calibration is None
        else load_contexts(
            files.calibration, spec, source.signature, split="train", limit=files.max_contexts
        ),
    )


_ADDED = "errors of single weights added as if uncorrelated, which underrates what they do together"


def show_plan(plan: Plan) -> None:
    """Print a plan's tiers and totals."""
    counts, values, stored = Counter[str](), Counter[str](), Counter[str]()
    order = list(Tier)
    for a in sorted(plan.assignments, key=lambda a: (order.index(a.tier), bool(a.rows))):
        name = f"{a.tier.value} by rows" if a.rows else a.tier.value
        counts[name] += 1
        values[name] += math.prod(a.shape)
        stored[name] += a.n_bytes
    rows = [[name, counts[name], values[name], stored[name]] for name in counts]
    print_table(["tier", "weights", "values", "bytes"], rows)
    groups = {a.block for a in plan.assignments if a.block}
    if groups:
        click.echo(
            f"{len(groups)} blocks of {sum(bool(a.block) for a in plan.assignments)} weights share their tiers"
        )
    line = f"file {plan.n_bytes:,} bytes, {plan.source_bytes / plan.n_bytes:.3f} times smaller"
    if plan.predicted_drift is not None:
        how = "all weights together on the scoring contexts" if plan.codes_sha256 else _ADDED
        line += f"; predicted drift {plan.predicted_drift:.4g} ({how})"
    if plan.joint_drift is not None and not plan.codes_sha256:
        line += f"; all weights together on the scoring contexts {plan.joint_drift:.4g}"
    click.echo(line)
    if plan.solver is not None:
        proven = "proven optimal" if plan.solver.optimal else f"within {plan.solver.gap:.2%} of the bound"
        click.echo(f"{plan.solver.objective} by {plan.solver.solver}: {proven}")
        unspent = plan.solver.budget_bytes - plan.n_bytes
        why = ": more would buy nothing" if plan.solver.saturated else ""
        click.echo(f"{unspent:,} of {plan.solver.budget_bytes:,} bytes are left unspent{why}")
