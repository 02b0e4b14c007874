"""`tqs baseline`: one width for every matrix, rounded with a published method, as a real file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import cloup

from tqs_onnx.cli import flags as table
from tqs_onnx.cli.flag import Group
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
from tqs_onnx.jobs.control import half_control
from tqs_onnx.jobs.options import BaselineOptions
from tqs_onnx.rounding.assign import METHODS
from tqs_passes.errors import InputError

_HALF = "fp16"
_METHOD = replace(
    table.BASELINE[0],
    kind=click.Choice([*METHODS, _HALF]),
    help="How integers are chosen; fp16: the whole model in float16, converted by onnxconverter-common.",
)
_BITS = table.BASELINE[1]
#: Flags that choose integers come first.
_N_ROUNDING = sum(flag.group is Group.ROUNDING for flag in table.BASELINE)


@cloup.command("baseline")
@cloup.argument("model", type=FILE)
@flag_options(
    (_METHOD, *table.BASELINE[1:], *table.DATA, *table.EVALUATION, *table.CALIBRATION),
    everyday=(
        *(_METHOD, _BITS, table.ROLLOUT, table.CONTEXTS, table.EVAL_CONTEXTS, table.PROFILE, table.MAX_DRIFT),
    ),
    required=(_METHOD,),
    more=(out_option(), force_option, json_option),
    kind=BaselineOptions,
)
def command(model: Path, out: Path, force: bool, as_json: bool, **options: Any) -> int:
    r"""Round MODEL uniformly, for comparison.

    Data-aware methods (gptq, gptaq, qep) are calibrated on the scoring contexts, or on --calibration. Without
    --qep-damp and --qep-strength, qep uses the best of six settings, chosen on contexts held out of the calibration.

    \b
    Example:
      tqs baseline model.onnx --method gptq --bits 3 --rollout rollout.toml --contexts ETTh1.csv.gz --out run
    """
    if options["method"] == _HALF:
        return _control(model, out, force, as_json, options)
    if options["bits"] is None:
        raise InputError("Missing option '--bits'.", todo="Give the width of every matrix")
    outcome = baseline(BaselineJob(model, data_files(options), out, baseline_options(options), force))
    if as_json:
        print_json(outcome.to_dict())
    else:
        show_verification(outcome.verification)
        show_outcome(outcome.verification, outcome.emitted, outcome.wall_s)
    return finish(outcome.gates)


def _control(model: Path, out: Path, force: bool, as_json: bool, options: dict[str, Any]) -> int:
    """Write and measure the float16 control."""
    unused = [flag for flag in table.BASELINE[1:_N_ROUNDING] if options[flag.key] is not None]
    if unused:
        raise InputError(
            "does not apply to --method fp16", where=unused[0].name.partition("/")[0], todo="Leave it out"
        )
    chosen = baseline_options(options | {"method": None})
    control = half_control(BaselineJob(model, data_files(options), out, chosen, force))
    if as_json:
        print_json(control.to_dict())
    else:
        click.echo(control.summary())
    return finish(control.manifest.gates)
