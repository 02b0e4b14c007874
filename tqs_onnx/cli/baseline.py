"""`tqs baseline`: one width for every matrix, rounded by a published method, as a real file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloup

from tqs_onnx.cli import flags as table
from tqs_onnx.cli.options import (
    FILE,
    baseline_options,
    data_files,
    flag_options,
    force_option,
    json_option,
    out_option,
)
from tqs_onnx.cli.outcome import finish, show_outcome, show_verification
from tqs_onnx.cli.show import print_json
from tqs_onnx.jobs.baseline import BaselineJob, baseline
from tqs_onnx.jobs.options import BaselineOptions

_METHOD, _BITS = table.BASELINE[:2]


@cloup.command("baseline")
@cloup.argument("model", type=FILE)
@flag_options(
    (*table.BASELINE, *table.DATA, *table.EVALUATION, table.CALIBRATION),
    everyday=(
        *(_METHOD, _BITS, table.ROLLOUT, table.CONTEXTS, table.EVAL_CONTEXTS, table.PROFILE, table.MAX_DRIFT),
    ),
    required=(_METHOD, _BITS, table.ROLLOUT, table.CONTEXTS),
    more=(out_option(), force_option, json_option),
    kind=BaselineOptions,
)
def command(model: Path, out: Path, force: bool, as_json: bool, **options: Any) -> int:
    r"""Round MODEL uniformly, as a file to compare with.

    Data-aware methods (gptq, gptaq, qep) are calibrated on the scoring contexts, or on --calibration. Without
    --qep-damp and --qep-strength, qep gets the best of six settings, chosen on contexts held out of these.

    \b
    Example:
      tqs baseline model.onnx --method gptq --bits 3 --rollout rollout.toml --contexts ETTh1.csv.gz --out run
    """
    outcome = baseline(BaselineJob(model, data_files(options), out, baseline_options(options), force))
    if as_json:
        print_json(outcome.to_dict())
    else:
        show_verification(outcome.verification)
        show_outcome(outcome.verification, outcome.emitted, outcome.wall_s)
    return finish(outcome.gates)
