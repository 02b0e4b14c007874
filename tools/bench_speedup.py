"""Measures latency and drift of files beside those that onnxruntime's dynamic quantization writes, in one run.

Latency is the median over interleaved rounds of the ratio to FP32 (`tqs_onnx.rollout.stopwatch`), at the batch of the
rollout; drift is measured on the evaluation contexts, in units of σ of the scoring contexts. ``FILE`` are files of the
same model, e.g. those of `tqs quantize --speedup`. Usage::

    python tools/bench_speedup.py model.onnx rollout.toml contexts eval [FILE …] [--batch 32] [--rounds 15]

`eval` is ``-`` when the contexts are a table with test rows.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from tqs_onnx.inputs.data import DataOptions, read_data
from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.stopwatch import processor, race
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.verification.timing import first_inputs, paired


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "rollout", "contexts", "evaluation"):
        arguments.add_argument(name, type=Path)
    arguments.add_argument("files", type=Path, nargs="*")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--max-contexts", type=int)
    arguments.add_argument("--max-eval-contexts", type=int)
    given = arguments.parse_args()
    logging.disable(logging.WARNING)  # quantize_dynamic advises on the root logger
    limits = {"max_contexts": given.max_contexts, "max_eval_contexts": given.max_eval_contexts}
    evaluation = None if str(given.evaluation) == "-" else given.evaluation
    source = open_source(given.model)
    data = read_data(DataOptions(given.rollout, given.contexts, evaluation, **limits), source)
    run = RunOptions("cpu", batch=given.batch, threads=given.threads)
    bed = Testbed(source.lifted, source.survey, data.spec, data.scoring, run)
    bed = bed.scaled(bed.sigma).on(data.evaluation)
    with tempfile.TemporaryDirectory(prefix="tqs-speedup-") as folder:
        files = {"FP32": given.model}
        for per_channel in (False, True):
            path = Path(folder) / f"{per_channel}.onnx"
            quantize_dynamic(
                str(given.model), str(path), per_channel=per_channel, weight_type=QuantType.QInt8
            )
            files[f"quantize_dynamic{', per channel' if per_channel else ''}"] = path
        files |= {str(path): path for path in given.files}
        batch = 1 if data.spec.rollout.batch_axis is None else given.batch
        feeds = {batch: first_inputs(data.spec, data.evaluation, batch)}
        found = race(files, feeds, threads=given.threads, rounds=given.rounds, loads=3)
        print(f"{processor()}, {given.threads} thread, batch {batch}\n")
        print("| file | MB | load | memory MB | latency | drift |\n|---|---:|---:|---:|---:|---:|")
        base = found["FP32"]
        for name, path in files.items():
            laps = found[name]
            timed = laps.processor_s if given.threads == 1 else laps.wall_s
            against = base.processor_s if given.threads == 1 else base.wall_s
            latency = paired(timed[batch], against[batch])
            drift = bed.drift(bed.stream_file(path)(), bed.stream_file(given.model)())
            load, memory = paired(laps.load_s, base.load_s), laps.resident_mb or float("nan")
            size = path.stat().st_size / 1e6
            print(f"| {name} | {size:.2f} | {load:.2f} | {memory:.1f} | {latency:.3f} | {drift:.4f} |")


if __name__ == "__main__":
    main()
