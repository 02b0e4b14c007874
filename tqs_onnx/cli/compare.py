"""`tqs compare`: other files of one model, whoever made them, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloup

from tqs_onnx.cli import flags as table
from tqs_onnx.cli.options import FILE, data_files, flag_options, json_option, quantize_options
from tqs_onnx.cli.show import print_json, print_table
from tqs_onnx.jobs.others import Comparison, compare_files
from tqs_onnx.scoring.scores import read_scores

FLAGS = (*table.DATA, *table.EVALUATION, *table.RUN)


@cloup.command("compare")
@cloup.argument("model", type=FILE)
@cloup.argument("files", type=FILE, nargs=-1, required=True)
@flag_options(
    FLAGS,
    everyday=(table.ROLLOUT, table.CONTEXTS, table.EVAL_CONTEXTS),
    required=(table.ROLLOUT, table.CONTEXTS),
    more=(
        cloup.option("--scores", type=FILE, help="scores.json whose σ is used [default: measured here]."),
        cloup.option("--no-timing", is_flag=True, help="Leave out latency and memory."),
        json_option,
    ),
)
def command(
    model: Path, files: tuple[Path, ...], scores: Path | None, no_timing: bool, as_json: bool, **options: Any
) -> None:
    r"""Roll out FILES, other ONNX files of MODEL, beside it: bytes, drift, errors, latency and memory in one table.

    The files may come from anywhere (onnxruntime's quantize_dynamic, a float16 conversion, a colleague): only their
    inputs and outputs must be those of MODEL. Latency and memory are measured in one interleaved run.

    \b
    Example:
      tqs compare model.onnx run/model.tqs.onnx dynamic.onnx --rollout rollout.toml --contexts contexts.npz \
        --eval-contexts eval.npz
    """
    known = read_scores(scores) if scores else None
    run = quantize_options(options, FLAGS).run
    found = compare_files(model, files, data_files(options), run=run, scores=known, timing=not no_timing)
    if as_json:
        print_json(found.to_dict())
        return
    show_comparison(found)


def show_comparison(found: Comparison) -> None:
    """Print the files, and their errors by variable."""
    batches = sorted({b for o in found.others for b in o.latency})
    head = ["file", "bytes", "times smaller", "drift", "95th percentile", "worst degradation %"]
    head += [f"latency at batch {b}" for b in batches] + (["peak memory"] if batches else [])
    rows = [
        [
            *(o.name, o.n_bytes, o.compression),
            *((o.drift.total, o.drift.p95) if o.drift else ("not finite", None)),
            o.degradation,
            *(o.latency.get(b) for b in batches),
            *([o.peak] if batches else []),
        ]
        for o in found.others
    ]
    print_table(
        head, rows, title=f"beside {found.n_bytes:,} bytes; latency and memory as shares of the model's"
    )
    errors = [
        [o.name, name, e.unit, e.against_fp32.mae]
        + ([e.fp32.mae, e.file.mae, e.file.rmse, e.degradation] if e.fp32 and e.file else [None] * 4)
        for o in found.others
        for name, e in o.errors.items()
    ]
    if errors:
        print_table(
            ["file", "variable", "unit", "MAE from FP32", "MAE FP32", "MAE", "RMSE", "degradation %"],
            errors,
            left=3,
        )
