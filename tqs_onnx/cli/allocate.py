"""`tqs allocate`: choose a tier for every weight within a byte budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloup

from tqs_onnx.allocation.budget import source_weight_bytes
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
from tqs_onnx.cli.outcome import show_plan
from tqs_onnx.cli.show import print_json
from tqs_onnx.jobs.single import AllocateJob, allocate_files
from tqs_onnx.rounding.assign import DATA_AWARE
from tqs_passes.errors import InputError

FLAGS = (
    *(*table.BUDGET, *table.PLANNING, *table.SERVING, *table.REFINING, *table.DATA, *table.CALIBRATION),
    *table.EVALUATION,
    *table.RUN,
)


@cloup.command("allocate")
@cloup.argument("model", type=FILE)
@flag_options(
    FLAGS,
    everyday=(*table.BUDGET, table.ROLLOUT, table.CONTEXTS, table.ROUNDING, table.PROFILE),
    more=(
        cloup.option("--scores", type=FILE, required=True, help="scores.json of this model."),
        out_option("Path of plan.json."),
        force_option,
        json_option,
    ),
)
def command(model: Path, scores: Path, out: Path, force: bool, as_json: bool, **options: Any) -> None:
    r"""Choose a tier for every weight of MODEL within a byte budget for the whole file.

    With the contexts used for scoring, the plan is the same as in `tqs quantize`: compared with others, rounded by data
    (codes.npz beside the plan), and with its drift predicted. Without a rollout spec and contexts nothing is rolled
    out, and the weights alone choose the integers.

    \b
    Example:
      tqs allocate model.onnx --scores run/scores.json --rollout rollout.toml --contexts contexts.npz \
        --compression 8 --out run/plan.json
    """
    rolled = options["rollout"] is not None or options["contexts"] is not None
    data = data_files(options) if rolled else None
    if not rolled and options["rounding"] in DATA_AWARE:
        raise InputError(
            "rounding by data needs rollouts", where="--rounding", todo="Give --rollout and --contexts"
        )
    found = allocate_files(AllocateJob(model, scores, out, quantize_options(options, FLAGS), data, force))
    plan, menus = found.plan, found.request.menus
    if not as_json:
        show_plan(plan)
        return
    print_json(
        {
            "plan": str(out),
            "n_bytes": plan.n_bytes,
            "compression": plan.source_bytes / plan.n_bytes,
            "weight_compression": source_weight_bytes(menus) / max(plan.weight_bytes, 1),
            "predicted_drift": plan.predicted_drift,
            "predicted_interval": [plan.prediction.low, plan.prediction.high] if plan.prediction else None,
            "joint_drift": plan.joint_drift,
            "added_drift": plan.added_drift,
            "unspent_bytes": plan.solver.budget_bytes - plan.n_bytes if plan.solver else None,
            "solver": plan.solver.model_dump() if plan.solver else None,
            "tried": [t.model_dump(mode="json") for t in plan.tried],
        }
    )
